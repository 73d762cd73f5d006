"""Pre-train ELECTRA: a generator guesses hidden tokens, a discriminator learns to find its wrong guesses.

    from train_pretrain import Options, complete, train
    train(complete(Options(corpus=["abstracts.txt"], steps=1_000, out="runs/mine")))

As a program it does the same; each field of Options is a flag:

    python train_pretrain.py                                        # on a built-in synthetic corpus
    python train_pretrain.py --preset electramed --corpus pubmed.txt.gz --vocab scivocab.txt --out runs/med
    torchrun --nproc-per-node 8 train_pretrain.py --preset electramed ...        # the same run on eight GPUs

After reading this file you know the whole of pre-training except the model itself: how a corpus becomes
batches, what happens in one step, how the loop around it can be stopped at any moment and continued
exactly, and how the model is measured on documents that it was not trained on.

Where it stands: tokenizer.py and data.py make the batches, electramed.py is the model, metrics.py
computes the scores. train_finetune.py starts from the model that this program writes (OUT/model, in the
Hugging Face layout).

One rule makes exact resuming simple: every random choice of step k (order, mask, dropout, sampling) is
seeded from (seed, k), so no state of a random generator has to be saved. On a CPU a resumed run equals an
unbroken one bit by bit, if both have the same number of threads. On a GPU the last bits may differ, because
its atomic additions happen in any order.

Sources: ELECTRAMed Table 1, Bio-ELECTRA section 3, TF run_pretraining.py and configure_pretraining.py.

    1. Options and presets    2. Data    3. One step    4. The loop    5. Evaluation    6. A whole run
    7. What every run has (train_finetune.py uses it, too)    8. Command line
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

# This has to be set before torch is imported. When torch's threads compute something together, the first
# to finish wait for the others. By default they wait in a busy loop, and beside two busy programs a step then
# takes 6 times as long. PASSIVE lets them sleep. On an idle machine that costs small batches of the smallest
# model up to half of their speed, larger ones little.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The import takes seconds, on a slow disk up to twenty. Who waits at a terminal is told why; Ctrl-C ends the
# program in one line, as it does later.
if __name__ == "__main__" and sys.stderr and sys.stderr.isatty():
    print("importing torch", file=sys.stderr)
try:
    import numpy as np
    import torch
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)

import data
import metrics
from data import say
from electramed import (
    CHECKPOINTS, PRECISIONS, PRESETS, Adam, Device, ElectraConfig, ElectraForPretraining, MaskedBatch,
    MaskedLanguageModel, learning_rate_at, load_checkpoint, load_initial, mask_tokens,
    model_folder, pad_rows, parameter_groups, save_checkpoint, save_pretrained)
from tokenizer import Tokenizer, preprocess_bluebert, read_object, write_bytes

Model = ElectraForPretraining | MaskedLanguageModel
OBJECTIVES: dict[str, type[Model]] = {"electra": ElectraForPretraining, "mlm": MaskedLanguageModel}


# --- 1. Options and presets ---

def option(default: Any, help: str, choices: Any = None, at_least: float | None = None) -> Any:
    """Declare a field of an options dataclass, together with what its command-line flag needs.

    choices    the only values allowed, where there are such
    at_least   the lowest number allowed
    """
    # A factory, because dataclasses refuse a list as a plain default.
    return dataclasses.field(default_factory=lambda: default,
                             metadata={"help": help, "choices": choices, "at_least": at_least})


@dataclasses.dataclass(frozen=True)
class Options:
    """Hold the values of the command line: one field is one option, `batch_size` is `--batch-size`.

    The default None means that the command line says nothing. A field of type int, float or bool then takes
    its value from the preset (see `complete`). A field whose type admits None stays None.
    """

    # What is read, and where results go.
    preset: str = option("tiny", "model sizes and schedule to start from", choices=list(PRESETS))
    corpus: list[str] = option([], "text, PubMed or PMC XML, .gz, .xz, .tar; or shards (default: synthetic)")
    min_pmid: int = option(0, "skip PubMed records with a smaller PMID (Bio-ELECTRA: 10000000)")
    language: str | None = option(None, "skip PubMed records in other languages than this one, such as eng")
    bluebert: bool = option(False, "lower-case the text and split words as in the corpus of ELECTRAMed")
    vocab: str | None = option(None, "vocab.txt, or the folder it is in (default: learn one from the corpus)")
    vocab_size: int = option(None, "number of wordpieces to learn when there is no --vocab", at_least=1)
    cased: bool = option(None, "keep capital letters and accents (the bio-electra presets always do)")
    out: str = option("runs/pretrain", "run folder; repeat the command to continue the run in it")
    init: str | None = option(None, "run or model folder to start from, also of mlm; resuming needs it, too")
    objective: str = option("electra", "electra, or mlm: one network, as BERT", choices=["electra", "mlm"])

    # Sizes of the networks.
    embedding_size: int = option(None, "width of the embeddings")
    hidden_size: int = option(None, "width of the discriminator")
    num_hidden_layers: int = option(None, "number of layers, in both networks")
    num_attention_heads: int = option(None, "number of attention heads of the discriminator")
    intermediate_size: int = option(None, "inner width of the discriminator's feed-forward networks")
    initializer_range: float = option(None, "standard deviation of the initial weights")
    generator_size: float = option(None, "width of the generator divided by the width of the discriminator")
    mask_prob: float = option(None, "share of the tokens that are chosen for masking")
    dropout: float = option(None, "dropout of hidden states and of attention weights")

    # The schedule.
    steps: int = option(None, "number of updates", at_least=1)
    batch_size: int = option(None, "examples in a batch, on all devices together", at_least=1)
    accumulate: int = option(1, "parts of a device's share of a batch; more take less memory", at_least=1)
    max_length: int = option(None, "tokens of the longest example", at_least=8)
    learning_rate: float = option(None, "peak learning rate", at_least=0)
    warmup_steps: int = option(None, "updates until the peak is reached", at_least=0)
    weight_decay: float = option(None, "decoupled weight decay", at_least=0)
    seed: int = option(0, "seed of every random choice", at_least=0)

    # What is written on the way, and where it is computed.
    log_every: int = option(50, "steps between two rows of log.csv", at_least=1)
    eval_every: int = option(None, "steps between evaluations (default: a tenth, up to 1000)", at_least=1)
    # A checkpoint is also written after ten minutes, however many steps these were (CHECKPOINT_SECONDS).
    checkpoint_every: int = option(500, "steps between checkpoints; the last two are kept", at_least=1)
    # train_finetune.py --curve compares these models, which stay in OUT/models.
    keep_every: int = option(None, "steps between models that are kept (default: a tenth)", at_least=1)
    max_minutes: float | None = option(None, "stop after this time; repeat the command to go on", at_least=0)
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda"])
    tpu: bool = option(False, "compute on all XLA devices; needs pip install -e '.[tpu]' in its own venv")
    precision: str | None = option(None, "default: float32 on a CPU, else bfloat16; CPUs with amx (see "
                                   "lscpu) are 2 to 3 times as fast in it, others slower", choices=PRECISIONS)
    # There are 9 lengths up to 128 tokens, 16 up to 512. On a GPU `small` is then about 3 times as fast.
    compile: bool = option(False, "use torch.compile: a minute for each row length at first, then faster")


# Which options may change when the command is repeated? That depends on what the run folder already holds:
#   shards      fix DATA_FIELDS, because other text, another vocabulary or another length gives other shards;
#   steps done  fix everything except FREE: where it is computed, and how often something is written.
DATA_FIELDS = "corpus min_pmid language bluebert vocab vocab_size cased max_length seed".split()
FREE = ("out", "log_every", "eval_every", "checkpoint_every", "keep_every", "max_minutes", "accumulate",
        "device", "tpu", "precision", "compile")
NAMES = [field.name for field in dataclasses.fields(Options)]
FIXED = [name for name in NAMES if name not in FREE]
# Options that go into the model's configuration under the same name. (dropout is not among them: one
# option sets two fields, that of hidden states and that of attention weights.)
MODEL_FIELDS = [name for name in NAMES if hasattr(ElectraConfig, name)]

# The published schedules. Each is written as its difference from that of ELECTRA-small.
ELECTRA_SMALL = {"steps": 1_000_000, "batch_size": 128, "max_length": 128, "learning_rate": 5e-4,
                 "warmup_steps": 10_000, "weight_decay": 0.01}
ELECTRA_BASE = {**ELECTRA_SMALL, "batch_size": 256, "max_length": 512, "learning_rate": 2e-4}
BIO_ELECTRA = {**ELECTRA_SMALL, "steps": 1_800_000, "batch_size": 64, "max_length": 256, "cased": True}
SCHEDULES: dict[str, dict[str, Any]] = {
    # Ours: a minute on two cores (README.md has the time and the machine).
    "tiny": {**ELECTRA_SMALL, "steps": 700, "batch_size": 64, "warmup_steps": 35, "vocab_size": 525},
    "small": ELECTRA_SMALL,
    "base": ELECTRA_BASE,
    "large": {**ELECTRA_BASE, "batch_size": 2048},
    "electramed": ELECTRA_BASE,             # ELECTRAMed, Table 1
    "bio-electra": BIO_ELECTRA,
    "bio-electra-pp": BIO_ELECTRA}          # the same schedule a second time, on full papers


def preset_values(preset: str) -> dict[str, Any]:
    """Return what a preset says: its model, then its schedule, which may overwrite values (cased, say)."""
    config = PRESETS[preset]
    sizes = {name: getattr(config, name) for name in MODEL_FIELDS}
    return {**sizes, "dropout": config.hidden_dropout_prob, "cased": False, **SCHEDULES[preset]}


def complete(options: Options) -> Options:
    """Return the options with the values that the command line left open, taken from the preset.

    ELECTRAMed's preset says 256 rows of 512 tokens; here the command line wants fewer rows:

    >>> options = complete(Options(preset="electramed", batch_size=64))
    >>> options.batch_size, options.max_length, options.hidden_size, options.keep_every
    (64, 512, 768, 100000)
    """
    # 1. Collect what the preset says. Keep ten models for good, or a few more in very short runs.
    values = preset_values(options.preset)
    values["keep_every"] = max(1, (options.steps or values["steps"]) // 10)
    values["eval_every"] = min(1000, values["keep_every"])

    # 2. Take these values only where the command line says nothing.
    missing = {name: value for name, value in values.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **missing)


def network(options: Options) -> ElectraConfig:
    """Return the discriminator's configuration, except for what depends on the vocabulary.

    It needs no data, so that sizes which contradict each other are refused at once. The generator's
    configuration follows from this one (ElectraConfig.generator).
    """
    preset = PRESETS[options.preset]
    sizes = {name: getattr(options, name) for name in MODEL_FIELDS}
    # The table of positions is made longer than the preset's where needed, never shorter: a model that was
    # trained on 128 tokens can then still be fine-tuned on 512.
    sizes["max_position_embeddings"] = max(options.max_length, preset.max_position_embeddings)
    return dataclasses.replace(preset, **sizes, hidden_dropout_prob=options.dropout,
                               attention_probs_dropout_prob=options.dropout)


# --- 2. Data ---

SYNTHETIC_DOCUMENTS = 8_000         # abstracts: 2 MB of text


def prepare_data(options: Options) -> tuple[Tokenizer, data.Shards]:
    """Return the tokenizer and the shards of a run; make them on first use, find them again later.

    A new run folder is filled in this order. What is there already is not made again:
        OUT/corpus.txt      the synthetic corpus, when no --corpus is given
        OUT/vocab.txt       a vocabulary learnt from the corpus, when no --vocab is given
        OUT/shards/         the tokenized corpus
    """
    out, corpus = Path(options.out), [Path(path) for path in options.corpus]
    preprocess = preprocess_bluebert if options.bluebert else None
    reading = data.Reading(options.min_pmid, options.language, preprocess)
    # Ready shards need none of the steps below: their text was read and tokenized before.
    if len(corpus) == 1 and (corpus[0] / "index.json").is_file():
        return open_ready_shards(corpus[0], options, reading)

    # 1. The corpus.
    if not corpus:
        corpus = [out / "corpus.txt"]
        if not corpus[0].exists():
            say(f"writing the synthetic corpus to {corpus[0]}")
            write_bytes(corpus[0], data.synthetic_corpus(SYNTHETIC_DOCUMENTS, options.seed).encode())

    # 2. The vocabulary.
    if not options.vocab and not (out / "vocab.txt").exists():
        say(f"learning a vocabulary of {options.vocab_size:,} wordpieces")
        data.learn_vocabulary(corpus, options.vocab_size, not options.cased, reading).save(out)
    tokenizer = load_tokenizer(options.vocab or str(out), options)
    if doubt := tokenizer.casing_doubt():
        say(f"{options.vocab or out}: {doubt}")

    # 3. The shards.
    say(f"tokenizing into {out / 'shards'}")
    data.build_shards(corpus, tokenizer, out / "shards", options.max_length, options.seed, reading=reading)
    return tokenizer, data.open_shards(out / "shards")


def open_ready_shards(folder: Path, options: Options, reading: data.Reading) -> tuple[Tokenizer, data.Shards]:
    """Open a shard folder that was given as --corpus, and the vocabulary that was given with it.

    raises   ValueError when the shards do not fit the options
    """
    # 1. Token ids mean nothing without the vocabulary that they were made with.
    if not options.vocab:
        raise ValueError(f"{folder} holds shards: pass --vocab, the vocabulary they were built with")
    tokenizer, shards = load_tokenizer(options.vocab, options), data.open_shards(folder)
    if shards.index["vocabulary"] != data.vocabulary_hash(tokenizer):
        raise ValueError(f"{folder} was built with another vocabulary or casing than {options.vocab}")

    # 2. --min-pmid, --language and --bluebert took effect when the shards were built. The user may repeat the
    #    same values here. Other values would have no effect, so they are refused.
    if reading != data.Reading() and data.describe_reading(reading) != shards.index["text"]:
        raise ValueError(f"{folder} was built with {shards.index['text']}: pass these options, or none")
    return tokenizer, shards


def load_tokenizer(path: str, options: Options) -> Tokenizer:
    """Read a vocabulary. --cased wins over what the files beside it say about casing."""
    return Tokenizer.from_file(path, lowercase=False if options.cased else None)


class Part(NamedTuple):
    """Hold some rows of a masked batch: exactly what a pre-training model's forward() takes.

    The totals are those of the whole batch. Losses are divided by them, so that the losses and gradients of
    all parts of a batch add up to those of the batch.
    """

    masked: MaskedBatch                 # ids (B, T), N slots in each row
    attention_mask: torch.Tensor        # (B, T) 1 on real tokens
    token_type_ids: torch.Tensor        # (B, T) 1 on the second segment
    slot_total: torch.Tensor            # () masked slots: what the generator's loss is divided by
    token_total: torch.Tensor           # () real tokens: what the discriminator's loss is divided by

    def on(self, device: Device, rows: slice = slice(None)) -> Part:
        """Return a copy of these rows on the device, with the same totals."""
        masked = device.put(*(tensor[rows] for tensor in self.masked))
        rest = self.attention_mask[rows], self.token_type_ids[rows], self.slot_total, self.token_total
        return Part(MaskedBatch(*masked), *device.put(*rest))


def read_batch(shards: data.Shards, numbers: np.ndarray, width: int, config: ElectraConfig, seed: int,
               step: int) -> Part:
    """Read the examples of these numbers, pad them to `width` tokens, and hide some of their tokens.

    Which tokens are hidden, and the numbers that decide the samples, depend on (seed, step) alone.
    returns   the whole batch, on the host
    """
    # Copies, because torch warns of the shards' arrays, which are read-only.
    examples = [(ids.copy(), first) for ids, first in map(shards.example, numbers)]
    ids, real, segments = pad_rows(examples, config.pad_token_id or 0, width)      # (B, T) each
    generator = torch.Generator().manual_seed(data.seed_for(seed, step, "mask"))
    masked = mask_tokens(ids, real, config, generator)                             # ids (B, T), slots (B, N)
    return Part(masked, real, segments, masked.weights.sum(), real.sum().float())


class BatchOrder:
    """Decide which examples each step trains on. This depends on (seed, step) alone, not on earlier steps.

    An epoch is one pass over the training examples in a new random order. Of 1,000 examples, batches of
    16 make 62 steps an epoch; 8 examples are left over, other ones in each epoch. Steps, epochs and batches
    are counted from 0: step 100 takes batch 38 of epoch 1, since 100 = 1 * 62 + 38.
    """

    def __init__(self, shards: data.Shards, options: Options) -> None:
        self.shards, self.options = shards, options
        self.per_epoch = len(shards.train) // options.batch_size        # steps
        if not self.per_epoch:
            raise ValueError(f"only {len(shards.train)} training examples: lower --batch-size, or add text")

    @functools.lru_cache(maxsize=1)             # it remembers the current epoch: every step asks for it
    def plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Return the batches of one epoch, in order.

        returns   for each batch its row length in tokens, and the positions of its examples among those for
                  training, such as (48, [731, 12, 405, 66]). The examples of a batch have similar lengths
        """
        lengths = self.shards.lengths[self.shards.train]                # (examples,) tokens
        rng = np.random.default_rng(data.seed_for(self.options.seed, epoch, "order"))
        return data.plan_batches(lengths, self.options.batch_size, self.options.max_length, rng)

    def examples(self, step: int) -> tuple[int, np.ndarray]:
        """Return the row length and the example numbers of update `step`, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        width, rows = self.plan(epoch)[index]
        return width, self.shards.train[rows]

    def batch(self, step: int, config: ElectraConfig) -> Part:
        """Read and mask the batch of update `step`, counted from 0."""
        width, numbers = self.examples(step)
        return read_batch(self.shards, numbers, width, config, self.options.seed, step)


# --- 3. One step ---

class Run(NamedTuple):
    """Hold what one training run works with, so that functions can take it as one argument.

    Its fields are never replaced. Only the weights and the optimiser's moments change, in place.
    """

    out: Path                           # the run folder
    options: Options                    # completed: nothing in it is left open
    device: Device
    tokenizer: Tokenizer
    shards: data.Shards
    model: Model                        # on the device
    optimizer: Adam
    belongs_to: str = ""                # hash of what the results depend on, for its checkpoints


def training_step(run: Run, step: int, batch: Part) -> torch.Tensor:
    """Make one update of the weights.

    step      updates before this one
    batch     the whole batch, on the host
    returns   (4,) on the device: loss L, generator's loss (nats per masked slot), discriminator's loss (nats
              per token; nan where there is none), norm of the gradient before clipping. The host does not
              read it here, because to read a number it would wait until the device has computed it

    What happens to a batch, with electramed.py's part in brackets:

        token ids (B, T) -> some are hidden, in N slots per row (B, N)
        -> [generator: logits (B, N, V) -> sampled tokens (B, N) -> corrupted ids (B, T)
        -> discriminator: one logit per token (B, T) -> L = L_MLM + 50 L_Disc]
        -> gradient -> clipping -> Adam

    The rows of a batch are divided twice: among the processes, then into --accumulate parts. With
    --batch-size 256, eight processes and --accumulate 2 a part has 16 rows, and process 3 computes rows 96 to
    111 and then rows 112 to 127.
    """
    options, device, model = run.options, run.device, run.model
    weights = list(model.parameters())
    device.seed(data.seed_for(options.seed, step, "dropout"))

    # 1. Forward and backward. The gradients and losses of the parts add up.
    losses = torch.zeros(3, device=device.kind)
    size = len(batch.attention_mask) // (device.ranks * options.accumulate)        # rows in a part
    for part in range(device.rank * options.accumulate, (device.rank + 1) * options.accumulate):
        inputs = batch.on(device, slice(part * size, (part + 1) * size))
        with device.autocast():
            output = model(*inputs)
        output.loss.backward()
        losses += torch.stack([output.loss, output.mlm_loss, output.discriminator_loss]).detach()
        device.flush()

    # 2. Replace gradients and losses by their sums over all processes, which then have the same numbers.
    device.add_up([*(weight.grad for weight in weights if weight.grad is not None), losses])

    # 3. Shorten the gradient to norm 1 where it is longer, so that one unusual batch cannot do much harm.
    norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)

    # 4. Update the weights and clear the gradients.
    run.optimizer.step(learning_rate_at(step, options.steps, options.warmup_steps, options.learning_rate))
    result = torch.cat([losses, norm[None]])                                       # (3,) and () -> (4,)
    device.flush()
    return result


# --- 4. The loop ---

LOG_COLUMNS = ("step", "learning_rate", "mlm_loss", "discriminator_loss", "tokens_per_second")
CHECKPOINT_SECONDS = 600            # a run that is killed loses no more than this, however slow its steps are
START_AGAIN = "start again with a lower --learning-rate and another --out"


class CsvLog:
    """Write a CSV file with one row per logged step.

        step,learning_rate,mlm_loss,discriminator_loss,tokens_per_second
        1,0,5.30654,0.680663,7684.76
        3,0.000933333,5.29649,0.659581,15622.8

    A run that was killed may have logged steps after its last checkpoint. They are computed again when it
    continues, so opening the file drops the rows after `step`, and a last row that was written in part.
    """

    def __init__(self, path: Path, step: int, columns: tuple[str, ...]) -> None:
        self.path = path
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        whole = [row for row in rows if row.count(",") == len(columns) - 1]
        kept = [row for row in whole if int(row.partition(",")[0]) <= step]
        write_bytes(path, ("\n".join([",".join(columns), *kept]) + "\n").encode())

    def write(self, step: int, *values: float) -> None:
        """Append one row. The file is closed each time, so that everyone can read the row at once."""
        with open(self.path, "a") as file:
            print(step, *(f"{value:.6g}" for value in values), sep=",", file=file)


def check_finite(results: list[torch.Tensor], step: int, out: Path) -> None:
    """Raise ValueError for the first step whose loss or gradient is not finite; the others follow from it.

    results   what training_step returned for the last steps, up to `step`
    out       the run folder, whose last checkpoint is good: nothing is saved before this check
    """
    for number, result in enumerate(results, start=step - len(results) + 1):
        loss, mlm_loss, discriminator_loss, norm = result.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            good = max(out.glob(CHECKPOINTS), default="none")
            raise ValueError(f"step {number} is not finite: generator {mlm_loss}, discriminator "
                             f"{discriminator_loss}, gradient norm {norm}; last good checkpoint: {good}; "
                             f"{START_AGAIN}")


def run_steps(run: Run, step: int, stop: Stop, deadline: float) -> int:
    """Train until all steps are done, or until it is time to stop; write what is due on the way.

    step       updates done before: 0, or those of the checkpoint that the run continues from
    deadline   seconds of time.monotonic(), infinite without --max-minutes
    returns    updates done now
    raises     ValueError when a loss, a gradient or an evaluation is not finite
    """
    options, device, model, out = run.options, run.device, run.model, run.out
    order = BatchOrder(run.shards, options)
    progress = data.Progress(options.steps, "steps", step)
    if device.rank == 0:
        log = CsvLog(out / "log.csv", step, LOG_COLUMNS)
        evaluations = CsvLog(out / "eval.csv", step, Evaluation._fields)
        parameters = sum(weight.numel() for weight in model.parameters())
        where = f"{device.kind} {device.precision} x {device.count}"
        note = f", continuing after step {step:,} of {options.steps:,}" if step else ""
        say(f"{parameters:,} parameters, {len(run.shards.train):,} examples, {where}{note}")
    unchecked: list[torch.Tensor] = []      # results of the last steps, which nobody has read yet
    since = saved_at = time.monotonic()
    tokens = 0.0                            # real tokens in the steps since `since`
    is_stopped = device.any(time.monotonic() >= deadline)   # preparing the data may have taken all the time

    def is_due(every: int) -> bool:
        return step % every == 0 or step == options.steps

    while step < options.steps and not is_stopped:
        # 1. Read and mask a batch.
        batch = order.batch(step, model.config)

        # 2. Make the update. This only starts a GPU: while it computes, the host reads the next batch.
        result = training_step(run, step, batch)
        step += 1

        # 3. Agree on whether to stop. A signal may reach one process only. If that one stopped alone, the
        #    others would wait for its gradients forever, so all of them ask each other after every step.
        is_stopped = device.any(stop.signal is not None or time.monotonic() >= deadline)

        # 4. All processes compute, but only the first one writes. What is due? Step 1 is always logged:
        #    its losses should be near ln V and ln 2. A checkpoint limits what a crash can cost: in steps,
        #    and in time, because a step of a large model may take a minute. One also follows each model
        #    that stays, so that no run with other options adds models.
        if device.rank > 0:
            continue
        unchecked.append(result)
        tokens += float(batch.token_total)
        is_logged = step == 1 or is_due(options.log_every)
        is_evaluated = len(run.shards.held_out) > 0 and is_due(options.eval_every)
        is_kept = step % options.keep_every == 0
        is_saved = (is_stopped or is_kept or is_due(options.checkpoint_every)
                    or time.monotonic() - saved_at >= CHECKPOINT_SECONDS)
        if not (is_logged or is_evaluated or is_saved):
            continue

        # 5. Check before anything is written: a run could not go on from weights of nan. This waits until
        #    the device has computed all steps, so it is not done after every step.
        check_finite(unchecked, step, out)
        unchecked.clear()

        # 6. Write.
        if is_logged:
            _, mlm_loss, discriminator_loss, _ = result.tolist()
            rate = learning_rate_at(step - 1, options.steps, options.warmup_steps, options.learning_rate)
            log.write(step, rate, mlm_loss, discriminator_loss, tokens / (time.monotonic() - since))
            losses = f"generator {mlm_loss:.2f}, discriminator {discriminator_loss:.3f} nats"
            progress.show(step, losses if options.objective == "electra" else f"loss {mlm_loss:.2f} nats")
        if is_evaluated:
            outputs = held_out_outputs(run)
            scores = evaluate(step, outputs, options.objective)
            evaluations.write(*scores)
            if options.objective == "electra":
                say(f"step {step:,}: {describe_discriminator(scores, outputs)}")
        if is_kept:
            save_pretrained(model, out / "models" / f"step-{step:08d}", run.tokenizer)
        if is_saved:
            save_checkpoint(out, step, model, run.optimizer, run.belongs_to)
            saved_at = time.monotonic()
        if is_logged:                   # the time that the writing took does not count in the speed
            tokens, since = 0.0, time.monotonic()
    progress.finish()
    return step


# --- 5. Evaluation ---

EVALUATION_EXAMPLES = 1024          # at most; the first held-out examples, the same ones each time
EVALUATION_BATCH = 64               # rows
COLLAPSED_SD = 0.01                 # of the logits; in a discriminator that learns it is 1 to 3
PLATEAU_MARGIN = 0.02               # of AUC: with so much more than by frequencies the context is surely used
EVALUATION_STEP = 2 ** 32           # batch i is masked as that of step 2^32 + i, which no training reaches


class Evaluation(NamedTuple):
    """Hold one row of eval.csv, measured on held-out documents.

    Precision, recall and AUC measure how well replaced tokens are found. Padding is left out of all columns;
    TF's AUC counts it among the original tokens. With --objective mlm there is no discriminator, and the
    columns about it are nan.

        step,mlm_loss,mlm_accuracy,discriminator_loss,discriminator_accuracy,discriminator_precision,...
        24,5.04729,0.027379,0.398006,0.859352,0.692737,...
    """

    step: int
    mlm_loss: float                                 # nats per masked slot
    mlm_accuracy: float                             # share of the slots where the best guess is the original
    discriminator_loss: float = math.nan            # nats per token
    discriminator_accuracy: float = math.nan
    discriminator_precision: float = math.nan
    discriminator_recall: float = math.nan
    discriminator_auc: float = math.nan
    discriminator_logit_sd: float = math.nan        # over all tokens; near 0: all tokens get the same logit


class HeldOut(NamedTuple):
    """Hold both networks' outputs for held-out examples, joined into long arrays without padding."""

    nll: np.ndarray                     # (slots,) -ln p(original) by the generator, nats
    is_right: np.ndarray                # (slots,) bool, whether the generator's best guess is the original
    ids: np.ndarray                     # (tokens,) what the discriminator sees
    logits: np.ndarray                  # (tokens,) of the discriminator, above 0 for "replaced"; or nan
    is_replaced: np.ndarray             # (tokens,) bool, the truth


