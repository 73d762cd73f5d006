"""How fast pre-training is: ours against a loop around transformers, and against itself without batches by length.

    python tests/bench_pretrain.py                                    # CPU: float32, minutes on two cores
    python tests/bench_pretrain.py --device cuda                      # bfloat16, with and without torch.compile

Both loops see the same batches, ready on the device, and do the same: joint loss of generator and discriminator with
tied embeddings, 15 % masking, sampling, gradient clipping, fused AdamW. Theirs is what one writes with
ElectraForMaskedLM, ElectraForPreTraining and their `labels`: attention is scaled_dot_product_attention, and the
generator's logits are those of all T positions, since the model knows no other. One process, steps in turns; each
figure is the median over the rounds. The last lines hold one figure each.
"""
import argparse
import ctypes
import dataclasses
import itertools
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import train_pretrain  # noqa: F401     before torch: it sets how torch's threads wait

import numpy as np
import torch
from torch import Tensor, nn

from data import build_examples, plan_batches, read_documents
from electramed import PRESETS, Adam, Device, ElectraForPretraining, MaskedBatch, mask_tokens, parameter_groups

CASES = {                       # preset -> (length, rows on a CPU, rows on a GPU); the presets' are 16, 128 and 256
    "tiny": (128, 16, 256),
    "small": (128, 16, 512),
    "base": (512, 4, 64),
}
PAPERS = {                      # preset -> the run of that size, tokens in its batches
    "small": ("Bio-ELECTRA", 1_800_000 * 64 * 256),
    "base": ("ELECTRAMed", 1_000_000 * 256 * 512),
}
VOCABULARY = 31090              # SciVocab's
CLS, SEP, MASK = 102, 103, 104
IGNORED = -100                  # transformers' label of a position that is not masked


class BenchBatch(NamedTuple):
    """What both loops take, on the device."""

    ids: Tensor                 # (B, T) the text
    real: Tensor                # (B, T) 1 on real tokens
    segments: Tensor            # (B, T)
    masked: MaskedBatch         # what our generator sees
    labels: Tensor              # (B, T) the masked tokens, IGNORED elsewhere: what theirs learns from
    tokens: int                 # real ones


