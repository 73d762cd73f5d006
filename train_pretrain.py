"""Pre-train ELECTRA: a generator guesses hidden tokens, a discriminator learns to find those that it replaced.

After reading this file you hold the whole of pre-training but the model itself: from a corpus to shards, one
step, the loop that can be stopped at any moment and continued exactly, evaluation on held-out documents.

    python train_pretrain.py                                  # minutes, on a built-in synthetic corpus
    python train_pretrain.py --preset electramed --corpus pubmed.txt.gz --vocab scivocab.txt --out runs/med
    torchrun --nproc-per-node 8 train_pretrain.py --preset electramed ...        # the same run on eight GPUs

Where it stands: tokenizer.py and data.py make the batches, electramed.py the model, metrics.py the scores; the
model this writes (OUT/model, in the Hugging Face layout) is what train_finetune.py starts from.
Everything random in step k (order, mask, dropout, sampling) is seeded from (seed, k): a resumed run equals an
unbroken one bit by bit on a CPU (on a GPU up to the order of atomic additions), and no generator state is saved.
Sources: ELECTRAMed Table 1, Bio-ELECTRA section 3, TF run_pretraining.py and configure_pretraining.py.

    1. Options and presets    2. Data    3. One step    4. The loop    5. Evaluation    6. Command line
"""
from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Where torch's threads compute one product together (the optimiser; rows of a batch they compute side by side), they
# wait asleep. Waiting by spinning, their default, takes the cores from every other process, and from the side-by-side
# threads; it has to be said before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F

import data
import metrics
from data import option, say
from electramed import (PRESETS, Adam, Device, ElectraConfig, ElectraForPretraining, MaskedBatch,
                        MaskedLanguageModel, PretrainOutput, learning_rate_at, load_checkpoint, load_initial,
                        mask_tokens, model_folder, parameter_groups, save_checkpoint, save_pretrained)
from tokenizer import Tokenizer, learn_vocab, preprocess_bluebert


# --- 1. Options and presets ---

@dataclass(frozen=True)
class Options:
    """The command line. What is None follows from the preset."""

    preset: str = option("tiny", "model sizes and schedule to start from", choices=list(PRESETS))
    corpus: list[str] = option([], "text files (one sentence a line, an empty line between documents), XML of PubMed "
                               "or PMC, .gz, .xz or .tar of them, folders of all these, or a shard folder (default: "
                               "the synthetic corpus)")
    min_pmid: int = option(0, "leave out PubMed records with lower numbers (Bio-ELECTRA: 10000000)")
    language: str | None = option(None, "leave out PubMed records in other languages than this, such as eng")
    bluebert: bool = option(False, "lower-case and split words as in ELECTRAMed's corpus")
    vocab: str | None = option(None, "vocab.txt, or the folder it is in (default: learnt on the corpus)")
    vocab_size: int = option(None, "size of the vocabulary that is learnt, wordpieces", at_least=1)
    cased: bool = option(None, "keep capitals and accents (bio-electra does)")
    out: str = option("runs/pretrain", "run folder; the same command on an existing one continues it")
    init: str | None = option(None, "start from the weights (and the vocabulary) of this run or model folder, with a "
                              "fresh schedule: for text of another kind, or 512 tokens after 128")
    objective: str = option("electra", "electra, or mlm: the encoder itself fills in hidden tokens, as BERT does",
                            choices=["electra", "mlm"])

    embedding_size: int = option(None, "width of the embeddings")
    hidden_size: int = option(None, "width of the discriminator")
    num_hidden_layers: int = option(None, "layers of both networks")
    num_attention_heads: int = option(None, "attention heads of the discriminator")
    intermediate_size: int = option(None, "inner width of its feed-forward networks")
    initializer_range: float = option(None, "standard deviation of the initial weights")
    generator_size: float = option(None, "generator's width as a share of the discriminator's")
    mask_prob: float = option(None, "share of the tokens that are chosen for masking")
    dropout: float = option(None, "dropout of hidden states and attention")

    steps: int = option(None, "updates", at_least=1)
    batch_size: int = option(None, "examples in a batch, over all devices", at_least=1)
    accumulate: int = option(1, "parts of a device's share of the batch that are computed one after the other: on "
                             "too small a device, double it until the memory suffices; the result is the same",
                             at_least=1)
    max_length: int = option(None, "tokens of the longest example", at_least=8)
    learning_rate: float = option(None, "peak learning rate", at_least=0)
    warmup_steps: int = option(None, "updates until the peak", at_least=0)
    weight_decay: float = option(None, "decoupled weight decay", at_least=0)
    seed: int = option(0, "decides everything random", at_least=0)

    log_every: int = option(50, "steps between two rows of log.csv", at_least=1)
    eval_every: int = option(1000, "steps between two rows of eval.csv", at_least=1)
    checkpoint_every: int = option(500, "steps between two checkpoints, of which the last two are kept; there is "
                                   "one every ten minutes in any case", at_least=1)
    keep_every: int = option(None, "steps between two models that are kept for good, in OUT/models: what "
                             "train_finetune.py --curve compares (default: a tenth of all)", at_least=1)
    max_minutes: float | None = option(None, "stop after that many minutes; the same command continues", at_least=0)
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda"])
    tpu: bool = option(False, "all XLA devices of this machine, through torch_xla")
    precision: str | None = option(None, "default: float32 on the CPU, else bfloat16", choices=["float32", "bfloat16"])
    compile: bool = option(False, "torch.compile the model, once for each row length: minutes at first, then faster")