@torch.no_grad()
def held_out_outputs(run: Run) -> HeldOut:
    """Run the model over the first held-out examples, with the same masks at each call.

    So the scores of two steps, or of two runs with the same --seed, differ only by what was learnt.
    """
    shards, model, device = run.shards, run.model, run.device
    numbers = shards.held_out[:EVALUATION_EXAMPLES]
    plan = data.plan_batches(shards.lengths[numbers], EVALUATION_BATCH, run.options.max_length,
                             np.random.default_rng(0), keep_rest=True)
    parts: list[HeldOut] = []
    model.eval()                        # without dropout
    for step, (width, rows) in enumerate(plan, start=EVALUATION_STEP):
        batch = read_batch(shards, numbers[rows], width, model.config, run.options.seed, step)
        # 1. On the device: shapes are fixed, so unused slots and padding are computed too. So few batches are
        #    not worth the time to compile the model for them: force_eager.
        with torch.compiler.set_stance("force_eager"), device.autocast():
            output = model(*batch.on(device))
        logits, originals = output.generator_logits, output.masked.original_ids    # (B, N, V) and (B, N)
        # cross_entropy takes the classes in dimension 1: (B, V, N) -> (B, N).
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), originals, reduction="none")
        is_right = logits.argmax(-1) == originals                                  # (B, N)
        # Compute all now: without this XLA would compile one program for each result that is fetched below.
        device.flush()

        # 2. On the host: keep the used slots and the real tokens.
        is_slot, is_real = batch.masked.weights.bool(), batch.attention_mask.bool()        # (B, N) and (B, T)
        judged = (output.corrupted_ids, output.discriminator_logits, output.is_replaced)   # (B, T) each
        parts.append(HeldOut(nll.cpu()[is_slot].numpy(), is_right.cpu()[is_slot].numpy(),
                             *(tensor.cpu()[is_real].numpy() for tensor in judged)))
    model.train()
    # zip turns a list of parts into five lists of arrays, one for each field; each becomes one long array.
    return HeldOut(*(np.concatenate(arrays) for arrays in zip(*parts)))


