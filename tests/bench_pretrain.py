"""Measure pre-training: ours beside a loop around transformers, and beside itself without batches by length.

    python tests/bench_pretrain.py                            # CPU: float32, minutes on two cores
    python tests/bench_pretrain.py --precision bfloat16
    python tests/bench_pretrain.py --device cuda              # bfloat16, with and without torch.compile

What is compared: whole updates. Both programs see the same batches, ready on the device, and do the same with
them: joint loss of generator and discriminator with tied embeddings, 15 % masking, sampling, gradient
clipping, fused AdamW. `tiny`, `small` and `base` have the presets' sizes, SciVocab's 31,090 wordpieces and
dropout 0.1. Theirs is what one writes with ElectraForMaskedLM, ElectraForPreTraining and their `labels`:
attention is scaled_dot_product_attention, sampling is torch.multinomial, and the generator's logits are those
of all T positions, since the model knows no other. Not compared: reading and masking, logs, checkpoints.

Each program runs in a process of its own: ours as train_pretrain.py sets it up (waiting threads asleep,
allocator), theirs as torch comes. The processes make their steps in turns, one waiting while the other
computes; each figure is the median over the rounds. The last lines hold one figure each.
"""
import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data import build_examples, plan_batches, read_documents
from electramed import (
    PRESETS, Adam, Device, ElectraForPretraining, MaskedBatch, mask_tokens, parameter_groups)

# preset -> (length, rows on a CPU, rows on a GPU); the presets' own rows are 16, 128 and 256
CASES = {
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


# --- 1. What both programs compute ---

class BenchBatch(NamedTuple):
    """What both loops take, on the device."""

    ids: Tensor                 # (B, T) the text
    real: Tensor                # (B, T) 1 on real tokens
    segments: Tensor            # (B, T)
    masked: MaskedBatch         # what our generator sees
    labels: Tensor              # (B, T) the masked tokens, IGNORED elsewhere: what theirs learns from
    tokens: int                 # real ones


def bench_batch(lengths, width, config, device, seed):
    """Make rows of random tokens, of the given lengths, padded to `width`."""
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


def preset(name):
    """Return the preset with SciVocab's size and special ids."""
    return dataclasses.replace(PRESETS[name], vocab_size=VOCABULARY, cls_token_id=CLS, sep_token_id=SEP,
                               mask_token_id=MASK)


def our_step(config, device, is_compiled):
    """Return one update of ours as a function of a batch, as training_step makes it."""
    model = ElectraForPretraining(config).to(device.kind)
    optimizer = Adam(parameter_groups(model, 0.01))
    weights = list(model.parameters())
    # As train_pretrain.py compiles on a GPU; programs are compiled on GPUs alone (see main). Theirs has no
    # CUDA graph: it is what torch.compile does by itself.
    forward = torch.compile(model, dynamic=False, mode="reduce-overhead") if is_compiled else model

    def step(batch):
        with device.autocast():
            output = forward(batch.masked, batch.real, batch.segments)
        output.loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step(1e-4)

    return step


def their_step(config, device, is_compiled):
    """Return one update of a loop around transformers as a function of a batch."""
    import transformers
    discriminator, generator = (
        make(transformers.ElectraConfig(**json.loads(sizes.to_json()))).to(device.kind).train()
        for make, sizes in ((transformers.ElectraForPreTraining, config),
                            (transformers.ElectraForMaskedLM, config.generator())))
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = discriminator.electra.embeddings.word_embeddings.weight
    parameters = list(nn.ModuleList([discriminator, generator]).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    generate, judge = generator, discriminator
    if is_compiled:
        generate, judge = torch.compile(generator), torch.compile(discriminator)

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


# --- 2. Programs in processes of their own ---

class Setting(NamedTuple):
    """What a program needs to know."""

    preset: str
    kind: str                   # cpu or cuda
    precision: str
    is_compiled: bool


class Program:
    """A program in a process of its own, which computes what it is asked for, and waits otherwise.

    serve      function of (connection, *arguments) that runs in the process: it sends one message when it is
               ready, then answers each request, and a last time when it receives None
    is_ours    whether the process waits for threads as train_pretrain.py and train_finetune.py do, or as
               torch comes
    """

    def __init__(self, serve, is_ours, *arguments):
        spawn = multiprocessing.get_context("spawn")            # a fresh interpreter: torch starts anew in it
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, *arguments), daemon=True)
        os.environ.pop("OMP_WAIT_POLICY", None)
        if is_ours:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        self.process.start()
        self.connection.recv()

    def ask(self, request):
        """Return the answer to a request."""
        self.connection.send(request)
        return self.connection.recv()

    def end(self):
        """End the process; returns its last answer."""
        last = self.ask(None)
        self.process.join()
        return last


