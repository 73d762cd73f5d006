"""Measure how fast fine-tuning is, by hand and on an idle machine: python tests/bench_finetune.py (minutes).

Programs in processes of their own train and evaluate the same tagger on the same sentences of ncbi-disease,
in turns, several times (on synthetic sentences where ELECTRAMED_DATA is not set): ours with batches by
length; ours, but with memory that the allocator gives back to the system; ours with every row padded to 128
tokens; and transformers' ElectraForTokenClassification padded to 128, with its own loop and torch as it
comes. Then ours alone, small against base: Bio-ELECTRA claims that small is eight times as fast. Prints one
line for each figure, the median over the rounds.
"""
import argparse
import dataclasses
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch                        # before our modules, which would set how its threads wait

import data
import electramed
import train_finetune
from bench_pretrain import Program
from electramed import PRESETS, Device, ElectraConfig
from tokenizer import Tokenizer, learn_vocab
from train_finetune import Feature

LENGTH, BATCH = 128, 32
TAGGING = train_finetune.Tagging(data.TASKS["ncbi-disease"])


def read_features(share: int) -> tuple[list[Feature], Tokenizer]:
    """Every `share`-th batch of 64, by length, of ncbi-disease's training set in SciVocab's pieces.

    Without ELECTRAMED_DATA, of a made-up set. Whole batches, because a small random draw of sentences would
    not fill batches of one length as the whole set does.
    """
    root = os.environ.get("ELECTRAMED_DATA")
    examples = data.read_task("ncbi-disease" if root else "demo-ner", "train", root)
    if root:
        tokenizer = Tokenizer.from_file(Path(root, "vocab", "scivocab.txt"))
    else:
        tokenizer = Tokenizer(learn_vocab([" ".join(example.words) for example in examples], 2000))
    features = TAGGING.encode(examples, tokenizer, LENGTH)
    plan = data.plan_batches(np.array([len(feature.input_ids) for feature in features]), 64, LENGTH,
                             np.random.default_rng(0))
    share = min(share, len(plan))
    chosen = sorted(plan, key=lambda batch: batch[0])[share // 2::share]
    return [features[i] for _, rows in chosen for i in rows], tokenizer


class Ours:
    """Training and prediction as train_finetune.py does them."""

    def __init__(self, config: ElectraConfig, features: list[Feature], tokenizer: Tokenizer) -> None:
        self.options = train_finetune.complete(train_finetune.Options(task="ncbi-disease", epochs=1))
        self.prepared = train_finetune.Prepared(
            TAGGING, tokenizer, config, None, Device.choose("auto", "float32"), {}, {"train": features},
            "test set")
        self.model = None

    def train(self) -> None:
        self.model, _, _ = train_finetune.train(0, self.prepared, self.options)

    def evaluate(self) -> None:
        train_finetune.predict(self.model, self.prepared.features["train"], self.prepared, self.options)


class Forgetful(Ours):
    """The same, but freed memory goes back to the system."""

    def __init__(self, *arguments) -> None:
        electramed.keep_freed_memory = lambda: None
        super().__init__(*arguments)


class Padded(Ours):
    """The same, but every row is as long as the longest could be."""

    def train(self) -> None:
        self.pad(super().train)

    def evaluate(self) -> None:
        self.pad(super().evaluate)

    def pad(self, run) -> None:
        by_length, data.bucket_widths = data.bucket_widths, lambda max_length: np.array([max_length])
        try:
            run()
        finally:
            data.bucket_widths = by_length


class Transformers:
    """A plain loop over transformers' model as such loops usually are: AdamW, clipping, padded rows."""

    def __init__(self, config: ElectraConfig, features: list[Feature], tokenizer: Tokenizer) -> None:
        from transformers import ElectraConfig as TheirConfig, ElectraForTokenClassification
        sizes = {name: value for name, value in dataclasses.asdict(config).items()
                 if name not in ("generator_size", "mask_prob")}
        self.model = ElectraForTokenClassification(TheirConfig(num_labels=len(TAGGING.labels), **sizes))
        # Device(...) instead of Device.choose(...): no settings of ours
        self.device = Device("cuda" if torch.cuda.is_available() else "cpu", "float32")
        self.model.to(self.device.kind)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5)
        self.features, self.pad_id = features, tokenizer.pad_id

    def batches(self, size: int):
        for first in range(0, len(self.features), size):
            chosen = self.features[first:first + size]
            rows = [(feature.input_ids, feature.first_length) for feature in chosen]
            labels = torch.from_numpy(TAGGING.label_array(chosen, LENGTH))
            yield self.device.put(*electramed.pad_rows(rows, self.pad_id, LENGTH), labels)

    def train(self) -> None:
        self.model.train()
        for ids, mask, types, labels in self.batches(BATCH):
            output = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=labels)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def evaluate(self) -> None:
        self.model.eval()
        with torch.inference_mode():
            for ids, mask, types, _ in self.batches(64):
                output = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
                output.logits.float().cpu().numpy()


PROGRAMS = {"ours": Ours, "ours, memory given back": Forgetful, "ours, padded to 128": Padded,
            "transformers, padded to 128": Transformers}


def serve(connection, name: str, preset: str, share: int, chosen: slice) -> None:
    """Build one of the programs, then time "train" or "evaluate" when asked to."""
    features, tokenizer = read_features(share)
    config = dataclasses.replace(PRESETS[preset], vocab_size=len(tokenizer.pieces))
    program = PROGRAMS[name](config, features[chosen], tokenizer)
    connection.send("ready")
    while request := connection.recv():
        began = time.perf_counter()
        getattr(program, request)()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        connection.send(time.perf_counter() - began)
    connection.send(None)


def main() -> None:
    """Run all programs in turns and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=int, default=17, help="measure on every N-th batch")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    features, _ = read_features(options.share)
    lengths = [len(feature.input_ids) for feature in features]
    print(f"{len(features)} sentences of {statistics.fmean(lengths):.1f} tokens, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{'cuda' if torch.cuda.is_available() else 'cpu'}, float32")
    programs = {name: Program(serve, name.startswith("ours"), name, "small", options.share, slice(None))
                for name in PROGRAMS}
    for what in ("train", "evaluate"):
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(options.rounds):
            for name, program in programs.items():
                times[name].append(program.ask(what))
        for name, values in times.items():
            ratio = statistics.median(other / ours for other, ours in zip(values, times["ours"]))
            print(f"{what:8} small  {name:28}{len(features) / statistics.median(values):8.1f} sentences/s"
                  + (f"   ours is {ratio:.2f} times as fast" if name != "ours" else ""), flush=True)
    for program in programs.values():
        program.end()
    small, base = (Program(serve, True, "ours", preset, options.share, slice(64, 192))
                   for preset in ("small", "base"))
    for what in ("train", "evaluate"):
        ratios = [base.ask(what) / small.ask(what) for _ in range(3)]
        print(f"{what:8} small against base: {statistics.median(ratios):.1f} times as fast")
    small.end(), base.end()


if __name__ == "__main__":
    main()