def evaluate(step: int, outputs: HeldOut, objective: str = "electra") -> Evaluation:
    """Compute the losses and scores of both networks: a row of eval.csv.

    raises   ValueError when a loss is not finite: such a model is of no use
    """
    judged = outputs.nll if objective == "mlm" else np.append(outputs.nll, outputs.logits)
    if not np.isfinite(judged).all():
        raise ValueError(f"step {step}: the losses on held-out documents are not finite: {START_AGAIN}")

    # 1. The generator; with --objective mlm, the only network.
    mlm_loss, mlm_accuracy = float(outputs.nll.mean()), float(outputs.is_right.mean())
    if objective == "mlm":
        return Evaluation(step, mlm_loss, mlm_accuracy)

    # 2. The discriminator. With logit x, the loss of a token is -ln sigmoid(x) = ln(1 + e^-x) where it was
    #    replaced, and ln(1 + e^x) where it was not. logaddexp(0, x) is ln(1 + e^x) without overflow.
    says, truth = outputs.logits > 0, outputs.is_replaced                          # (tokens,) bool each
    bce = np.logaddexp(0, np.where(truth, -outputs.logits, outputs.logits))        # (tokens,) nats
    hits = (says & truth).sum()                         # replaced tokens that were found
    precision, recall = float(hits / max(1, says.sum())), float(hits / max(1, truth.sum()))
    return Evaluation(step, mlm_loss, mlm_accuracy, float(bce.mean()), float((says == truth).mean()),
                      precision, recall, metrics.roc_auc(truth, outputs.logits), float(outputs.logits.std()))