def bench_batch(lengths, width, config, device, seed):
    """Rows of random tokens, of the given lengths, padded to `width`."""
    source = torch.Generator().manual_seed(seed)
    column, length = torch.arange(width), torch.as_tensor(lengths)[:, None]
    real = (column < length).long()
    ids = torch.randint(200, config.vocab_size, real.shape, generator=source)
    ids[:, 0] = CLS
    ids[(column == length // 2) | (column == length - 1)] = SEP
    ids = ids * real
    masked = mask_tokens(ids, real, config, source)
    is_chosen = torch.zeros(ids.shape).scatter_add(1, masked.positions, masked.weights) > 0
    segments = (column > length // 2).long() * real
    moved = device.put(ids, real, segments, torch.where(is_chosen, ids, IGNORED))
    return BenchBatch(*moved[:3], MaskedBatch(*device.put(*masked)), moved[3], int(real.sum()))


def our_step(config, device, is_compiled):
    """One update of ours, as a function of a batch."""
    model = ElectraForPretraining(config).to(device.kind)
    optimizer = Adam(parameter_groups(model, 0.01))
    forward = torch.compile(model) if is_compiled else model

    def step(batch):
        with device.autocast():
            loss = forward(batch.masked, batch.real, batch.segments).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.update(1e-4)

    return step


def their_step(config, device, is_compiled):
    """One update of a loop around transformers, as a function of a batch."""
    import transformers
    discriminator, generator = (
        make(transformers.ElectraConfig(**json.loads(sizes.to_json()))).to(device.kind).train()
        for make, sizes in ((transformers.ElectraForPreTraining, config),
                            (transformers.ElectraForMaskedLM, config.generator())))
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = discriminator.electra.embeddings.word_embeddings.weight
    parameters = list(nn.ModuleList([discriminator, generator]).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    generate, judge = map(torch.compile, (generator, discriminator)) if is_compiled else (generator, discriminator)

    def step(batch):
        with device.autocast():
            guess = generate(input_ids=batch.masked.input_ids, attention_mask=batch.real,
                             token_type_ids=batch.segments, labels=batch.labels)
            is_chosen = batch.labels != IGNORED
            with torch.no_grad():
                probability = guess.logits[is_chosen].float().softmax(-1)
                corrupted = batch.ids.clone()
                corrupted[is_chosen] = torch.multinomial(probability, 1).squeeze(1)
            verdict = judge(input_ids=corrupted, attention_mask=batch.real, token_type_ids=batch.segments,
                            labels=(corrupted != batch.ids).long())
            loss = guess.loss + 50 * verdict.loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(device, function, *arguments):
    """How long a call takes, the device's work included; on a GPU the mean of ten, queued one behind the other."""
    calls = 10 if device.kind == "cuda" else 1
    if device.kind == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        function(*arguments)
    if device.kind == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls


def memory(device, name="VmRSS"):
    """Bytes in use, or with VmHWM the most since reset_peak()."""
    if device.kind == "cuda":
        return torch.cuda.max_memory_allocated() if name == "VmHWM" else torch.cuda.memory_allocated()
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return 1024 * int(line.split()[1])


def reset_peak(device):
    """Let the peak begin anew at what is in use."""
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device, make, batch):
    """Build a step and run it twice: (the step, the bytes it needed at most, weights and moments included)."""
    if device.kind == "cpu":
        ctypes.CDLL(None).malloc_trim(0)                    # what was freed before is not taken for free
    before = memory(device)
    step = make()
    reset_peak(device)
    step(batch), step(batch)
    return step, memory(device, "VmHWM") - before


def alternate(device, steps, batches):
    """Each batch through every step, in turns -> seconds a batch, one list a step."""
    times = {name: [] for name in steps}
    for batch in batches:
        for name, step in steps.items():
            times[name].append(seconds(device, step, batch))
    return times


def flop_per_token(config, length):
    """Floating-point operations of forward and backward a token, both networks: 6 for each weight of a product."""
    def encoder(sizes):
        hidden = sizes.hidden_size
        projection = sizes.embedding_size * hidden if sizes.embedding_size != hidden else 0
        layer = 4 * hidden * hidden + 2 * hidden * sizes.intermediate_size + 2 * length * hidden    # Q K^T and P V
        return projection + sizes.num_hidden_layers * layer

    small = config.generator()
    head = (small.hidden_size + config.vocab_size) * config.embedding_size * config.num_slots(length) / length
    return 6 * (encoder(config) + config.hidden_size ** 2 + encoder(small) + head)


def measured_peak(device):
    """FLOP a second of a large matrix product in bfloat16."""
    one, other = (torch.randn(8192, 8192, device=device.kind, dtype=torch.bfloat16) for _ in range(2))

    torch.mm(one, other)
    return 2 * 8192 ** 3 / min(seconds(device, torch.mm, one, other) for _ in range(5))


def abstract_lengths():
    """Tokens of examples of at most 512: of real abstracts where they are, at 1.25 wordpieces a word."""
    if not os.environ.get("ELECTRAMED_DATA"):
        return np.random.default_rng(0).lognormal(np.log(250), 0.5, size=4000).astype(int).clip(10, 512), "synthetic"
    path = Path(os.environ["ELECTRAMED_DATA"]) / "pretrain/corpus/pubmed_abstracts-00.txt.xz"
    documents = itertools.islice(read_documents(path), 4000)
    pieces = ([[0] * round(1.25 * len(sentence.split())) for sentence in document] for document in documents)
    examples = build_examples(pieces, 512, random.Random(0))
    return np.array([len(first) + len(second) + 2 + bool(second) for first, second in examples]), "PubMed"


def compare(name, device, is_compiled, options, figures):
    """Ours beside transformers': tokens a second, peak memory, their ratio, days a paper takes, share of the peak."""
    length, rows = CASES[name][0], CASES[name][1 if device.kind == "cpu" else 2]
    config = preset(name)
    warm, *batches = (bench_batch([length] * rows, length, config, device, seed) for seed in range(options.rounds + 1))
    steps, peaks = {}, {}
    for who, make in (("ours", our_step), ("transformers", their_step)):
        steps[who], peaks[who] = peak(device, lambda: make(config, device, is_compiled), warm)
    times = alternate(device, steps, batches)
    median = {who: statistics.median(values) for who, values in times.items()}
    title = f"{name} at {length}, {rows} rows, {device.kind} {device.precision}{', compiled' if is_compiled else ''}"
    for who, value in median.items():
        print(f"{title}: {who} {value:.3f} s a step ({min(times[who]):.3f} to {max(times[who]):.3f})", flush=True)
        figures[f"{title}: {who}, tokens a second"] = f"{rows * length / value:,.0f}"
        figures[f"{title}: {who}, peak memory in GiB"] = f"{peaks[who] / 2**30:.2f}"
    if name in PAPERS:
        paper, tokens = PAPERS[name]
        figures[f"{title}: days for the {tokens / 1e9:.1f} G tokens of {paper}"] = (
            f"{tokens / (rows * length / median['ours']) / 86_400:,.1f}")
    figures[f"{title}: times as fast as transformers"] = f"{median['transformers'] / median['ours']:.2f}"
    if device.kind == "cuda":
        share = flop_per_token(config, length) * rows * length / median["ours"] / measured_peak(device)
        figures[f"{title}: share of the measured bfloat16 peak"] = f"{share:.3f}"


def compare_lengths(device, options, figures):
    """`small` at 512 on real lengths: batches of like length beside the same rows padded to 512."""
    config, rows = preset("small"), 8 if device.kind == "cpu" else 128
    lengths, source = abstract_lengths()
    plan = plan_batches(lengths, rows, 512, np.random.default_rng(0))[:options.rounds * 3]
    batches = [[bench_batch(lengths[chosen], width, config, device, seed) for width in (bucket, 512)]
               for seed, (bucket, chosen) in enumerate(plan)]
    step = our_step(config, device, False)
    step(batches[0][1])
    alike, padded = (sum(times) for times in zip(*([seconds(device, step, batch) for batch in pair]
                                                   for pair in batches)))
    tokens = sum(pair[0].tokens for pair in batches)
    title = f"small at up to 512, {rows} rows, {source} lengths, {device.kind} {device.precision}"
    figures[f"{title}: batches of like length, tokens a second"] = f"{tokens / alike:,.0f}"
    figures[f"{title}: every row padded to 512, tokens a second"] = f"{tokens / padded:,.0f}"
    figures[f"{title}: times as fast by batches of like length"] = f"{padded / alike:.2f}"


def preset(name):
    """The preset with SciVocab's size and special ids."""
    return dataclasses.replace(PRESETS[name], vocab_size=VOCABULARY, cls_token_id=CLS, sep_token_id=SEP,
                               mask_token_id=MASK)


def main():
    """Run the cases asked for, then print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds, of which the median counts")
    parser.add_argument("--cases", nargs="*", default=[*CASES, "lengths"], choices=[*CASES, "lengths"])
    options = parser.parse_args()
    device, figures = Device.choose(options.device), {}
    torch.manual_seed(0)
    for name in options.cases:
        if name == "lengths":
            compare_lengths(device, options, figures)
            continue
        for is_compiled in (False, True) if device.kind == "cuda" else (False,):
            compare(name, device, is_compiled, options, figures)
    print(f"\ntorch {torch.__version__}, "
          + (torch.cuda.get_device_name() if device.kind == "cuda" else f"{torch.get_num_threads()} CPU threads"))
    for title, figure in figures.items():
        print(f"{title}: {figure}")


if __name__ == "__main__":
    main()