DATA_FIELDS = ("corpus", "min_pmid", "language", "bluebert", "vocab", "vocab_size", "cased", "max_length",
               "seed")                                                              # shards depend on these
FREE = ("out", "log_every", "eval_every", "checkpoint_every", "keep_every", "max_minutes", "accumulate",
        "device", "tpu", "precision", "compile")
# The result depends on all but FREE, so a run that has begun refuses to continue with others.
FIXED = tuple(field.name for field in dataclasses.fields(Options) if field.name not in FREE)
# What of them a preset's model decides.
MODEL_FIELDS = tuple(field.name for field in dataclasses.fields(Options) if hasattr(ElectraConfig, field.name))

ELECTRA_SMALL = {"steps": 1_000_000, "batch_size": 128, "max_length": 128, "learning_rate": 5e-4,
                 "warmup_steps": 10_000, "weight_decay": 0.01}
ELECTRA_BASE = {**ELECTRA_SMALL, "batch_size": 256, "max_length": 512, "learning_rate": 2e-4}
BIO_ELECTRA = {**ELECTRA_SMALL, "steps": 1_800_000, "batch_size": 64, "max_length": 256, "cased": True}
SCHEDULES: dict[str, dict[str, Any]] = {
    "tiny": {**ELECTRA_SMALL, "steps": 3_000, "batch_size": 16, "warmup_steps": 300,
             "vocab_size": 2_000},                                         # ours: minutes on two cores
    "small": ELECTRA_SMALL,
    "base": ELECTRA_BASE,
    "large": {**ELECTRA_BASE, "batch_size": 2048},
    "electramed": ELECTRA_BASE,             # ELECTRAMed, Table 1
    "bio-electra": BIO_ELECTRA,
    "bio-electra-pp": BIO_ELECTRA,          # the same schedule anew, on full papers
}