def frequency_auc(outputs: HeldOut) -> float:
    """Compute the AUC of a judge that knows how often each wordpiece is a replacement, but sees no context.

    The generator writes some wordpieces more often than authors do, so an AUC above 0.5 alone does not show
    that a discriminator looks at the text. Each half of the held-out tokens is judged by the counts of the
    other half. A wordpiece gets the share of its occurrences there that were replaced, after five occurrences
    with the mean share have been added; so one that is rare there gets about the mean.
    """
    size, rate, half = outputs.ids.max() + 1, outputs.is_replaced.mean(), len(outputs.ids) // 2
    scores = np.empty(len(outputs.ids))
    for known, judged in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        occurrences = np.bincount(outputs.ids[known], minlength=size)                      # (largest id + 1,)
        replaced = np.bincount(outputs.ids[known], outputs.is_replaced[known], minlength=size)     # the same
        scores[judged] = ((replaced + 5 * rate) / (occurrences + 5))[outputs.ids[judged]]
    return metrics.roc_auc(outputs.is_replaced, scores)


def describe_discriminator(result: Evaluation, outputs: HeldOut) -> str:
    """Name the state of a discriminator, because a user could lose days over one that does not learn.

    collapsed           it gives every token the same logit, whatever the text. The losses look healthy then:
                        the generator goes on learning, and the discriminator has the loss of a blind one
    on a blind plateau  it knows which wordpieces are suspicious, and does not use the context yet. Each run
                        passes through this state; a large learning rate can keep it there
    learning            it uses the context
    """
    auc, blind = result.discriminator_auc, frequency_auc(outputs)
    if result.discriminator_logit_sd < COLLAPSED_SD:
        return ("the discriminator has collapsed: its logits do not depend on the text; start again with a "
                "lower --learning-rate and a longer --warmup-steps")
    state = "is learning" if auc > blind + PLATEAU_MARGIN else "is on a blind plateau"
    return f"the discriminator {state}: AUC {auc:.3f}, {blind:.3f} by frequencies alone"