def serve(connection, who, setting):
    """Build a model, then time a step for each batch asked for; answer last the peak of memory in bytes."""
    if who == "ours":
        device = Device.choose(setting.kind, setting.precision)
    else:
        device = Device(setting.kind, setting.precision)        # torch's own threads and memory
    torch.manual_seed(0)
    before = memory(device, "VmRSS")
    make = our_step if who == "ours" else their_step
    step = make(preset(setting.preset), device, setting.is_compiled)
    connection.send("ready")
    while request := connection.recv():
        lengths, width, seed = request
        batch = bench_batch(lengths, width, preset(setting.preset), device, seed)
        connection.send(seconds(device, step, batch))
    connection.send(memory(device, "VmHWM") - before)


def seconds(device, function, *arguments):
    """Return how long a call takes, the device's work included; on a GPU the mean of ten in one queue."""
    calls = 10 if device.kind == "cuda" else 1
    if device.kind == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        function(*arguments)
    if device.kind == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls


def memory(device, name):
    """Return the bytes in use (VmRSS), or the most that ever were (VmHWM)."""
    if device.kind == "cuda":
        return torch.cuda.max_memory_allocated() if name == "VmHWM" else torch.cuda.memory_allocated()
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return 1024 * int(line.split()[1])


# --- 3. Figures ---

def flop_per_token(config, length):
    """Return operations per token, forward and backward, of both networks: 6 for each weight of a product."""
    def encoder(sizes):
        hidden = sizes.hidden_size
        projection = sizes.embedding_size * hidden if sizes.embedding_size != hidden else 0
        layer = 4 * hidden * hidden + 2 * hidden * sizes.intermediate_size
        layer += 2 * length * hidden                                                # Q K^T and P V
        return projection + sizes.num_hidden_layers * layer

    small = config.generator()
    head = (small.hidden_size + config.vocab_size) * config.embedding_size * config.num_slots(length) / length
    return 6 * (encoder(config) + config.hidden_size ** 2 + encoder(small) + head)


def measured_peak(device):
    """Return the FLOP per second of a large matrix product in the device's precision."""
    size = 8192 if device.kind == "cuda" else 2048
    dtype = getattr(torch, device.precision)
    one, other = (torch.randn(size, size, device=device.kind, dtype=dtype) for _ in range(2))
    torch.mm(one, other)
    return 2 * size ** 3 / min(seconds(device, torch.mm, one, other) for _ in range(5))


def abstract_lengths():
    """Return tokens of examples of at most 512: of real abstracts, if any, at 1.25 wordpieces per word."""
    if not os.environ.get("ELECTRAMED_DATA"):
        drawn = np.random.default_rng(0).lognormal(np.log(250), 0.5, size=4000)
        return drawn.astype(int).clip(10, 512), "synthetic"
    path = Path(os.environ["ELECTRAMED_DATA"]) / "pretrain/corpus/pubmed_abstracts-00.txt.xz"
    documents = itertools.islice(read_documents(path), 4000)
    pieces = ([[0] * round(1.25 * len(sentence.split())) for sentence in document] for document in documents)
    examples = build_examples(pieces, 512, random.Random(0))
    return np.array([len(first) + len(second) + 2 + bool(second) for first, second in examples]), "PubMed"