def complete(options: Options) -> Options:
    """Fill in from the preset what the command line left open."""
    config = PRESETS[options.preset]
    steps = options.steps or SCHEDULES[options.preset]["steps"]
    values = {**{name: getattr(config, name) for name in MODEL_FIELDS}, "dropout": config.hidden_dropout_prob,
              "cased": False, **SCHEDULES[options.preset], "keep_every": max(1, steps // 10)}
    return dataclasses.replace(options, **{name: value for name, value in values.items()
                                           if getattr(options, name) is None})


def network(options: Options) -> ElectraConfig:
    """Make the discriminator's configuration from completed options, as far as it needs no vocabulary."""
    preset = PRESETS[options.preset]
    return dataclasses.replace(
        preset, **{name: getattr(options, name) for name in MODEL_FIELDS},
        hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=options.dropout,
        max_position_embeddings=max(options.max_length, preset.max_position_embeddings))


def with_vocabulary(config: ElectraConfig, tokenizer: Tokenizer) -> ElectraConfig:
    """Fit a configuration to a vocabulary: its size and its special ids."""
    return dataclasses.replace(
        config, vocab_size=len(tokenizer.pieces), pad_token_id=tokenizer.pad_id, cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id, mask_token_id=tokenizer.mask_id)


# --- 2. Data ---

SYNTHETIC_DOCUMENTS = 20_000


def prepare_data(options: Options) -> tuple[Tokenizer, data.Shards]:
    """Make the tokenizer and the shards of a run on first use; find them again when it is resumed."""
    out = Path(options.out)
    corpus = [Path(path) for path in options.corpus]
    reading = data.Reading(options.min_pmid, options.language, preprocess_bluebert if options.bluebert else None)
    if len(corpus) == 1 and (corpus[0] / "index.json").is_file():
        if not options.vocab:
            raise ValueError(f"{corpus[0]} holds shards: pass --vocab, the vocabulary they were built with")
        tokenizer, shards = load_tokenizer(options.vocab, options), data.open_shards(corpus[0])
        if shards.index["vocabulary"] != data.vocabulary_hash(tokenizer):
            raise ValueError(f"{corpus[0]} was built with another vocabulary or casing than {options.vocab}")
        if shards.index["max_length"] > options.max_length:
            raise ValueError(f"{corpus[0]} has examples of up to {shards.index['max_length']} tokens: "
                             f"pass --max-length {shards.index['max_length']}")
        if reading != data.Reading() and data.describe_reading(reading) != shards.index["text"]:
            raise ValueError(f"{corpus[0]} was built with {shards.index['text']}: drop --min-pmid, --language and "
                             "--bluebert, or pass the text")
        return tokenizer, shards
    if not corpus:
        corpus = [out / "corpus.txt"]
        if not corpus[0].exists():
            say(f"writing the synthetic corpus to {corpus[0]}")
            data.write_bytes(corpus[0], data.synthetic_corpus(SYNTHETIC_DOCUMENTS, options.seed).encode())
    files = data.corpus_files(corpus)
    if not options.vocab and not (out / "vocab.txt").exists():
        sentences = (sentence for file in files for document in data.read_documents(file, reading)
                     for sentence in document)
        say(f"learning a vocabulary of {options.vocab_size:,} wordpieces")
        pieces = learn_vocab(sentences, options.vocab_size, lowercase=not options.cased)
        Tokenizer(pieces, lowercase=not options.cased).save(out)
    tokenizer = load_tokenizer(options.vocab or str(out), options)
    say(f"tokenizing into {out / 'shards'}")
    data.build_shards(corpus, tokenizer, out / "shards", options.max_length, options.seed,
                      workers=None if options.corpus else 1, reading=reading)
    return tokenizer, data.open_shards(out / "shards")


def load_tokenizer(path: str, options: Options) -> Tokenizer:
    """Read a vocabulary; --cased decides over what the files beside it say."""
    return Tokenizer.from_file(path, lowercase=False if options.cased else None)


class BatchOrder:
    """Which examples step k trains on: a pure function of (seed, k), here for one epoch at a time."""

    def __init__(self, shards: data.Shards, options: Options) -> None:
        self.shards, self.options = shards, options
        self.lengths = shards.lengths[shards.train]
        self.per_epoch = len(self.lengths) // options.batch_size
        if not self.per_epoch:
            raise ValueError(f"the corpus gives {len(self.lengths)} training examples, fewer than one batch of "
                             f"{options.batch_size}: lower --batch-size or use more text")
        self.plan = functools.lru_cache(maxsize=1)(self.plan_epoch)

    def plan_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Plan the batches of one epoch, in order."""
        rng = np.random.default_rng(data.seed_for(self.options.seed, epoch, "order"))
        return data.plan_batches(self.lengths, self.options.batch_size, self.options.max_length, rng)

    def examples(self, step: int) -> tuple[int, np.ndarray]:
        """Tell row length and example numbers of update `step`, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        width, rows = self.plan(epoch)[index]
        return width, self.shards.train[rows]

    def batch(self, step: int, pad_id: int) -> data.Batch:
        """Read the batch of update `step`."""
        width, numbers = self.examples(step)
        return data.pad_batch([self.shards.example(number) for number in numbers], width, pad_id)


# --- 3. One step ---

class HostBatch(NamedTuple):
    """A whole masked batch, and what its two losses are divided by, on whatever devices its parts are computed."""

    masked: MaskedBatch
    attention_mask: torch.Tensor        # (B, T)
    token_type_ids: torch.Tensor        # (B, T)
    slot_total: torch.Tensor            # () masked slots
    token_total: torch.Tensor           # () real tokens


def mask_batch(batch: data.Batch, config: ElectraConfig, seed: int, step: int) -> HostBatch:
    """Mask a batch on the host, by a generator seeded from (seed, step)."""
    ids, real, segments = map(torch.from_numpy, batch)                             # each (B, T)
    masked = mask_tokens(ids, real, config, torch.Generator().manual_seed(data.seed_for(seed, step, "mask")))
    return HostBatch(masked, real, segments, masked.weights.sum(), real.sum().float())


def forward(model: ElectraForPretraining | MaskedLanguageModel, batch: HostBatch, rows: range, seed: int, step: int,
            device: Device) -> PretrainOutput:
    """Move some rows of a batch to the device and compute their share of the losses.

    The sampling noise is seeded from (seed, step, row) and dropout from (seed, step, first row): but for dropout the
    result does not depend on how the batch is divided.
    """
    whole = (*batch.masked, batch.attention_mask, batch.token_type_ids)
    *part, slot_total, token_total = device.put(
        *(tensor[rows.start:rows.stop] for tensor in whole), batch.slot_total, batch.token_total)
    masked, first_seed = MaskedBatch(*part[:4]), data.seed_for(seed, step, "noise") % 2 ** 62
    noise = (device.noise([first_seed + row for row in rows], masked.positions.shape[1], model.config.vocab_size)
             if isinstance(model, ElectraForPretraining) else None)                # (B, N, V)
    device.seed(data.seed_for(seed, step, f"device {rows.start}"))
    with device.autocast():
        return model(masked, *part[4:], noise, slot_total, token_total)


class StepResult(NamedTuple):
    """What a step is judged by."""

    loss: float                         # L_MLM + 50 L_Disc
    mlm_loss: float                     # nats a masked slot
    discriminator_loss: float           # nats a token; nan where there is no discriminator
    gradient_norm: float                # before it is clipped


def training_step(model: ElectraForPretraining | MaskedLanguageModel, optimizer: Adam, batch: HostBatch,
                  options: Options, step: int, device: Device) -> torch.Tensor:
    """Make one update, with the gradient clipped to norm 1; returns the StepResult as a tensor (4,).

    The batch is cut into ranks * accumulate parts, and each of these among the threads of a CPU. Their gradients add
    up to the whole batch's, since each part's losses are divided by the whole batch's totals.
    """
    weights = list(model.parameters())

    def losses_of(rows: range) -> tuple[torch.Tensor, ...]:
        return forward(model, batch, rows, options.seed, step, device)[:3]

    size = len(batch.attention_mask) // (device.ranks * options.accumulate)
    losses = torch.zeros(3, device=device.kind)
    for part in range(device.rank * options.accumulate, (device.rank + 1) * options.accumulate):
        losses = losses + device.backward(losses_of, weights, range(part * size, (part + 1) * size))
        device.flush()
    device.add_up([*(weight.grad for weight in weights if weight.grad is not None), losses])
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.update(learning_rate_at(step, options.steps, options.warmup_steps, options.learning_rate))
    result = torch.cat([losses, norm[None]])
    device.flush()
    return result


# --- 4. The loop ---

LOG_COLUMNS = ("step", "learning_rate", "mlm_loss", "discriminator_loss", "tokens_per_second")


class Stop:
    """While it is entered, Ctrl-C and SIGTERM become a wish that the loop grants after the step at hand."""

    def __enter__(self) -> Stop:
        self.signal: int | None = None
        self.before = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def request(self, number: int, frame: Any) -> None:
        """Note the signal; when it is the second one, stop at once."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


class CsvLog:
    """A CSV file with one row a step; opening it drops the rows after `step`, which will be run again."""

    def __init__(self, path: Path, step: int, columns: tuple[str, ...]) -> None:
        self.path = path
        rows = [",".join(columns)]
        if path.exists():
            rows += [line for line in path.read_text().splitlines()[1:]
                     if line.count(",") == len(columns) - 1 and int(line.split(",")[0]) <= step]
        data.write_bytes(path, ("\n".join(rows) + "\n").encode())

    def write(self, step: int, *values: float) -> None:
        """Append one row and hand it to the system at once."""
        try:
            with open(self.path, "a") as file:
                file.write(",".join([str(step), *(f"{value:.6g}" for value in values)]) + "\n")
        except OSError as error:
            raise OSError(f"{self.path}: {error.strerror}: mend it, and the same command continues") from None


def train(options: Options) -> int:
    """Run or continue a pre-training run to its end, or to where it is stopped; returns the exit status."""
    began = time.monotonic()
    if options.tpu and (options.device != "auto" or options.compile):
        raise ValueError("--tpu chooses the device, and XLA always compiles: drop --device and --compile")
    options = from_initial(options)
    out, config = Path(options.out), network(options)
    device = Device.choose(options.device, options.precision, options.tpu).join()
    parts = device.ranks * options.accumulate * (device.mesh.size() if device.mesh else 1)
    if options.batch_size % parts:
        raise ValueError(f"--batch-size {options.batch_size} does not divide by {parts} (devices times --accumulate): "
                         "each device computes as many rows at a time")
    with device.in_turn():
        # Three ages of a run folder: trained steps fix all that alters the result, data alone fixes what shards
        # depend on, an empty folder fixes nothing.
        has_begun = any(out.glob("checkpoint-*.pt"))
        has_data = any((out / name).exists() for name in ("corpus.txt", "vocab.txt", "shards"))
        if device.rank == 0:
            data.claim_run_folder(out, dataclasses.asdict(options),
                                  FIXED if has_begun else DATA_FIELDS if has_data else ())
        tokenizer, shards = prepare_data(options)
        torch.manual_seed(data.seed_for(options.seed, 0, "weights"))
        kind = ElectraForPretraining if options.objective == "electra" else MaskedLanguageModel
        model = kind(with_vocabulary(config, tokenizer))
        if options.init and not has_begun:
            load_initial(model, options.init)
        model.to(device.kind)
        if options.precision is None:
            device.mention_bfloat16(config.hidden_size)
        if options.compile:
            device = dataclasses.replace(device, workers=1)         # compiled code divides its loops among the cores
            torch._dynamo.config.recompile_limit = 64           # one a row length; beyond it, torch gives up silently
            model.compile(dynamic=False)
        optimizer = Adam(parameter_groups(model, options.weight_decay))
        step = load_checkpoint(out, model, optimizer)
    deadline = math.inf if options.max_minutes is None else began + 60 * options.max_minutes
    try:
        with Stop() as stop:
            step = run_steps(model, optimizer, tokenizer, shards, options, device, step, stop, deadline)
    except torch.OutOfMemoryError:
        raise ValueError(f"the GPU's memory does not suffice: repeat the command with --accumulate "
                         f"{2 * options.accumulate}; the result is the same") from None
    if step < options.steps:
        say(f"stopped after step {step:,} of {options.steps:,}; the same command continues")
        return 130 if stop.signal == signal.SIGINT else 0
    if device.rank == 0:
        save_pretrained(model, out / "model", tokenizer)
        summarise(out, model, shards, options, device)
    return 0


def from_initial(options: Options) -> Options:
    """Take the vocabulary from the --init folder; ValueError where it has none, or --vocab is another one."""
    if not options.init:
        if options.preset == "bio-electra-pp":
            raise ValueError("--preset bio-electra-pp goes on from a bio-electra run, on full papers: pass its folder "
                             "by --init, or start with --preset bio-electra")
        return options
    folder = model_folder(options.init)
    if not (folder / "vocab.txt").is_file():
        if not options.vocab:
            raise ValueError(f"{folder} has no vocab.txt: pass --vocab, the vocabulary this model was trained with")
    elif options.vocab and Tokenizer.from_file(options.vocab).pieces != Tokenizer.from_file(folder).pieces:
        raise ValueError(f"--init {options.init} was trained with another vocabulary than the one given: drop --vocab")
    return dataclasses.replace(options, vocab=options.vocab or str(folder))


CHECKPOINT_SECONDS = 600            # however slow the steps are, no more than this is lost


def run_steps(model: ElectraForPretraining | MaskedLanguageModel, optimizer: Adam, tokenizer: Tokenizer,
              shards: data.Shards, options: Options, device: Device, step: int, stop: Stop, deadline: float) -> int:
    """Run the training loop, after `step` updates; the first process logs, evaluates and saves on the way.

    deadline   in seconds of time.monotonic()
    returns    updates done, fewer than options.steps when it was stopped
    raises     ValueError when a loss is not finite
    """
    out, order, is_writer = Path(options.out), BatchOrder(shards, options), device.rank == 0
    if is_writer:
        log = CsvLog(out / "log.csv", step, LOG_COLUMNS)
        evaluations = CsvLog(out / "eval.csv", step, Evaluation._fields)
        count = device.mesh.size() if device.mesh else device.ranks
        say(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, "
            f"{len(order.lengths):,} examples, {device.kind} {device.precision}" + (f" x {count}" if count > 1 else "")
            + (f", continuing after step {step:,}" if step else ""))
    progress, tokens, since = data.Progress(options.steps, "steps", step), 0.0, time.monotonic()
    recent: list[torch.Tensor] = []                                     # results of the steps since the last look
    saved_at, is_stopped = since, device.any(since >= deadline)

    def prepare(step: int) -> HostBatch:
        return mask_batch(order.batch(step, model.config.pad_token_id), model.config, options.seed, step)

    with concurrent.futures.ThreadPoolExecutor(1) as ahead:             # reads and masks the next batch meanwhile
        upcoming = ahead.submit(prepare, step)
        while step < options.steps and not is_stopped:
            batch, upcoming = upcoming.result(), ahead.submit(prepare, step + 1)
            result = training_step(model, optimizer, batch, options, step, device)
            step += 1
            is_stopped = device.any(stop.signal is not None or time.monotonic() >= deadline)
            if not is_writer:
                continue
            recent.append(result)
            tokens += float(batch.token_total)
            is_last, now = step == options.steps, time.monotonic()
            is_logged = step == 1 or step % options.log_every == 0 or is_last
            is_saved = (step % options.checkpoint_every == 0 or now - saved_at >= CHECKPOINT_SECONDS or is_last
                        or is_stopped)
            is_evaluated = len(shards.held_out) > 0 and (step % options.eval_every == 0 or is_last)
            is_kept = step % options.keep_every == 0
            if is_logged or is_evaluated or is_saved or is_kept:
                last = check_results([StepResult(*each.tolist()) for each in recent], step, order, options)
                recent, now = [], time.monotonic()                      # the device has caught up with the host
            if is_logged:
                rate = learning_rate_at(step - 1, options.steps, options.warmup_steps, options.learning_rate)
                log.write(step, rate, last.mlm_loss, last.discriminator_loss, tokens / (now - since))
                tokens, since = 0.0, now
                progress.show(step, f"generator {last.mlm_loss:.2f}, discriminator {last.discriminator_loss:.3f} nats")
            if is_evaluated:
                evaluations.write(*evaluate(step, held_out_outputs(model, shards, options, device)))
            if is_kept:
                save_pretrained(model, out / "models" / f"step-{step:08d}", tokenizer)
            if is_saved:
                save_checkpoint(out, step, model, optimizer)
                saved_at = time.monotonic()
            since += time.monotonic() - now                             # tokens per second of training alone
    if is_writer:
        progress.finish()
    return step


def check_results(results: list[StepResult], step: int, order: BatchOrder, options: Options) -> StepResult:
    """Give the last of the results of the steps up to `step`; ValueError for the first that is not finite.

    Before any checkpoint: one of nan would end the run for good.
    """
    for number, result in enumerate(results, step - len(results) + 1):
        if not math.isfinite(result.loss + result.gradient_norm):
            width, examples = order.examples(number - 1)
            good = max(Path(options.out).glob("checkpoint-*.pt"), default=None)
            raise ValueError(
                f"step {number} is not finite: generator {result.mlm_loss}, discriminator {result.discriminator_loss}"
                f", gradient norm {result.gradient_norm}; its batch: seed {options.seed}, {width} tokens, examples "
                + " ".join(map(str, examples[:8])) + (f" and {len(examples) - 8} more" if len(examples) > 8 else "")
                + f"; last good checkpoint: {good or 'none'}; start again with a lower --learning-rate, another --out")
    return results[-1]


# --- 5. Evaluation ---

EVALUATION_EXAMPLES = 1024
EVALUATION_STEP = 2 ** 32           # seeds apart from those of any training step


class Evaluation(NamedTuple):
    """One row of eval.csv, on held-out documents; nan for a discriminator that is not there (--objective mlm)."""

    step: int
    mlm_loss: float                     # nats a masked slot
    mlm_accuracy: float
    discriminator_loss: float           # nats a token
    discriminator_accuracy: float
    discriminator_precision: float      # of "replaced"
    discriminator_recall: float
    discriminator_auc: float            # without padding, which TF counts as negatives


class HeldOut(NamedTuple):
    """What both networks say of the held-out examples."""

    nll: np.ndarray                     # (slots,) nats
    is_right: np.ndarray                # (slots,) whether the generator's best guess is the original
    logits: np.ndarray                  # (tokens,) the discriminator's; nan where there is none
    is_replaced: np.ndarray             # (tokens,)


def held_out_outputs(model: ElectraForPretraining | MaskedLanguageModel, shards: data.Shards, options: Options,
                     device: Device) -> HeldOut:
    """Run the model over the first EVALUATION_EXAMPLES held-out examples, with the same masks each time."""
    numbers = shards.held_out[:EVALUATION_EXAMPLES]
    plan = data.plan_batches(shards.lengths[numbers], 64, options.max_length, np.random.default_rng(0), keep_rest=True)
    parts: list[HeldOut] = []
    model.eval()
    with torch.compiler.set_stance("force_eager"):                      # its few batches are worth no compilation
        for index, (width, rows) in enumerate(plan):
            step = EVALUATION_STEP + index                              # it seeds the mask
            batch = mask_batch(data.pad_batch([shards.example(number) for number in numbers[rows]], width,
                                              model.config.pad_token_id), model.config, options.seed, step)
            parts += device.side_by_side(functools.partial(outputs_of, model, batch, options.seed, step, device),
                                         range(len(rows)))
    model.train()
    return HeldOut(*map(np.concatenate, zip(*parts)))


@torch.no_grad()
def outputs_of(model: ElectraForPretraining | MaskedLanguageModel, batch: HostBatch, seed: int, step: int,
               device: Device, rows: range) -> HeldOut:
    """Run the model over some rows of a batch."""
    output = forward(model, batch, rows, seed, step, device)
    originals = output.masked.original_ids
    nll = F.cross_entropy(output.generator_logits.transpose(1, 2), originals, reduction="none")
    is_right = output.generator_logits.argmax(-1) == originals
    device.flush()                      # all results at once: what is fetched alone, XLA would compile alone
    is_slot = batch.masked.weights[rows.start:rows.stop].bool()
    is_real = batch.attention_mask[rows.start:rows.stop].bool()
    return HeldOut(*(tensor.cpu()[where].numpy() for tensor, where in (
        (nll, is_slot), (is_right, is_slot), (output.discriminator_logits, is_real), (output.is_replaced, is_real))))


def evaluate(step: int, found: HeldOut) -> Evaluation:
    """Compute both networks' losses and scores."""
    generator = step, float(found.nll.mean()), float(found.is_right.mean())
    if np.isnan(found.logits).all():                    # --objective mlm
        return Evaluation(*generator, *[math.nan] * 5)
    said, truth = found.logits > 0, found.is_replaced
    bce = np.logaddexp(0, np.where(truth, -found.logits, found.logits))            # -ln sigmoid(+-logit)
    hits = (said & truth).sum()
    return Evaluation(*generator, float(bce.mean()), float((said == truth).mean()), float(hits / max(1, said.sum())),
                      float(hits / max(1, truth.sum())), metrics.roc_auc(truth, found.logits))


def blind_baselines(shards: data.Shards, is_replaced: np.ndarray,
                    special_ids: list[int | None]) -> tuple[float, float]:
    """Measure what a model without any context could reach, in nats: (masked-token loss, replaced-token loss).

    The first is the entropy of the tokens' frequencies in 100,000 training examples, [CLS] and [SEP] left out; the
    second the entropy of the share of replaced tokens.
    """
    sample = shards.train[:100_000]
    counts = np.bincount(np.concatenate([shards.example(number)[0] for number in sample]))      # (V,) or shorter
    counts[[i for i in special_ids if i is not None]] = 0
    return metrics.unigram_entropy(counts), metrics.binary_entropy(float(is_replaced.mean()))


def summarise(out: Path, model: ElectraForPretraining | MaskedLanguageModel, shards: data.Shards, options: Options,
              device: Device) -> None:
    """Print what was learnt beside what needs no learning, and what to do next."""
    if len(shards.held_out):
        found = held_out_outputs(model, shards, options, device)
        blind_mlm, blind_replaced = blind_baselines(shards, found.is_replaced,
                                                    [model.config.cls_token_id, model.config.sep_token_id])
        result = evaluate(options.steps, found)
        print(f"\non held-out documents      learnt    blind\n"
              f"masked-token loss         {result.mlm_loss:7.3f}  {blind_mlm:7.3f}  nats (unigram entropy)\n"
              f"masked-token accuracy     {result.mlm_accuracy:7.3f}")
        if options.objective == "electra":
            print(f"replaced-token loss       {result.discriminator_loss:7.3f}  {blind_replaced:7.3f}  nats "
                  f"(entropy of the replaced rate, {found.is_replaced.mean():.3f})\n"
                  f"replaced-token AUC        {result.discriminator_auc:7.3f}  {0.5:7.3f}")
    else:
        print("\nno held-out documents to measure on: the corpus has fewer than "
              f"{data.HELD_OUT_EVERY} (an empty line ends a document)")
    task = "--task ncbi-disease --data FOLDER" if options.corpus else "--task demo-ner"
    init = "" if out == Path("runs/pretrain") else f" --init {out}"
    print(f"\nthe model is in {out / 'model'}; next: python train_finetune.py {task}{init}", flush=True)


# --- 6. Command line ---

def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    return data.run_command(lambda: train(complete(
        data.parse_options(Options, "Pre-train ELECTRA on a corpus.", arguments))))


if __name__ == "__main__":
    sys.exit(main())