def blind_baselines(run: Run, is_replaced: np.ndarray) -> tuple[float, float]:
    """Compute the best losses, in nats, that a model could reach blind: without looking at the context.

    is_replaced   (tokens,) bool, the truth about held-out tokens
    returns       masked-token loss, by guessing each token as often as it occurs: the entropy of the
                  frequencies in the first 100,000 training examples;
                  replaced-token loss, by giving each token the same probability of being replaced: the
                  entropy of the share of replaced tokens
    """
    ids = np.concatenate([run.shards.example(number)[0] for number in run.shards.train[:100_000]])
    counts = np.bincount(ids)                                       # (tokens,) -> (V,) or shorter
    # [CLS] and [SEP] are in every example but are never masked, so nobody has to guess them.
    counts[[run.tokenizer.cls_id, run.tokenizer.sep_id]] = 0
    return metrics.unigram_entropy(counts), metrics.binary_entropy(float(is_replaced.mean()))


# --- 6. A whole run ---

def from_initial(options: Options) -> Options:
    """Return the options with the vocabulary of the --init folder as --vocab.

    raises   ValueError when that folder has none, or when --vocab is another one or has another casing: the
             embeddings taken over would then belong to other wordpieces
    """
    if not options.init:
        if options.preset == "bio-electra-pp":
            raise ValueError("--preset bio-electra-pp continues a bio-electra run: pass its folder by --init")
        return options
    # 1. Weights are of use only with the vocabulary they were trained with, which lies beside ours. Published
    #    weights may lie alone; then --vocab has to name it.
    folder = model_folder(options.init)
    vocab = options.vocab or str(folder)
    tokenizer = load_tokenizer(vocab, options)
    if any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json")):
        theirs = load_tokenizer(str(folder), options)
        if data.vocabulary_hash(tokenizer) != data.vocabulary_hash(theirs):
            raise ValueError(f"{folder} was trained with another vocabulary or casing: drop --vocab")
    # 2. Try it once: what does not fit is refused now, and not after hours of tokenizing.
    load_initial(OBJECTIVES[options.objective](network(options).with_tokenizer(tokenizer)), folder)
    return dataclasses.replace(options, vocab=vocab)