def compare(name, device, is_compiled, options, figures):
    """Add ours beside transformers': tokens per second, memory, ratio, days a paper takes, share of peak."""
    length, rows = CASES[name][0], CASES[name][1 if device.kind == "cpu" else 2]
    peak = measured_peak(device)
    setting = Setting(name, device.kind, device.precision, is_compiled)
    programs = {who: Program(serve, who == "ours", who, setting) for who in ("ours", "transformers")}
    times = {who: [] for who in programs}
    for seed in range(options.rounds + 1):
        for who, program in programs.items():
            times[who].append(program.ask(([length] * rows, length, seed)))
    peaks = {who: program.end() for who, program in programs.items()}
    times = {who: values[1:] for who, values in times.items()}              # the first step prepares kernels
    median = {who: statistics.median(values) for who, values in times.items()}
    compiled = ", compiled" if is_compiled else ""
    title = f"{name} at {length}, {rows} rows, {device.kind} {device.precision}{compiled}"
    for who, value in median.items():
        low, high = min(times[who]), max(times[who])
        print(f"{title}: {who} {value:.3f} s a step ({low:.3f} to {high:.3f})", flush=True)
        figures[f"{title}: {who}, tokens a second"] = f"{rows * length / value:,.0f}"
        figures[f"{title}: {who}, peak memory in GiB"] = f"{peaks[who] / 2**30:.2f}"
    if name in PAPERS:
        paper, tokens = PAPERS[name]
        figures[f"{title}: days for the {tokens / 1e9:.1f} G tokens of {paper}"] = (
            f"{tokens / (rows * length / median['ours']) / 86_400:,.1f}")
    figures[f"{title}: times as fast as transformers"] = f"{median['transformers'] / median['ours']:.2f}"
    rate = flop_per_token(preset(name), length) * rows * length / median["ours"]
    figures[f"{title}: share of a large product's {peak / 1e12:.2f} TFLOP/s"] = f"{rate / peak:.2f}"


def compare_lengths(device, options, figures):
    """Add `small` at 512 on real lengths: batches of like length beside the same rows padded to 512."""
    rows = 8 if device.kind == "cpu" else 128
    lengths, source = abstract_lengths()
    plan = plan_batches(lengths, rows, 512, np.random.default_rng(0))[:options.rounds * 3]
    program = Program(serve, True, "ours", Setting("small", device.kind, device.precision, False))
    program.ask(([512] * rows, 512, 0))
    alike, padded = (sum(program.ask((lengths[chosen].tolist(), width, seed))
                         for seed, (width, chosen) in enumerate(batches))
                     for batches in (plan, [(512, chosen) for _, chosen in plan]))
    program.end()
    tokens = sum(int(lengths[chosen].sum()) for _, chosen in plan)
    title = f"small at up to 512, {rows} rows, {source} lengths, {device.kind} {device.precision}"
    figures[f"{title}: batches of like length, tokens a second"] = f"{tokens / alike:,.0f}"
    figures[f"{title}: every row padded to 512, tokens a second"] = f"{tokens / padded:,.0f}"
    figures[f"{title}: times as fast by batches of like length"] = f"{padded / alike:.2f}"


def main():
    """Run the cases asked for, then print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", choices=["float32", "bfloat16"],
                        help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds; the median counts")
    parser.add_argument("--cases", nargs="*", default=[*CASES, "lengths"], choices=[*CASES, "lengths"])
    options = parser.parse_args()
    kind = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    device = Device(kind, options.precision or ("bfloat16" if kind == "cuda" else "float32"))
    figures = {}
    for name in options.cases:
        if name == "lengths":
            compare_lengths(device, options, figures)
            continue
        for is_compiled in (False, True) if kind == "cuda" else (False,):
            compare(name, device, is_compiled, options, figures)
    print(f"\ntorch {torch.__version__}, "
          + (torch.cuda.get_device_name() if kind == "cuda" else f"{torch.get_num_threads()} CPU threads"))
    for title, figure in figures.items():
        print(f"{title}: {figure}")


if __name__ == "__main__":
    main()