def prepare(options: Options, config: ElectraConfig, device: Device) -> tuple[Run, int]:
    """Carry out steps 2 to 4 of `train`: return the run and how many updates are done already.

    Of several processes the first one does this alone. Then the others do it without messages, and find the
    files that it made.
    """
    out, values = Path(options.out), dataclasses.asdict(options)
    with device.in_turn():
        # 2. Data. What the run folder holds decides which options must still be the same. If an earlier
        #    command failed before it made anything, all options may be other ones.
        has_begun = any(out.glob(CHECKPOINTS))
        has_data = any((out / name).exists() for name in ("corpus.txt", "vocab.txt", "shards"))
        fixed = FIXED if has_begun else DATA_FIELDS if has_data else []
        record_run(out, values, fixed)
        tokenizer, shards = prepare_data(options)
        # The index holds the hashes of the text, the vocabulary and the shards.
        made_from = {"index.json": data.file_hash(shards.folder / "index.json")}
        record_run(out, values, fixed, made_from)

        # 3. Model and optimiser. Weights are drawn from --seed; --init replaces them when a run begins.
        torch.manual_seed(data.seed_for(options.seed, 0, "weights"))
        model = OBJECTIVES[options.objective](config.with_tokenizer(tokenizer))
        if options.init and not has_begun:
            if note := load_initial(model, options.init):
                say(note)
        model.to(device.kind)
        if options.compile:
            # The model is compiled once for each row length. When torch reaches its limit of such
            # compilations, it goes on without compiling and says nothing; therefore the limit is raised.
            torch._dynamo.config.recompile_limit = 64
            # A step of `small` has more than 2,000 operations, and to start them takes the host longer than
            # the GPU needs to compute them. "reduce-overhead" records those of the forward and the backward
            # pass once, as CUDA graphs, which are then started as a whole. A graph's results lie where its
            # next run writes its own, so gradients of several parts could not be added up: with --accumulate
            # above 1 there are no graphs.
            mode = "reduce-overhead" if device.kind == "cuda" and options.accumulate == 1 else None
            model.compile(dynamic=False, mode=mode)
        optimizer = Adam(parameter_groups(model, options.weight_decay))

        # 4. Resume from the newest checkpoint, where there is one. It has to be one of this run.
        results_of = [{name: values[name] for name in FIXED}, made_from]
        belongs_to = hashlib.sha256(json.dumps(results_of).encode()).hexdigest()
        step = load_checkpoint(out, model, optimizer, belongs_to)

    # Each process has read the files by itself. All must have found the same.
    device.agree({**made_from, "updates done": str(step)})
    device.broadcast(list(model.parameters()))
    return Run(out, options, device, tokenizer, shards, model, optimizer, belongs_to), step


def summarise(run: Run) -> None:
    """Print what was learnt beside what a blind model could reach, and the next command to type.

        on held-out documents      learnt    blind
        masked-token loss           3.051    5.275  nats (unigram entropy)
        masked-token accuracy       0.471
        replaced-token loss         0.234    0.338  nats (entropy of the replaced rate, 0.106)
        replaced-token AUC          0.835    0.500  (0.622 by frequencies alone)

    (The figures are an example; README.md has those of the default run.)
    """
    if len(run.shards.held_out):
        outputs = held_out_outputs(run)
        result = evaluate(run.options.steps, outputs, run.options.objective)
        blind_mlm, blind_replaced = blind_baselines(run, outputs.is_replaced)
        print(f"\non held-out documents      learnt    blind\n"
              f"masked-token loss         {result.mlm_loss:7.3f}  {blind_mlm:7.3f}  nats (unigram entropy)\n"
              f"masked-token accuracy     {result.mlm_accuracy:7.3f}")
        if run.options.objective == "electra":
            print(f"replaced-token loss       {result.discriminator_loss:7.3f}  {blind_replaced:7.3f}  nats "
                  f"(entropy of the replaced rate, {outputs.is_replaced.mean():.3f})\n"
                  f"replaced-token AUC        {result.discriminator_auc:7.3f}  {0.5:7.3f}  "
                  f"({frequency_auc(outputs):.3f} by frequencies alone)")
    else:
        print(f"\nno held-out documents: the corpus has under {data.HELD_OUT_EVERY}; empty lines part them")


def train(options: Options) -> int:
    """Run pre-training to its end, or to where it is stopped. The same options continue it.

    options   completed by `complete`
    returns   exit status: 0, or 130 after Ctrl-C
    raises    ValueError or OSError for options and files that do not work; the message says what to do

    The run folder then holds, besides the data (see `prepare_data`):
        options.json                the options, to notice when a later command has others
        log.csv, eval.csv           losses during training, scores on held-out documents
        checkpoint-00001000.pt      the last two checkpoints: weights, moments of Adam, updates done
        models/step-00000300/       models from all along the way, every --keep-every steps
        model/                      the final model
    """
    # 1. Options and device. What cannot work is refused here, before anything is written.
    if options.tpu and (options.device != "auto" or options.compile):
        raise ValueError("--tpu chooses the device, and XLA always compiles: drop --device and --compile")
    began, options = time.monotonic(), from_initial(options)
    out, config = Path(options.out), network(options)
    data.refuse_inside(out, options.corpus)
    device = Device.choose(options.device, options.precision, options.tpu).join()
    # Processes that do not agree would train one model on mixed gradients, and none of them would notice.
    flags = {flag(name): str(value) for name, value in dataclasses.asdict(options).items()}
    device.agree({**flags, "torch": torch.__version__, "device": f"{device.kind} {device.precision}"})
    if options.batch_size % (device.count * options.accumulate):
        raise ValueError(f"--batch-size {options.batch_size} does not divide by "
                         f"{device.count * options.accumulate} (--accumulate x devices)")

    # Of several processes of one run the first one writes; no process of another run may.
    with data.only_process(out) if device.rank == 0 else contextlib.nullcontext():
        run, step = prepare(options, config, device)

        # 5. The loop. The time that the data took counts towards --max-minutes.
        deadline = math.inf if options.max_minutes is None else began + 60 * options.max_minutes
        with Stop() as stop:
            step = run_steps(run, step, stop, deadline)
        if step < options.steps:
            say(f"stopped after step {step:,} of {options.steps:,}; the same command continues")
            return 130 if stop.signal == signal.SIGINT else 0

        # 6. Summarise what the model learnt, and save it.
        if device.rank == 0:
            summarise(run)
            save_pretrained(run.model, out / "model", run.tokenizer)
            # The demo tasks are about the synthetic corpus; a model of other text is for other tasks.
            task = "--task ncbi-disease --data FOLDER" if options.corpus else "--task demo-ner"
            # train_finetune.py finds the default folder by itself.
            init = "" if out == Path("runs/pretrain") else f' --init "{out}"'
            print(f"\nthe model is in {out / 'model'}; next: python train_finetune.py {task}{init}")
    return 0


# --- 7. What every run has ---
#
# Options from a dataclass, the record of a run in its folder, and signals. train_finetune.py uses them too.

def flag(name: str) -> str:
    """Return the flag of an option: "--batch-size" of "batch_size"."""
    return "--" + name.replace("_", "-")


def parse_options(cls: type, description: str, arguments: Sequence[str] | None = None,
                  tables: dict[str, dict[str, Any]] | None = None) -> Any:
    """Build a command line from a dataclass and parse it into an instance.

    Each field becomes a flag, so that name, type, default and help are written once:
        batch_size: int = option(32, "rows of a batch")            --batch-size 64
        compile: bool = option(False, "compile the model")         --compile
        corpus: list[str] = option([], "files to read")            --corpus a.txt b.txt

    tables   name of a preset -> option -> its value there, which --help shows
    raises   ValueError naming the flag whose number is too low; what argparse refuses exits with status 2
    """
    parser = argparse.ArgumentParser(description=description)
    fields, types, defaults = dataclasses.fields(cls), get_type_hints(cls), cls()
    for field in fields:
        kind, default = types[field.name], getattr(defaults, field.name)
        shown = "; ".join(f"{preset}: {values[field.name]}" for preset, values in (tables or {}).items()
                          if field.name in values)
        help = field.metadata["help"] + (f" ({shown})" if shown else "")
        if kind is bool:
            parser.add_argument(flag(field.name), action="store_true", default=default, help=help)
            continue
        # The type of one value: int for `int`, `list[int]` and `int | None` (None means "not given").
        one, *_ = get_args(kind) or [kind]
        help += "" if default in (None, []) else " (default: %(default)s)"
        parser.add_argument(flag(field.name), type=data.given if one is str else one, default=default,
                            nargs="+" if get_origin(kind) is list else None, help=help,
                            choices=field.metadata["choices"])
    options = cls(**vars(parser.parse_args(arguments)))
    for field in fields:
        value, low = getattr(options, field.name), field.metadata["at_least"]
        if None not in (value, low) and not value >= low:           # nan >= low is False, so nan is refused
            raise ValueError(f"{flag(field.name)} must be at least {low}, not {value}")
        # Bytes of a path that are not UTF-8 become half characters, from \udc80 to \udcff, that no file of
        # ours could hold.
        if "\\udc" in ascii(value):
            raise ValueError(f"{flag(field.name)} {ascii(value)} is not UTF-8: rename it")
    return options


# Some names that both trainers write in a run folder. Where one is there without an options.json, it is not
# from a run, and must not be replaced.
RUN_FILES = ("corpus.txt", "vocab.txt", "shards", "*.csv", "model", "models", "table.txt", "seed-*", "*.pt")


def record_run(folder: Path, options: dict, fixed: Iterable[str], made_from: dict | None = None) -> None:
    """Record a run's options in its folder, in options.json; refuse a folder of a run with other options.

    A run is continued by repeating the command that began it. With other options the folder would hold a
    mixture of two runs. The same is true of other files with the same names, so their contents are compared.

    options    the options of this run, by name
    fixed      names of the options that must not change, because results in the folder depend on them; where
               nothing is fixed, the files may change too
    made_from  name of each file that results depend on -> hash of its content; None: not known yet, keep
               what is recorded
    raises     ValueError naming the first fixed option that has changed since the run began, or all files
               that have; an option that this program has not, so the run is the other one's; or the files
               that are not from a run and would be replaced
    """
    path, elsewhere = folder / "options.json", "choose another --out"
    if path.exists():
        before = read_object(path)
        recorded = before.get("made_from")
        if not isinstance(recorded, dict):
            raise ValueError(f"{path} is not from a run of this program, or damaged: {elsewhere}")
        if foreign := sorted(before.keys() - options.keys() - {"made_from"}):
            raise ValueError(f"{folder} holds a run of another program or version, with "
                             f"{flag(foreign[0])}: {elsewhere}")
        for name in fixed:
            if before.get(name) != options[name]:
                raise ValueError(f"{folder} holds a run with {flag(name)} {before.get(name)}, "
                                 f"now {options[name]}: repeat its options to continue it, or {elsewhere}")
        made_from = recorded if made_from is None else made_from
        changed = [name for name in sorted(recorded | made_from) if recorded.get(name) != made_from.get(name)]
        if fixed and recorded and changed:
            raise ValueError(f"{folder} holds a run that was made from other files: {', '.join(changed)} "
                             f"changed: bring them back to continue it, or {elsewhere}")
    elif foreign := [name for name in RUN_FILES if any(folder.glob(name))]:
        raise ValueError(f"{folder} holds {', '.join(foreign)}, but no options.json of a run: {elsewhere}")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps({**options, "made_from": made_from or {}}, indent=1).encode())


class Stop:
    """Record Ctrl-C (SIGINT), SIGTERM and SIGHUP inside a `with` block, where they would end the program.

    The loop looks at `signal` after each step; then it saves and exits. A second signal interrupts at once.
    SIGTERM is what torchrun and the schedulers of clusters send before they kill a process. SIGHUP comes when
    the terminal is closed, often twice: from the system, and from the shell. (Windows has no SIGHUP.)
    """

    def __enter__(self) -> Stop:
        self.signal: int | None = None
        signals = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
        # A program under nohup ignores SIGHUP: what is ignored stays so. signal.signal returns the handler
        # that was there before.
        self.before = {number: signal.signal(number, self.record) for number in signals
                       if signal.getsignal(number) != signal.SIG_IGN}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def record(self, number: int, frame: Any) -> None:
        """Record a signal; raise KeyboardInterrupt when it is the second one."""
        if self.signal is not None and number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt
        self.signal = number


# --- 8. Command line ---

def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; return the exit status."""
    tables = {name: preset_values(name) for name in PRESETS}            # for --help
    description = "Pre-train ELECTRA on text: one sentence on each line, an empty line between documents."
    # Options are parsed inside the command, because their errors too become one line and exit status 2.
    return data.run_command(lambda: train(complete(parse_options(Options, description, arguments, tables))))


if __name__ == "__main__":
    sys.exit(main())
