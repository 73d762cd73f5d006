"""Fine-tune a pre-trained ELECTRA on a task of the papers, and score it as they do.

After reading this file you hold the second half of both papers: a head on top of the discriminator,
layer-wise learning rates, the choice of the best epoch on the development set, several seeds, and for each
kind of task its windows, its decoding, its metric, its submission format and its list of errors.

    python train_finetune.py --task demo-ner                          # after train_pretrain.py: ten seconds
    python train_finetune.py --task ncbi-disease --data corpora --init runs/med --seeds 5
    python train_finetune.py --out runs/finetune/ncbi-disease --predict notes.txt            # read raw text

Where it stands: data.py reads task files into examples, electramed.py holds the heads, metrics.py the scores;
this file connects them. A kind of task (entities, relations, yes/no questions, ranking, answers) is one class
in section 2, which tells its whole story in the order in which data flows:

    examples -> features (rows for the model) -> head -> labels and loss      while training
    output of the head -> predictions -> scores, submission file, errors.md   while testing
    lines of text -> examples -> features -> output -> results                with --predict

Nothing outside that section asks which kind a task is, so a new kind is one new class (and a reader in
data.py, and a metric). `--init` takes a pre-training run, a fine-tuned run (SQuAD first, then BioASQ), or a
published folder. The test set is scored once per seed, after the epoch was chosen. Left out: one model for
several kinds of task at once, because neither paper has one.
Sources: ELECTRAMed Tables 5 and 7-10; Bio-ELECTRA, its paper and released scripts; "TF" is the finetune
folder of the official TensorFlow code (its qa, tagging and classification tasks).

    1. Options and protocol     2. The kinds of task          3. Training one seed
    4. Seeds, search, tables    5. Raw text                   6. Command line
"""
from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Several threads of torch compute one matrix product together (in the optimiser) and wait for each other. By
# default a waiting thread runs in a loop, which takes its core from other processes, and from the threads
# that compute the rows of a batch side by side. PASSIVE makes it sleep. torch reads the variable as it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

import data
import metrics
from data import Task, option, say
from electramed import (
    IGNORED_LABEL, PRECISIONS, PRESETS, Adam, Device, ElectraConfig, SequenceClassifier, SpanExtractor,
    TokenTagger, learning_rate_at, load_encoder, load_weights, model_folder, parameter_groups, read_config,
    save_pretrained)
from tokenizer import Tokenizer, learn_vocab


# --- 1. Options and protocol ---

@dataclasses.dataclass(frozen=True)
class Options:
    """Hold the command line. complete() fills in options that are None from the protocol of the task.

    data.parse_options makes a flag of each field: batch_size is --batch-size.
    """

    # What to train on, from what, and where to write. Below the field `data`, this name means the field, and
    # no longer the module, until the class ends.
    task: str = option("demo-ner", "what to fine-tune on", choices=list(data.TASKS))
    data: str | None = option(os.environ.get("ELECTRAMED_DATA", "corpora"),
                              "folder of the published data sets, or of train, dev and test files")
    offline: bool = option(False, "do not download a published data set that is not there")
    protocol: str = option(None, "paper whose hyper-parameters to use (default: the one that has the task)",
                           choices=["electramed", "bio-electra"])
    init: str | None = option(None, "run or model folder to start from, or none (default: runs/pretrain)")
    like: str | None = option(None, "with --init none: model folder that gives sizes and vocabulary")
    out: str = option(None, "run folder (default: runs/finetune/TASK); finished seeds are not run again")

    # What to do: train some seeds, or one of three other things.
    seeds: int = option(1, "runs with seeds 0, 1, ...; the table has mean and standard deviation", at_least=1)
    search: int | None = option(None, "first try that many points of Bio-ELECTRA's grid", at_least=1)
    curve: bool = option(False, "fine-tune from each model that --init kept, and draw scores against steps")
    predict: str | None = option(None, "file to read with the model of --out (-: standard input): one text "
                                 'per line, or {"question": ..., "passage": ...}; prints JSON lines')

    # Hyper-parameters. One that is not given comes from the protocol (PROTOCOLS, below).
    epochs: int = option(None, "passes over the training set", at_least=1)
    batch_size: int = option(None, "examples in a batch", at_least=1)
    max_length: int = option(None, "tokens of the longest row; longer texts are cut or windowed", at_least=8)
    learning_rate: float = option(None, "peak learning rate of the head", at_least=0)
    layer_decay: float = option(None, "learning rate of a layer / that of the layer above it", at_least=0)
    weight_decay: float = option(None, "decoupled weight decay", at_least=0)
    dropout: float = option(None, "dropout of hidden states and attention", at_least=0)
    class_weights: bool = option(False, "for ranking: weigh the loss 1 to 99 in favour of right candidates")
    tag_loss: str = option("softmax", "for entities: a softmax over the tags, or a binary classifier per tag",
                           choices=["softmax", "binary"])

    # Where to compute.
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda"])
    precision: str | None = option(None, "default: float32 on CPU, else bfloat16", choices=PRECISIONS)


# Options that may change between calls while finished seeds are kept. If any other option has changed, or the
# model that the run starts from, the run stops and names what has changed.
FREE = ("out", "seeds", "protocol", "device", "precision", "offline", "search", "curve", "predict")
FIXED = ("starting_model", *(field.name for field in dataclasses.fields(Options) if field.name not in FREE))

WARMUP_SHARE = 0.1              # of all steps
QUESTION_LENGTH = 64            # pieces that a question is cut to
DOCUMENT_STRIDE = 128           # pieces between the starts of two windows of a passage
MAX_ANSWER_PIECES = 30          # TF configure_finetuning.py: longer answers are not considered
BEST_SPANS = 20                 # starts and ends considered in each window, and spans kept for each example
ANSWERS_SHOWN = 5               # answers that --predict prints for each question
EVALUATION_BATCH = 64           # rows; it changes the speed, not the result
PUBLISHED_TEST_SET = "test set"     # its name in tables; a test set cut from another file has a longer name
PLACES = 3                      # places that errors.md shows of errors with equal headings
READ_AT_ONCE = 256              # lines of a file that --predict reads as one block
SCRATCH_VOCAB_SIZE = 4000       # pieces learnt from the training set where there is no vocabulary

CLASS_WEIGHTS = (1.0, 99.0)     # of wrong and right candidates, with --class-weights: a weighted mean

# ELECTRAMed, Table 5. The paper gives no epochs: 3 and, for questions, 2 are those of official ELECTRA.
TABLE_5 = {"epochs": 3, "batch_size": 32, "max_length": 128, "learning_rate": 5e-5, "layer_decay": 0.8,
           "weight_decay": 0.0, "dropout": 0.1}
# The entry "" holds for all tasks; that of a kind overrides it, and that of a task overrides its kind's. For
# example, SQuAD's batch size is that of "qa" in ELECTRAMed's protocol, and that of "" in Bio-ELECTRA's.
PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "electramed": {
        "": TABLE_5,
        "qa": {"epochs": 2, "batch_size": 16, "max_length": 384, "learning_rate": 3e-5},
        "bioasq7b": {"learning_rate": 5e-6},
    },
    "bio-electra": {
        "": {**TABLE_5, "batch_size": 12, "learning_rate": 1e-4, "weight_decay": 0.01},
        "qa": {"epochs": 2, "max_length": 192},
        "classify": {"max_length": 192},
        "rank": {"max_length": 64},
        "linnaeus": {"max_length": 192},
        "gad": {"batch_size": 32},
        "chemprot": {"batch_size": 24},
        "chemprot-tsv": {"batch_size": 24},
    },
}
# The grid of Bio-ELECTRA, from which --search draws.
GRID: dict[str, tuple[Any, ...]] = {"learning_rate": (1e-5, 5e-5, 1e-4, 5e-4), "epochs": (3, 5, 15, 20),
                                    "batch_size": (12, 24, 32, 64)}
# The demo tasks are small, and so is the model of `python train_pretrain.py`: larger steps, more epochs.
DEMO = {"epochs": 20, "batch_size": 16, "learning_rate": 1e-3}
PROTOCOLS["electramed"] |= {"demo-ner": DEMO, "demo-re": DEMO, "demo-qa": {**DEMO, "max_length": 256}}

# Test scores of the papers in percent. Columns: ELECTRAMed (Tables 7 to 9); Bio-ELECTRA; "++" Bio-ELECTRA++;
# "++ tuned" the same with tuned hyper-parameters; "weighted" Bio-ELECTRA with class weights. A row may end
# early; None is a gap.
PAPERS = ("ELECTRAMed", "Bio-ELECTRA", "++", "++ tuned", "weighted")
PUBLISHED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "ncbi-disease": {"precision": (85.87,), "recall": (89.29,), "f1": (87.54, 78.32, 80.01, 84.85)},
    "bc5cdr": {"precision": (88.76,), "recall": (91.34,), "f1": (90.03,)},
    "jnlpba": {"precision": (69.33,), "recall": (78.56,), "f1": (73.65,)},
    "bc4chemd": {"f1": (None, 83.13, 83.80, 87.94)},
    "bc2gm": {"f1": (None, 71.08, 72.55, 79.27)},
    "linnaeus": {"f1": (None, 84.10, 85.02, 95.01)},
    "chemprot": {"precision": (75.47,), "recall": (70.67,), "f1": (72.94,)},
    "chemprot-tsv": {"f1": (None, 60.86, 64.22, 72.33)},
    "ddi2013": {"precision": (80.07,), "recall": (78.24,), "f1": (79.13,)},
    "gad": {"f1": (None, 81.66, 80.96)},
    "bioasq8b": {"exact_match": (None, 57.51, 57.93), "f1": (None, 66.87, 67.48)},
    "yesno": {"yes f1": (None, 92.66, 93.19), "no f1": (None, 58.18, 69.84)},
    "rerank": {"mrr": (None, 32.5, 33.5, None, 33.2)},
}
# ELECTRAMed's scores on the five test batches of BioASQ 7b.
BATCH_MEASURES = ("strict_accuracy", "lenient_accuracy", "mrr")
BATCH_SCORES = {1: (44.62, 51.28, 47.95), 2: (46.40, 62.40, 53.16), 3: (37.93, 58.62, 46.62),
                4: (61.18, 82.35, 69.55), 5: (24.57, 44.00, 31.42)}
PUBLISHED["bioasq7b"] = {f"batch {batch} {measure}": (score,) for batch, scores in BATCH_SCORES.items()
                         for measure, score in zip(BATCH_MEASURES, scores)}
# MRR of the best system in each batch (ELECTRAMed, Table 9). Table 10 is the sum of our MRR / this MRR.
BEST_MRR = {1: 0.4795, 2: 0.5667, 3: 0.5115, 4: 0.6955, 5: 0.3638}


# --- 2. The kinds of task ---
#
# 2.1 What the kinds share: features, windows, errors, the base class
# 2.2 Tagging    2.3 Relations, YesNo, Ranking: one label for a text or pair    2.4 Answers

# --- 2.1 What the kinds share ---
#
# The model reads rows of at most max_length tokens, but sentences and passages may be longer. If they were
# cut, everything after the cut would be missed. So a long text is read in overlapping windows. What stands in
# two windows is read in the one that shows more text around it.

Measures = dict[str, float]            # name -> score in [0, 1]; the names are the rows of the table
Results = list[dict[str, Any]]         # what each line of raw text holds, in plain numbers and strings
Examples = Sequence[Any]               # of one kind: TaggedSentence, LabelledText, Candidate, Question, ...


class Feature(NamedTuple):
    """Hold one row for the model, cut from an example, and what turns the model's output back into answers.

    Say the tokenizer knows "fever", "kel" and "##marin", and the labels are O, B-Disease, I-Disease. Then

        words  Kelmarin   fever             tags  B-Disease  I-Disease

        input_ids  [CLS]  kel  ##marin  fever  [SEP]            (as numbers)
        labels      -100    1     -100      2   -100            (-100 is IGNORED_LABEL: no label here)
        spots       word 0 at position 1, word 1 at position 3
    """

    example: int                # number of the example it was cut from; a long example gives several features
    input_ids: list[int]        # [CLS] A [SEP], or [CLS] A [SEP] B [SEP]
    first_length: int           # tokens of [CLS] A [SEP]
    labels: Any                 # by kind: a label id for each position, or one for the row, or (start, end)
    spots: Sequence[Any] = ()   # by kind: where in the row words or characters of the example stand
    is_cut: bool = False        # whether the end of the example was cut off


Features = Sequence[Feature]
Outputs = Sequence[np.ndarray]         # what the head gives for each feature, cut to its real tokens


def split_windows(length: int, capacity: int, stride: int) -> list[tuple[int, int]]:
    """Cover `length` pieces by windows (start, end) of at most `capacity`, one starting every `stride`.

    The first window that reaches the end is the last:

    >>> split_windows(10, 4, 2)
    [(0, 4), (2, 6), (4, 8), (6, 10)]

    source   TF qa_tasks.QATask._add_examples
    """
    if min(capacity, stride) < 1:
        raise ValueError(f"windows of {capacity} pieces every {stride} cover nothing: raise --max-length")
    windows = [(0, min(length, capacity))]
    while windows[-1][1] < length:
        start = windows[-1][0] + min(stride, capacity)      # a stride beyond the window would skip pieces
        windows.append((start, min(length, start + capacity)))
    return windows


def best_windows(length: int, windows: list[tuple[int, int]]) -> np.ndarray:
    """Find for each piece the window in which it has most context: every piece belongs to exactly one.

    The context of a piece in a window is the smaller of its two sides. Piece 3 has 0 pieces to its right in
    the window (0, 4), but one to each side in (2, 6):

    >>> best_windows(10, [(0, 4), (2, 6), (4, 8), (6, 10)])
    array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])

    returns   (length,) numbers of windows; of equally good ones the first
    source    TF qa_tasks.is_max_context
    """
    pieces = np.arange(length)
    context = []
    for start, end in windows:
        smaller_side = np.minimum(pieces - start, end - 1 - pieces)
        context.append(np.where((pieces >= start) & (pieces < end), smaller_side, -1))
    return np.array(context).argmax(axis=0)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute probabilities along the last axis: exp(x) / sum(exp(x)), written so that no exp overflows."""
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute a probability from each logit by itself: 1 / (1 + exp(-x)), also without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def precision_recall_f1(scores: metrics.Scores, prefix: str = "") -> Measures:
    """Name precision, recall and F1 over all types, and where there are several types also those of each.

        {"precision": 0.8, "recall": 0.6, "f1": 0.69, "Drug precision": 0.9, ..., "Gene f1": 0.5}

    prefix   put before the names of the measures over all types
    """
    named = {prefix: scores}
    if len(scores.per_type) > 1:
        named |= {f"{name} ": part for name, part in sorted(scores.per_type.items())}
    measures: Measures = {}
    for name, part in named.items():
        measures |= {f"{name}precision": part.precision, f"{name}recall": part.recall, f"{name}f1": part.f1}
    return measures


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, each line with its end."""
    data.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, for people too: one value on each line, and letters such as β as they are."""
    data.write_bytes(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


class Mistake(NamedTuple):
    """Hold one wrong prediction for errors.md; outline() groups and counts them by their headings."""

    headings: tuple[str, ...]   # general to special; the last names the item: ("Drug", "missed", "jorganux")
    lines: tuple[str, ...]      # Markdown: where it happened, and what was expected and predicted


class Report(NamedTuple):
    """Hold the content of errors.md."""

    mistakes: list[Mistake]
    note: str                   # the first lines: how many predictions are wrong, and what marks mean


def escape_markdown(text: str) -> str:
    """Put a text on one line, with a backslash before the characters that mean something in Markdown."""
    return " ".join(text.split()).translate({ord(character): "\\" + character for character in "\\`*[]<"})


def outline(mistakes: Sequence[Mistake], depth: int = 0) -> list[str]:
    """Arrange mistakes as lines of Markdown under their headings, the most frequent heading first.

    The last heading becomes an item of a list, with the number of its places and the first PLACES of them:

        ## Drug: 3
        ### missed: 3
        - 3 x jorganux
          - **jorganux** helped in eight adults .
    """
    groups: dict[str, list[Mistake]] = {}
    for mistake in mistakes:
        groups.setdefault(mistake.headings[depth], []).append(mistake)
    lines = []
    for heading, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        if depth + 1 < len(group[0].headings):
            lines += ["", f"##{'#' * depth} {heading}: {len(group)}", *outline(group, depth + 1)]
        else:
            times = f"{len(group)} x " if len(group) > 1 else ""
            lines.append(f"- {times}{escape_markdown(heading)}")
            lines += [f"  - {line}" for mistake in group[:PLACES] for line in mistake.lines]
    return lines


def write_errors(path: Path, title: str, mistakes: list[Mistake], note: str) -> None:
    """Write errors.md, a file for people: which mistakes there are, how often they occur, and where.

    Of mistakes with equal headings (a drug was missed in a hundred sentences) PLACES places are enough.
    """
    equal = Counter(mistake.headings for mistake in mistakes if mistake.lines)
    if left_out := sum(max(0, count - PLACES) for count in equal.values()):
        note += f"\nOf equal errors the first {PLACES} places are shown, {left_out} are left out."
    write_lines(path, [f"# {title}", "", note, *outline(mistakes)])


class Line(NamedTuple):
    """Hold one line of raw text, for --predict."""

    where: str                  # file and line number, for messages
    text: str


def read_pair(line: Line) -> tuple[str, str]:
    """Read question and passage from a line such as {"question": "Which drug ...?", "passage": "..."}.

    raises    ValueError naming file and line of anything else
    """
    try:
        pair = json.loads(line.text)
        question, passage = pair["question"], pair["passage"]
        if not (isinstance(question, str) and isinstance(passage, str)):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{line.where}: expected {{"question": "...", "passage": "..."}} in JSON, '
                         f"found {line.text[:60]!r}") from None
    return question, passage


def embolden(text: str, found: Sequence[dict[str, Any]]) -> str:
    """Show what was found in bold in its text, with its type in brackets, as in ELECTRAMed's Table 6.

    found    spans with start and end in characters, in order, without overlap
    """
    for span in reversed(found):                # from the end: the places of earlier spans stay right
        name = f" [{span['type']}]" if span.get("type") else ""
        text = f"{text[:span['start']]}\x1b[1m{span['text']}\x1b[0m{name}{text[span['end']:]}"
    return text


class Kind:
    """List what the rest of the program asks of a kind of task, in the order in which data flows.

    The five classes below derive from this one, which holds what most of them share. Letters: B rows of a
    batch, T tokens, C labels. An *output* is what the head gives for one feature, cut to its real
    tokens. A *prediction* is what all features of one example say together: tags, a label, a probability,
    or answers.

    To add a kind, derive a class from this one, or from Classification where a text or pair has one label:

    1. Write the methods that only raise NotImplementedError here: encode, new_model, decode, score, write,
       errors, raw_examples, results, show.
    2. Override the others where the kind differs.
    3. Name the class in KINDS, and its reader and a task in data.py; its measure belongs in metrics.py.
    """

    purpose = ""                            # in words, for messages
    own_options: tuple[str, ...] = ()       # options that mean something for this kind alone
    has_labels = True                       # whether the head chooses among labels with names

    def __init__(self, task: Task, examples: Examples = ()) -> None:
        """Take the labels that the task names; where it names none, find them in its training examples."""
        self.task = task
        self.labels: tuple[str, ...] = task.labels or self.find_labels(examples)

    # Labels and vocabulary, where the task or the model does not bring them.

    def count_labels(self, examples: Examples) -> Counter[str]:
        """Count how often each label occurs."""
        return Counter(example.label for example in examples)

    def find_labels(self, examples: Examples) -> tuple[str, ...]:
        """List the labels that occur, in the order in which the head numbers them.

        They are sorted, so that the order of the examples does not matter.
        """
        return tuple(sorted(self.count_labels(examples)))

    def describe_labels(self) -> str:
        """Say which labels were found."""
        return ", ".join(self.labels)

    def text_of(self, example: Any) -> str:
        """Return all text of an example, to learn a vocabulary from when there is no model.

        By default that is every field that is a string.
        """
        return " ".join(field for field in example if isinstance(field, str))

    # Features, head, labels and loss.

    def encode(self, examples: Examples, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        """Turn examples into rows of at most max_length tokens."""
        raise NotImplementedError

    def describe_features(self, features: Features, max_length: int) -> str:
        """Say how many examples did not fit in one row."""
        return f"{sum(feature.is_cut for feature in features)} cut at {max_length} tokens"

    def announce(self, split: str, examples: Examples, features: Features) -> None:
        """Say before training what no model can get right: here, labels that the training set lacks."""
        if unknown := self.count_labels(examples).keys() - set(self.labels):
            say(f"*** {', '.join(sorted(unknown))}: not in the training set, so always missed in {split} ***")

    def new_model(self, config: ElectraConfig) -> nn.Module:
        """Build a new model: an encoder with this kind's head on top."""
        raise NotImplementedError

    def label_array(self, features: Features, width: int) -> np.ndarray:
        """Return the labels of a batch whose rows have `width` tokens: (B,), or (B, 2) of starts and ends."""
        return np.array([feature.labels for feature in features])

    def loss_settings(self, options: Options, device: Device) -> Sequence[Any]:
        """Return further arguments of the head's loss and total, in order; see the heads in electramed.py."""
        return ()

    # Predictions, and what becomes of them.

    def decode(self, examples: Examples, features: Features, outputs: Outputs) -> list:
        """Turn the outputs into one prediction for each example."""
        raise NotImplementedError

    def score(self, examples: Examples, predictions: Sequence[Any]) -> Measures:
        """Compute the scores that the papers report."""
        raise NotImplementedError

    def write(self, folder: Path, examples: Examples, predictions: Sequence[Any]) -> None:
        """Write the predictions in the task's own submission format."""
        raise NotImplementedError

    def errors(self, examples: Examples, features: Features, predictions: Sequence[Any]) -> Report:
        """List the wrong predictions, for errors.md."""
        raise NotImplementedError

    @staticmethod
    def closing_lines(results: Sequence[Measures]) -> list[str]:
        """Return lines for the end of the table of all seeds."""
        return []

    # Raw text.

    def raw_examples(self, lines: Sequence[Line], tokenizer: Tokenizer) -> list:
        """Make examples of lines of raw text, which encode takes like those of a file."""
        raise NotImplementedError

    def results(self, examples: Examples, features: Features, outputs: Outputs, options: Options) -> Results:
        """Return what was found in each line."""
        raise NotImplementedError

    def show(self, result: dict[str, Any]) -> str:
        """Write a result for people, on a terminal."""
        raise NotImplementedError


# --- 2.2 Tagging ---

class WordSpot(NamedTuple):
    """Say where the tag of a word stands in a row."""

    position: int               # of the word's first wordpiece, counted from [CLS] at 0
    word: int                   # number of the word in its sentence


class RawSentence(NamedTuple):
    """Hold a sentence of raw text, which Tagging.encode reads like a TaggedSentence."""

    words: list[str]
    tags: list[str]             # all O, as placeholders: the model is asked for them
    spans: list[tuple[int, int]]        # the characters of each word in its line
    line: int                   # number of its line in the block that is read
    text: str                   # that line


Sentences = Sequence[data.TaggedSentence]


class Tagging(Kind):
    """Find entities: one tag for each word, read as spans.

    The published files have one word per line, its tag last, and an empty line between sentences:

        jorganux    O                  -> TaggedSentence(words=["jorganux", "slowed", "kelmarin", "fever"],
        slowed      O                                    tags=["O", "O", "B-Disease", "I-Disease"])
        kelmarin    B-Disease
        fever       I-Disease

    Features    A sentence becomes one row, or several windows that overlap. The tag of a word stands on its
                first wordpiece, in the window where that piece has most context (Feature shows an example).
                All other positions have no label: neither loss nor prediction looks at them.
    Head        C logits for each token; the largest one at a word's position is its predicted tag.
    Loss        Softmax over the C tags, or with --tag-loss binary one classifier for each tag.
    Scores      Tags are read as entities by the rules of conlleval: an entity counts when its type and both
                of its borders are right. Precision, recall and F1 are micro-averaged over all types.
    Submission  Columns of word, gold tag and predicted tag, which the conlleval script reads.
    Raw text    A line is split into sentences and these into words, which are then read like those of a file.
    """

    purpose = "entities"
    own_options = ("tag_loss",)

    def count_labels(self, examples: Sentences) -> Counter[str]:
        """Count how often each tag occurs."""
        return Counter(tag for example in examples for tag in example.tags)

    def find_labels(self, examples: Sentences) -> tuple[str, ...]:
        """List the tags that occur: O first, then the others in alphabetical order."""
        return ("O", *sorted(self.count_labels(examples).keys() - {"O"}))

    def text_of(self, example: data.TaggedSentence) -> str:
        """Return the words of a sentence."""
        return " ".join(example.words)

    def encode(self, examples: Examples, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        """Cut sentences into rows [CLS] window [SEP]; no word is lost, however long the sentence.

        Windows overlap by half. So every word has, in one of them, at least a quarter of a window of text on
        each side, or all the text that the sentence has there. With 4 pieces in a window, "a b c d e f" is
        read as "a b c d" and "c d e f": the tags of a, b and c stand in the first window, those of d, e and f
        in the second.

        A tag that is not among the labels is not trained on, but still counts when predictions are scored.
        source    the first piece has the label, as in TF tagging_tasks.py; there long sentences are cut
        """
        number_of = {label: number for number, label in enumerate(self.labels)}
        capacity = max_length - 2                                           # without [CLS] and [SEP]
        features = []
        for number, example in enumerate(examples):
            # 1. Wordpieces, the word that each belongs to, and the first piece of each word. A word of which
            #    cleaning leaves nothing is one [UNK], so that every word has a first piece.
            ids, word_of = tokenizer.encode_words(example.words)
            first_pieces = [word_of.index(word) for word in range(len(example.words))]
            # 2. Windows, and for each piece the one to which it belongs.
            windows = split_windows(len(ids), capacity, capacity // 2)
            window_of = best_windows(len(ids), windows)
            # 3. One row for each window, with the tags of the words that belong to it.
            for window, (start, end) in enumerate(windows):
                spots = [WordSpot(1 + piece - start, word) for word, piece in enumerate(first_pieces)
                         if window_of[piece] == window]
                labels = [IGNORED_LABEL] * (end - start + 2)
                for spot in spots:
                    labels[spot.position] = number_of.get(example.tags[spot.word], IGNORED_LABEL)
                input_ids = [tokenizer.cls_id, *ids[start:end], tokenizer.sep_id]
                features.append(Feature(number, input_ids, len(input_ids), labels, spots))
        return features

    def describe_features(self, features: Features, max_length: int) -> str:
        """Say how many sentences became several windows: nothing of them is lost."""
        windows = Counter(feature.example for feature in features)
        split = sum(count > 1 for count in windows.values())
        return f"{split} sentences longer than {max_length} tokens read in overlapping windows"

    def new_model(self, config: ElectraConfig) -> nn.Module:
        """Build the tagger: C logits for each token."""
        return TokenTagger(config, len(self.labels))

    def label_array(self, features: Features, width: int) -> np.ndarray:
        """Return (B, T) label ids: only the first piece of a word has one; padding, [CLS], [SEP] have none.

        Two rows, [CLS] kel ##marin [SEP] and [CLS] fever [SEP], padded to 5 tokens:

            -100    1  -100  -100  -100
            -100    2  -100  -100  -100
        """
        rows = np.full((len(features), width), IGNORED_LABEL)
        for row, feature in zip(rows, features):
            row[:len(feature.labels)] = feature.labels
        return rows

    def loss_settings(self, options: Options, device: Device) -> Sequence[Any]:
        """Return whether each label has a sigmoid of its own; otherwise all share one softmax.

        source    ELECTRAMed's paper: three binary classifiers over B, I and O; its released code: the softmax
        """
        return [options.tag_loss == "binary"]               # is_binary of TokenTagger.loss

    def at_words(self, examples: Examples, features: Features, values: Sequence[Any]) -> list[list[Any]]:
        """Collect what the features say about each word of each example.

        values    (T,) for each feature, of which those at the spots are taken: each word has exactly one
        returns   a list for each example, with a value for each word
        """
        words: list[list[Any]] = [[None] * len(example.words) for example in examples]
        for feature, value in zip(features, values):
            for spot in feature.spots:
                words[feature.example][spot.word] = value[spot.position]
        return words

    def decode(self, examples: Examples, features: Features, outputs: Outputs) -> list[list[str]]:
        """Turn outputs (T, C) into one tag for each word.

        The tags of a sentence may fit badly: an I- after O, say, opens an entity when they are scored.
        """
        likeliest = self.at_words(examples, features, [output.argmax(axis=-1) for output in outputs])
        return [[self.labels[label] for label in sentence] for sentence in likeliest]

    def score(self, examples: Sentences, predictions: Sequence[list[str]]) -> Measures:
        """Compute precision, recall and F1 of entities by the rules of conlleval."""
        return precision_recall_f1(metrics.entity_scores([example.tags for example in examples], predictions))

    def write(self, folder: Path, examples: Sentences, predictions: Sequence[list[str]]) -> None:
        """Write predictions.txt: word, gold tag, predicted tag; an empty line between sentences.

            slowed O O
            kelmarin B-Disease B-Disease
            fever I-Disease O
        """
        sentences = []
        for example, tags in zip(examples, predictions):
            rows = zip(example.words, example.tags, tags)
            sentences.append("".join(f"{word} {gold} {predicted}\n" for word, gold, predicted in rows))
        data.write_bytes(folder / "predictions.txt", "\n".join(sentences).encode())

    def errors(self, examples: Sentences, features: Features, predictions: Sequence[list[str]]) -> Report:
        """List the entities that were predicted wrongly, grouped by type, then by error, then by their words.

        missed        no predicted entity overlaps it
        spurious      a predicted entity that overlaps no gold one
        boundary      the type is right, but not where it begins and ends
        taken for X   an overlapping entity was predicted, of the type X
        """
        mistakes, count = [], Counter[str]()
        for example, tags in zip(examples, predictions):
            gold_spans, predicted_spans = metrics.spans_from_tags(example.tags), metrics.spans_from_tags(tags)
            for match in metrics.match_entities(gold_spans, predicted_spans):
                count[match.verdict] += 1
                # A mistake stands under the gold entity; only a spurious one, without it, under its own.
                span = match.gold or match.predicted
                assert span, "a match has at least one span"
                if match.verdict == "hit":
                    continue
                group = match.verdict
                if match.verdict == "type" and match.predicted:
                    group = f"taken for {match.predicted.type}"
                words = " ".join(example.words[span.start:span.end])
                marked = self.mark_spans(example.words, match.gold, match.predicted)
                mistakes.append(Mistake((span.type or "entity", group, words), (marked,)))
        note = (f"Of {count.total() - count['spurious']} entities {count['hit']} found, "
                f"{count['missed']} missed, {count['boundary']} with another boundary, "
                f"{count['type']} taken for another type; {count['spurious']} spurious.\n"
                "The gold entity stands in **bold**, the predicted one in [brackets].")
        return Report(mistakes, note)

    @staticmethod
    def mark_spans(words: list[str], gold: metrics.Span | None, predicted: metrics.Span | None) -> str:
        """Write the sentence with the gold entity in **bold** and the predicted one in [brackets].

        The two may overlap. Say "kel acid" is a drug, of which only "kel" was found: [**kel] acid**.
        """
        shown = [escape_markdown(word) for word in words]
        for span, opening, closing in ((gold, "**", "**"), (predicted, "[", "]")):
            if span:
                shown[span.start] = opening + shown[span.start]
                shown[span.end - 1] += closing
        return " ".join(shown)

    def raw_examples(self, lines: Sequence[Line], tokenizer: Tokenizer) -> list[RawSentence]:
        """Split each line into sentences, and these into what the tokenizer takes for words.

        A piece without ## begins a word, so that punctuation is a word of its own, as in the training files:
        "kelmarin fever." has the words "kelmarin", "fever" and ".". Each one keeps its place in the line.
        """
        sentences = []
        for number, line in enumerate(lines):
            for first, last in data.split_sentences(line.text):
                spans: list[tuple[int, int]] = []           # characters of each word
                ids, offsets = tokenizer.encode_with_offsets(line.text[first:last])
                for piece, (start, end) in zip(ids, offsets):
                    # A piece with ## makes the word before it longer: its span is taken off and put back.
                    is_continued = bool(spans) and tokenizer.pieces[piece].startswith("##")
                    begins = spans.pop()[0] if is_continued else first + start
                    spans.append((begins, first + end))
                words = [line.text[start:end] for start, end in spans]
                sentences.append(RawSentence(words, ["O"] * len(words), spans, number, line.text))
        return sentences

    def results(self, examples: Examples, features: Features, outputs: Outputs, options: Options) -> Results:
        """Return the entities of each line, with the mean probability of their words' tags.

            {"text": "Jorganux slowed kelmarin fever.", "entities": [
                {"start": 16, "end": 30, "type": "Disease", "text": "kelmarin fever", "score": 0.9712}]}
        """
        tags = self.decode(examples, features, outputs)
        to_probabilities = sigmoid if options.tag_loss == "binary" else softmax     # as the loss trained them
        probabilities = [to_probabilities(output).max(axis=-1) for output in outputs]
        by_word = self.at_words(examples, features, probabilities)
        results: dict[int, dict[str, Any]] = {}             # by line, which may have several sentences
        for example, word_tags, certainty in zip(examples, tags, by_word):
            result = results.setdefault(example.line, {"text": example.text, "entities": []})
            for span in metrics.spans_from_tags(word_tags):
                (start, _), (_, end) = example.spans[span.start], example.spans[span.end - 1]
                score = float(np.mean([float(probability) for probability in certainty[span.start:span.end]]))
                result["entities"].append({"start": start, "end": end, "type": span.type,
                                           "text": example.text[start:end], "score": round(score, 4)})
        return list(results.values())

    def show(self, result: dict[str, Any]) -> str:
        """Return the line with its entities in bold."""
        return embolden(result["text"], result["entities"])


# --- 2.3 Relations, YesNo, Ranking: one label for a text or a pair of texts ---

Texts = Sequence[data.LabelledText]


class Classification(Kind):
    """Share what Relations, YesNo and Ranking have in common: one label for a text or a pair of texts.

    Features    One row: [CLS] text [SEP], or [CLS] first [SEP] second [SEP]. What is too long is cut.
    Head        C logits, computed from the hidden state at [CLS] alone; the largest one is the label.
    Loss        Softmax over the C labels.
    Submission  A row of index and label for each row of the test file.
    Raw text    One text per line, or one line of JSON for a pair.
    """

    asked_label: int | None = None          # whose probability raw text is given; None: the likeliest label's

    def encode(self, examples: Examples, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        """Make one row of each example; of a pair that is too long, the longer part is cut piece by piece.

        With room for 6 pieces, parts of 3 and 9 pieces become 3 and 3, parts of 1 and 9 become 1 and 5.
        source    TF classification_tasks.truncate_seq_pair
        """
        features = []
        for number, example in enumerate(examples):
            is_pair = example.text_pair is not None
            first = list(tokenizer.encode(example.text))
            second = list(tokenizer.encode(example.text_pair or ""))
            room = max_length - 2 - is_pair                     # without [CLS] and a [SEP] for each part
            # Cut one piece at a time from the longer part: each keeps half of the room, or its whole length.
            is_cut = len(first) + len(second) > room
            while len(first) + len(second) > room:
                longer = first if len(first) > len(second) else second
                longer.pop()
            input_ids = [tokenizer.cls_id, *first, tokenizer.sep_id]
            if is_pair:
                input_ids += [*second, tokenizer.sep_id]
            features.append(Feature(number, input_ids, len(first) + 2, self.target(example), is_cut=is_cut))
        return features

    def target(self, example: Any) -> Any:
        """Return what the head is to learn for an example: the number of its label, where it has one."""
        return self.labels.index(example.label) if example.label in self.labels else IGNORED_LABEL

    def new_model(self, config: ElectraConfig) -> nn.Module:
        """Build the classifier: C logits for each row."""
        return SequenceClassifier(config, len(self.labels))

    def decode(self, examples: Examples, features: Features, outputs: Outputs) -> list:
        """Return the likeliest label of each example; outputs (C,)."""
        return [self.labels[int(output.argmax())] for output in outputs]

    def write(self, folder: Path, examples: Examples, predictions: Sequence[Any]) -> None:
        """Write predictions.tsv: rows of index and label, in the order of the test file.

            index   label
            s7.1    treats
        """
        rows = [f"{example.id}\t{label}" for example, label in zip(examples, predictions)]
        write_lines(folder / "predictions.tsv", ["index\tlabel", *rows])

    def errors(self, examples: Examples, features: Features, predictions: Sequence[Any]) -> Report:
        """List the texts with a wrong label, grouped by the kind of error, then by the two labels.

        false positives    there is no relation (or the answer is no), but one (or yes) was predicted
        false negatives    there is one (or the answer is yes), but none (or no) was predicted
        one for another    a relation was taken for another one
        """
        mistakes = []
        for example, predicted in zip(examples, predictions):
            if predicted == example.label:
                continue
            if example.label == self.negative:
                group = "false positives"
            elif predicted == self.negative:
                group = "false negatives"
            else:
                group = "one for another"
            lines = () if example.text_pair is None else (escape_markdown(example.text_pair),)
            mistakes.append(Mistake((group, f"{predicted} for {example.label}", example.text), lines))
        note = f"{len(mistakes)} of {len(examples)} texts have another label than the gold one."
        return Report(mistakes, note)

    @property
    def negative(self) -> str:
        """Return the label that means "none" or "no"; in every set of labels it stands first."""
        return self.task.negative or self.labels[0]

    def raw_examples(self, lines: Sequence[Line], tokenizer: Tokenizer) -> list:
        """Read each line as JSON with a question and a passage: its answer in words, or a candidate."""
        pairs = [read_pair(line) for line in lines]
        return [data.LabelledText("", question, "", passage) for question, passage in pairs]

    def results(self, examples: Examples, features: Features, outputs: Outputs, options: Options) -> Results:
        """Return a label of each text or pair, and its probability."""
        results = []
        for example, output in zip(examples, outputs):
            label = int(output.argmax()) if self.asked_label is None else self.asked_label
            asked = {"text": example.text}
            if example.text_pair is not None:
                asked = {"question": example.text, "passage": example.text_pair}
            score = round(float(softmax(output)[label]), 4)
            results.append({**asked, "label": self.labels[label], "score": score})
        return results

    def show(self, result: dict[str, Any]) -> str:
        """Return the label and its probability, followed by the text or pair."""
        text = result["text"] if "text" in result else f"{result['question']}\n{result['passage']}"
        return f"{result['label']} ({result['score']:.2f})  {text}"


class Relations(Classification):
    """Name the relation between the two marked entities of a sentence, or say that there is none.

    The published files have an index, the sentence with placeholders for the two entities, and the label:

        index   sentence                                label
        s7.1    @DRUG$ slowed @DISEASE$ in adults .     treats
        s7.2    @DRUG$ met @DISEASE$ by chance .        false
                              -> LabelledText("s7.1", "@DRUG$ slowed @DISEASE$ in adults .", "treats"), ...

    The model reads the placeholders as ordinary text; nothing else tells it which two entities are meant. A
    sentence with three entities has one row for each pair of them; a pair with two relations has two rows.

    Scores      One label, the negative one, means "no relation" and is never a hit: precision, recall and F1
                are micro-averaged over the others. Counting it would reward a model that never finds any.
    """

    purpose = "relations"

    def find_labels(self, examples: Texts) -> tuple[str, ...]:
        """List the labels that occur, the negative one first: the most frequent, unless the task names it."""
        counts = self.count_labels(examples)
        negative = self.task.negative or counts.most_common(1)[0][0]
        return (negative, *sorted(counts.keys() - {negative}))

    def describe_labels(self) -> str:
        """Say which labels were found, and which of them was taken for the negative one."""
        return f"{', '.join(self.labels)}; {self.negative} is taken for \"no relation\""

    def score(self, examples: Texts, predictions: Sequence[str]) -> Measures:
        """Compute micro-averaged precision, recall and F1 over all labels but the negative one."""
        gold = [example.label for example in examples]
        return precision_recall_f1(metrics.relation_scores(gold, predictions, self.negative))

    def raw_examples(self, lines: Sequence[Line], tokenizer: Tokenizer) -> list[data.LabelledText]:
        """Take a sentence with placeholders, such as @DRUG$ and @DISEASE$, from each line."""
        return [data.LabelledText("", line.text, "") for line in lines]


class YesNo(Classification):
    """Answer yes or no to a question, given its answer in words.

    The published files have a label (1 for yes, 0 for no), the question, and the answer in words:

        label   question                        answer
        1       Does jorganux slow fever?       Two trials found that it does.
                                     -> LabelledText("0", "Does jorganux ...?", "1", "Two trials ...")

    Scores      Most answers are yes, so a model that always says yes has a high accuracy. BioASQ takes the
                mean of two F1: of yes taken as the positive answer, and of no.
    """

    purpose = "yes/no questions"

    def score(self, examples: Texts, predictions: Sequence[str]) -> Measures:
        """Compute BioASQ's measures: the mean of both answers' F1, accuracy, and each answer by itself."""
        gold = ["yes" if example.label == "1" else "no" for example in examples]
        predicted = ["yes" if label == "1" else "no" for label in predictions]
        scores = metrics.bioasq_yesno_scores(gold, predicted)
        return {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy,
                **precision_recall_f1(scores.yes, "yes "), **precision_recall_f1(scores.no, "no ")}


class Ranking(Classification):
    """Rank candidate sentences by how probably they answer a question.

    The published files have a label, the question and one candidate per row; about 1 in 100 is right:

        label   question                        answer candidate
        0       What does jorganux slow?        Fever was common in adults.
        1       What does jorganux slow?        Jorganux slowed kelmarin fever.
                                  -> ..., Candidate("What does ...?", "What does ...?", "Jorganux ...", "1")

    Loss        With so few right candidates "wrong" is nearly always right. --class-weights weighs the right
                ones 99 to 1: Bio-ELECTRA's weighted re-ranker.
    Prediction  The probability of label 1, by which the candidates of each question are sorted.
    Scores      The mean of 1 / rank of the first right candidate (MRR); 1 if it is always ranked first.
    Submission  Rows of probability, question and candidate.
    """

    purpose = "ranking"
    own_options = ("class_weights",)
    asked_label = 1                         # how probably is the candidate right?

    def loss_settings(self, options: Options, device: Device) -> Sequence[Any]:
        """Return the weights of the two labels, where they are asked for.

        source    Bio-ELECTRA's weighted re-ranker: 1 and 99
        """
        if not options.class_weights:
            return ()
        return device.put(torch.tensor(CLASS_WEIGHTS))      # one tensor in a tuple: the loss's class_weights

    def decode(self, examples: Examples, features: Features, outputs: Outputs) -> list[float]:
        """Return the probability of label 1 of each candidate.

        The softmax of two logits a and b is a sigmoid: exp(b) / (exp(a) + exp(b)) = 1 / (1 + exp(-(b - a))).
        """
        return [float(sigmoid(output[1] - output[0])) for output in outputs]

    def score(self, examples: Sequence[data.Candidate], predictions: Sequence[float]) -> Measures:
        """Compute the mean over the questions of 1 / rank of the first right candidate."""
        groups: dict[str, list[tuple[float, int]]] = {}
        for example, probability in zip(examples, predictions):
            groups.setdefault(example.group, []).append((probability, int(example.label)))
        return {"mrr": metrics.reranking_mrr(groups)}

    def write(self, folder: Path, examples: Sequence[data.Candidate], predictions: Sequence[float]) -> None:
        """Write predictions.tsv: rows of probability, question and candidate, as in the test file."""
        rows = [f"{probability:.6g}\t{example.text}\t{example.text_pair}"
                for example, probability in zip(examples, predictions)]
        write_lines(folder / "predictions.tsv", ["probability\tquestion\tanswer_candidate", *rows])

    def errors(self, examples: Examples, features: Features, predictions: Sequence[float]) -> Report:
        """List the questions whose first right candidate is not ranked first, the worst-ranked on top."""
        # 1. The candidates of each question, best first.
        ranked: dict[str, list[data.Candidate]] = {}
        for _, example in sorted(zip(predictions, examples), key=lambda pair: -pair[0]):
            ranked.setdefault(example.group, []).append(example)
        # 2. The rank of the first right one (0 where there is none), and what was ranked first instead.
        placed: list[tuple[int, Mistake]] = []
        for question, candidates in ranked.items():
            ranks = [rank for rank, candidate in enumerate(candidates, start=1) if candidate.label == "1"]
            rank = ranks[0] if ranks else 0
            if rank == 1:
                continue
            group, lines = "no right candidate", []
            if rank:
                group, right = "not ranked first", escape_markdown(candidates[rank - 1].text_pair)
                lines.append(f"right, rank {rank} of {len(candidates)}: {right}")
            lines.append(f"ranked first: {escape_markdown(candidates[0].text_pair)}")
            placed.append((rank, Mistake((group, question), tuple(lines))))
        placed.sort(key=lambda item: -item[0])
        return Report([mistake for _, mistake in placed],
                      f"{len(placed)} of {len(ranked)} questions have no right candidate in the first place.")


# --- 2.4 Answers ---

class PieceSpot(NamedTuple):
    """Say which characters of the passage a position of a row stands for."""

    position: int               # counted from [CLS] at 0
    start: int                  # its first character in the passage
    end: int                    # the character after its last one
    is_best: bool               # whether this row is the window in which the piece has most context


class ScoredSpan(NamedTuple):
    """Hold a span that a window proposes."""

    score: float                # start logit + end logit
    start: int                  # its first character in the passage
    end: int                    # the character after its last one


class Answer(NamedTuple):
    """Hold a span of the passage, in characters, and its share of the probability of all spans kept."""

    text: str
    start: int
    end: int
    probability: float


Questions = Sequence[data.Question]
AnswerLists = Sequence[list[Answer]]           # for each question and passage, best first


class Answers(Kind):
    """Answer a question with a span of a passage.

    SQuAD's files hold passages with questions, and the characters at which the accepted answers begin.
    BioASQ's have the same form; a question there has several snippets as its passages, q1_000, q1_001, ...:

        {"context": "Jorganux slowed kelmarin fever.",
         "qas": [{"id": "q1", "question": "What did jorganux slow?",
                  "answers": [{"text": "kelmarin fever", "answer_start": 16}]}]}
              -> Question("q1", "What did jorganux slow?", "Jorganux slowed ...", [("kelmarin fever", 16)])

    Features    [CLS] question [SEP] window of the passage [SEP], with windows that overlap.
    Head        Two logits for each token, of the start and of the end of the answer.
    Loss        Two softmaxes over the positions. A window without the answer is trained to point at [CLS].
    Prediction  The best spans of all windows, best first, with their probabilities.
    Raw text    Lines of {"question": ..., "passage": ...}.

    Scores and submission files differ. SQuAD: exact match and F1 of the best answer; a JSON file {id: text}.
    BioASQ: up to five answers to each question, merged from all its snippets, by strict and lenient
    accuracy and MRR, over all questions and for each of the five test batches; one file for each batch.
    """

    purpose = "questions"
    has_labels = False

    @property
    def is_bioasq(self) -> bool:
        """Tell whether the task is scored as BioASQ does, and not as SQuAD does."""
        return self.task.metric == "mrr"                    # of the question tasks only BioASQ's have it

    def find_labels(self, examples: Questions) -> tuple[str, ...]:
        """List no label: answers are positions."""
        return ()

    def encode(self, examples: Questions, tokenizer: Tokenizer, max_length: int,
               stride: int = DOCUMENT_STRIDE, question_length: int = QUESTION_LENGTH) -> list[Feature]:
        """Write rows [CLS] question [SEP] window [SEP]; labels are the positions of the first gold answer.

        Say the question has 2 pieces and the passage is "a b c d e", of which "d e" is the answer. In rows of
        9 tokens, with a stride of 2, there are two windows: "a b c d" with the labels (0, 0), because e is
        missing, and "c d e" with (5, 6): [CLS] is at position 0, c at 4.

        stride            pieces between the starts of two windows of one passage; never over half a window
        question_length   pieces that the question is cut to
        raises            ValueError naming a question that leaves no room for its passage
        """
        features = []
        for number, example in enumerate(examples):
            # 1. Wordpieces of the question, and of the passage with the characters they stand for.
            question = tokenizer.encode(example.question)[:question_length]
            ids, offsets = tokenizer.encode_with_offsets(example.context)
            before = len(question) + 2                      # [CLS] question [SEP]
            capacity = max_length - before - 1              # and the last [SEP]
            if capacity < 2:
                raise ValueError(f"question {example.id} of {len(question)} pieces leaves no room for a "
                                 f"passage in {max_length} tokens: raise --max-length")
            # 2. The pieces that the gold answer touches: where it begins or ends inside one, it is widened.
            text, begin = example.answers[0] if example.answers else ("", 0)
            stop = begin + len(text)
            gold = [piece for piece, (start, end) in enumerate(offsets) if end > begin and start < stop]
            # 3. One row for each window. Without the whole gold answer its labels are (0, 0), that is [CLS].
            windows = split_windows(len(ids), capacity, min(stride, capacity // 2))
            window_of = best_windows(len(ids), windows)
            for window, (start, end) in enumerate(windows):
                labels = (0, 0)
                if gold and start <= gold[0] and gold[-1] < end:
                    labels = (before + gold[0] - start, before + gold[-1] - start)
                spots = [PieceSpot(before + piece - start, *offsets[piece], bool(window_of[piece] == window))
                         for piece in range(start, end)]
                input_ids = [tokenizer.cls_id, *question, tokenizer.sep_id, *ids[start:end], tokenizer.sep_id]
                features.append(Feature(number, input_ids, before, labels, spots))
        return features

    def describe_features(self, features: Features, max_length: int) -> str:
        """Say how many windows there are."""
        return f"{len(features):,} windows"

    def findable(self, examples: Questions, features: Features) -> list[list[Answer]]:
        """Find the gold answers of each example that decode() is able to give.

        Such an answer begins and ends where a piece does, has at most MAX_ANSWER_PIECES, and lies whole in
        the window to which its first piece belongs. For example, the piece "p53" cannot give "p5".
        """
        found: list[list[Answer]] = [[] for _ in examples]
        for feature in features:
            # Character at which an answer can begin -> position of the piece there; the same for its end.
            example = examples[feature.example]
            first = {spot.start: spot.position for spot in feature.spots if spot.is_best}
            last = {spot.end: spot.position for spot in feature.spots}
            for start, end in self.gold_places(example):
                if start in first and end in last and 0 <= last[end] - first[start] < MAX_ANSWER_PIECES:
                    found[feature.example].append(Answer(example.context[start:end], start, end, 1.0))
        return found

    @staticmethod
    def gold_places(example: data.Question) -> list[tuple[int, int]]:
        """List the characters (start, end) of the gold answers in the passage.

        Where gold is a list of synonyms (BioASQ's test sets), every place that reads like one counts.
        """
        if example.answers:
            return [(start, start + len(text)) for text, start in example.answers]
        places = []
        for synonym in filter(None, example.gold or []):
            found = re.finditer(re.escape(synonym), example.context, re.IGNORECASE)
            places += [match.span() for match in found]
        return places

    def announce(self, split: str, examples: Questions, features: Features) -> None:
        """Say how many questions have no gold answer, and how many have none that decode() is able to give.

        The gold answers that it can give are scored as if they were the predictions: no model can give more
        exact answers.
        """
        if without := sum(not (example.answers or example.gold) for example in examples):
            say(f"*** {without} questions of {split} have no gold answer and score 0: "
                "the golden files are missing ***")
        found = self.findable(examples, features)
        ceiling = self.score(examples, found)[self.task.metric]
        asked = {self.question_id(example) for example in examples}
        answered = {self.question_id(example) for example, answers in zip(examples, found) if answers}
        say(f"{split}: {len(asked - answered)} of {len(asked)} questions have no gold answer that is a span "
            f"of a window; gold fed back scores {self.task.metric} {100 * ceiling:.2f}, the ceiling of exact "
            "answers")

    def new_model(self, config: ElectraConfig) -> nn.Module:
        """Build the extractor: two logits for each token, of the start and of the end."""
        return SpanExtractor(config)

    def decode(self, examples: Questions, features: Features, outputs: Outputs,
               best: int = BEST_SPANS, max_pieces: int = MAX_ANSWER_PIECES) -> list[list[Answer]]:
        """Find the n best spans of each example over all its windows, best first.

        outputs   (T, 2) for each feature: start and end
        best      number of starts and of ends considered in each window, and of spans kept
        source    TF qa_metrics.SpanBasedQAScorer, without its reply "no answer": here every question gets its
                  best spans. A window that points at [CLS] also proposes spans, with low scores
        """
        # 1. In each window combine the best starts with the best ends. Keep a span if both ends lie in the
        #    passage, it is at most max_pieces long, and its first piece has its most context in this window.
        #    The last rule keeps two windows from proposing the same span.
        proposed: list[list[ScoredSpan]] = [[] for _ in examples]
        for feature, logits in zip(features, outputs):
            spot_at = {spot.position: spot for spot in feature.spots}
            starts = np.argsort(-logits[:, 0], kind="stable")[:best].tolist()
            ends = np.argsort(-logits[:, 1], kind="stable")[:best].tolist()
            for start, end in itertools.product(starts, ends):
                first, last = spot_at.get(start), spot_at.get(end)
                if first and last and first.is_best and start <= end < start + max_pieces:
                    span = ScoredSpan(float(logits[start, 0] + logits[end, 1]), first.start, last.end)
                    proposed[feature.example].append(span)
        # 2. Keep the best spans of all windows, each once: two pieces may stand for the same characters.
        #    Their probabilities are the softmax of their scores.
        answers: list[list[Answer]] = []
        for example, spans in zip(examples, proposed):
            ranked = sorted(spans, key=lambda span: -span.score)
            kept = list(dict.fromkeys(ranked))[:best]
            # The best score is subtracted, so that no exp overflows.
            exponentials = np.exp(np.array([span.score - kept[0].score for span in kept]))
            shares = exponentials / exponentials.sum()
            answers.append([Answer(example.context[span.start:span.end], span.start, span.end, float(share))
                            for span, share in zip(kept, shares)])
        return answers

    def question_id(self, example: data.Question) -> str:
        """Return what all passages of a question share: in BioASQ q1_000 and q1_001 both ask q1."""
        return metrics.bioasq_question_id(example.id) if self.is_bioasq else example.id

    def gold_texts(self, examples: Questions) -> dict[str, list[str]]:
        """List the accepted answers to each question: synonyms, or else the answers in its passages.

        BioASQ's training questions and SQuAD's have answers with their places. BioASQ's test questions have
        synonyms from the golden files: {"q1": ["kelmarin fever", "KF"]}. All snippets of a question share one
        list.
        """
        gold: dict[str, list[str]] = {}
        for example in examples:
            accepted = [text for text, _ in example.answers] if example.gold is None else example.gold
            known = gold.setdefault(self.question_id(example), [])
            known += [text for text in accepted if text not in known]
        return gold

    def predicted_texts(self, examples: Questions, predictions: AnswerLists) -> dict[str, list[str]]:
        """List the texts answered to each question, best first; for BioASQ up to five, of all snippets.

        Equal answers of several snippets are one answer, with the sum of their probabilities.
        """
        if not self.is_bioasq:
            return {example.id: [answer.text for answer in answers]
                    for example, answers in zip(examples, predictions)}
        snippets = {}
        for example, answers in zip(examples, predictions):
            snippets[example.id] = [(answer.text, answer.probability) for answer in answers]
        return metrics.merge_bioasq_snippets(snippets)

    def first_texts(self, examples: Questions, predictions: AnswerLists) -> dict[str, str]:
        """Return the best answer to each question; the empty text where there is none."""
        predicted = self.predicted_texts(examples, predictions)
        return {name: texts[0] if texts else "" for name, texts in predicted.items()}

    @staticmethod
    def batches(examples: Questions, predictions: AnswerLists
                ) -> Iterator[tuple[int, list[data.Question], AnswerLists]]:
        """Yield the number, the examples and the predictions of each BioASQ test batch."""
        for batch in sorted({example.batch for example in examples if example.batch is not None}):
            chosen = [number for number, example in enumerate(examples) if example.batch == batch]
            yield batch, [examples[number] for number in chosen], [predictions[number] for number in chosen]

    def score(self, examples: Questions, predictions: AnswerLists) -> Measures:
        """Compute SQuAD's exact match and F1, or BioASQ's measures over all questions and for each batch."""
        if not self.is_bioasq:
            predicted = self.first_texts(examples, predictions)
            return metrics.squad_scores(predicted, self.gold_texts(examples))._asdict()
        measures: Measures = {}
        everything = (None, examples, predictions)
        for batch, some, answers in [everything, *self.batches(examples, predictions)]:
            prefix = "" if batch is None else f"batch {batch} "
            scores = metrics.bioasq_factoid_scores(self.gold_texts(some), self.predicted_texts(some, answers))
            measures |= {prefix + measure: value for measure, value in scores._asdict().items()}
        return measures

    @staticmethod
    def closing_lines(results: Sequence[Measures]) -> list[str]:
        """Return ELECTRAMed's Table 10: the sum over the batches of our mean MRR / the best system's MRR.

        A system that is the best in all five batches has 5. Tasks without test batches have no such line.
        """
        # 1. The batches that were tested, and our MRR in each: the mean over the seeds.
        batches = [batch for batch in BEST_MRR if all(f"batch {batch} mrr" in result for result in results)]
        ours = [metrics.mean_and_sd([result[f"batch {batch} mrr"] for result in results]).mean
                for batch in batches]
        if not batches:
            return []
        # 2. The sum, in which the best system of a batch counts 1; also for the MRR that the paper reports.
        mrr = BATCH_MEASURES.index("mrr")
        papers = [BATCH_SCORES[batch][mrr] / 100 for batch in batches]
        best = [BEST_MRR[batch] for batch in batches]
        total = metrics.batch_score_total({"ours": ours, "best": best, "paper": papers})
        return [f"sum over {len(batches)} batches of MRR / best MRR (ELECTRAMed's Table 10): "
                f"{total['ours']:.3f}; ELECTRAMed {total['paper']:.3f}"]

    def write(self, folder: Path, examples: Questions, predictions: AnswerLists) -> None:
        """Write SQuAD's predictions.json, or predictions-batch-1.json, ... as BioASQ wants them.

            {"q1": "kelmarin fever"}                                                              SQuAD
            {"questions": [{"id": "q1", "type": "factoid", "exact_answer": [["fever"], ...]}]}    BioASQ
        """
        if not self.is_bioasq:
            write_json(folder / "predictions.json", self.first_texts(examples, predictions))
            return
        for batch, some, answers in self.batches(examples, predictions):
            questions = [{"id": name, "type": "factoid", "exact_answer": [[text] for text in texts]}
                         for name, texts in self.predicted_texts(some, answers).items()]
            write_json(folder / f"predictions-batch-{batch}.json", {"questions": questions})

    def errors(self, examples: Questions, features: Features, predictions: AnswerLists) -> Report:
        """List the questions whose best answer is wrong, grouped by where that answer stands.

        boundary               it overlaps a gold answer
        right, but not first   a later one of the answers is right
        elsewhere              neither, although a span of a window would have been right
        out of reach           no gold answer is a span of a window
        """
        # 1. Questions that a span can answer, and those where a best answer overlaps such a span.
        within_reach, overlapping = set(), set()
        for example, spans, answers in zip(examples, self.findable(examples, features), predictions):
            if spans:
                within_reach.add(self.question_id(example))
            for best, span in itertools.product(answers[:1], spans):
                if span.start < best.end and best.start < span.end and span.text != best.text:
                    overlapping.add(self.question_id(example))
        # 2. The questions answered wrongly. Texts are compared as the task's metric compares them.
        normal = str.lower if self.is_bioasq else metrics.normalise_squad_answer
        gold, predicted = self.gold_texts(examples), self.predicted_texts(examples, predictions)
        mistakes = []
        for name, question in {self.question_id(example): example.question for example in examples}.items():
            accepted = {normal(text) for text in gold[name]}
            given = predicted[name][:metrics.FACTOID_ANSWERS]
            is_right = [normal(text) in accepted for text in given]
            if is_right and is_right[0]:
                continue
            if name in overlapping:
                group = "boundary"
            elif any(is_right):
                group = "right, but not first"
            elif name in within_reach:
                group = "elsewhere"
            else:
                group = "out of reach"
            lines = (f"gold: {' | '.join(map(escape_markdown, gold[name])) or 'none'}",
                     f"predicted: {' | '.join(map(escape_markdown, given)) or 'none'}")
            mistakes.append(Mistake((group, question), lines))
        return Report(mistakes, f"{len(mistakes)} of {len(gold)} questions are answered wrongly.\n"
                      "Boundary: the best answer overlaps a gold one; out of reach: no gold answer is a "
                      "span of a window.")

    def raw_examples(self, lines: Sequence[Line], tokenizer: Tokenizer) -> list[data.Question]:
        """Take a question and its passage from each line."""
        return [data.Question(line.where, *read_pair(line), []) for line in lines]

    def results(self, examples: Questions, features: Features, outputs: Outputs, options: Options) -> Results:
        """Return the best answers to each question, with their characters in the passage.

            {"question": "What did ...?", "passage": "Jorganux slowed kelmarin fever.", "answers": [
                {"start": 16, "end": 30, "text": "kelmarin fever", "score": 0.8127}, ...]}
        """
        results = []
        for example, answers in zip(examples, self.decode(examples, features, outputs)):
            shown = [{"start": answer.start, "end": answer.end, "text": answer.text,
                      "score": round(answer.probability, 4)} for answer in answers[:ANSWERS_SHOWN]]
            results.append({"question": example.question, "passage": example.context, "answers": shown})
        return results

    def show(self, result: dict[str, Any]) -> str:
        """Return the question, and the passage with the best answer in bold."""
        return f"{result['question']}\n{embolden(result['passage'], result['answers'][:1])}"


# The kinds by the names that data.TASKS gives them.
KINDS: dict[str, type[Kind]] = {
    "ner": Tagging, "re": Relations, "classify": YesNo, "rank": Ranking, "qa": Answers}


# --- 3. Training one seed ---
#
# prepare (section 4) makes what all seeds share. train fits one model, evaluate scores it on a split, and
# run_seed writes all that belongs to a seed into its folder.

class Prepared(NamedTuple):
    """Hold what all seeds share: the task's examples and features, and the model they start from.

    Files are read and encoded once for all seeds, unless a file is cut and each seed tests another part.
    """

    kind: Kind
    tokenizer: Tokenizer
    config: ElectraConfig
    init: Path | None                           # None: from scratch
    device: Device
    examples: dict[str, list]                   # by split; dev may be missing
    features: dict[str, list[Feature]]
    test_set: str                               # name of the test set in tables

    @property
    def is_cut(self) -> bool:
        """Tell whether the test set was cut from another file, because none is published."""
        return self.test_set != PUBLISHED_TEST_SET


class Trained(NamedTuple):
    """Hold the result of one training."""

    model: nn.Module
    dev_scores: Measures                        # of the chosen epoch; empty without a development set
    log: list[str]                              # the lines of log.csv


def pad_features(features: Features, width: int, pad_id: int) -> data.Batch:
    """Pad features to a batch of rows of `width` tokens."""
    return data.pad_batch([(feature.input_ids, feature.first_length) for feature in features], width, pad_id)


def predict(model: nn.Module, features: Features, options: Options, pad_id: int, device: Device) -> Outputs:
    """Return the head's output for each feature, in their order, cut to the feature's tokens.

    Features of like length share a batch, whatever their order, so that little of a batch is padding. The
    rows of a batch are divided among the threads of a CPU (Device.side_by_side).
    """
    lengths = np.array([len(feature.input_ids) for feature in features])
    rng = np.random.default_rng(0)                      # the order of the batches, which changes nothing
    plan = data.plan_batches(lengths, EVALUATION_BATCH, options.max_length, rng, keep_rest=True)
    outputs: list[Any] = [None] * len(features)
    model.eval()
    for width, rows in plan:
        batch = pad_features([features[row] for row in rows], width, pad_id)
        arrays = [torch.from_numpy(array) for array in batch]

        def logits_of(part: range) -> np.ndarray:
            """Compute the logits of some of the rows; side_by_side calls this in each thread."""
            with torch.inference_mode(), device.autocast():
                inputs = device.put(*(array[part.start:part.stop] for array in arrays))
                return model(*inputs).float().cpu().numpy()

        logits = itertools.chain(*device.side_by_side(logits_of, range(len(rows))))
        for row, output in zip(rows, logits):
            # (T, ...) for a head that judges tokens, here without padding; (C,) for one that judges the row.
            outputs[row] = output[:lengths[row]] if output.ndim == 2 else output
    model.train()
    return outputs


def evaluate(model: nn.Module, split: str, prepared: Prepared, options: Options) -> tuple[Measures, list]:
    """Return scores and predictions on a split: features -> outputs -> predictions -> scores."""
    kind, examples, features = prepared.kind, prepared.examples[split], prepared.features[split]
    outputs = predict(model, features, options, prepared.tokenizer.pad_id, prepared.device)
    predictions = kind.decode(examples, features, outputs)
    return kind.score(examples, predictions), predictions


def train(seed: int, prepared: Prepared, options: Options) -> Trained:
    """Fine-tune once: update the model for some epochs, and choose one of them by the development set.

    Everything random is seeded by (seed, purpose, epoch or step): a seed gives the same model every time.
    returns   the model as it was after the epoch that did best on the development set (after the last one
              where there is none), its scores there, and the lines of log.csv
    """
    kind, features, device = prepared.kind, prepared.features["train"], prepared.device
    metric = kind.task.metric

    # 1. The model: a head drawn at random on top of the pre-trained encoder.
    torch.manual_seed(data.seed_for(seed, 0, "weights"))
    model: Any = kind.new_model(prepared.config)
    if prepared.init:
        load_encoder(model, prepared.init)
    model.to(device.kind).train()
    weights = list(model.parameters())
    settings = kind.loss_settings(options, device)

    # 2. The schedule: the learning rate rises over the first tenth of the steps, then falls to 0 in a
    #    straight line. Each layer has the rate of the layer above it times layer_decay.
    optimizer = Adam(parameter_groups(model, options.weight_decay, options.layer_decay))
    lengths = np.array([len(feature.input_ids) for feature in features])
    total_steps = options.epochs * math.ceil(len(features) / options.batch_size)
    warmup_steps = int(WARMUP_SHARE * total_steps)

    best_score, best_weights, dev_scores = -1.0, None, {}
    log = [f"epoch,loss,dev_{metric}"]
    progress, step = data.Progress(total_steps, f"steps of seed {seed}"), 0
    for epoch in range(options.epochs):
        # 3. An epoch: every feature once, in a new order, with features of like length in one batch.
        rng, losses = np.random.default_rng(data.seed_for(seed, epoch, "order")), []
        plan = data.plan_batches(lengths, options.batch_size, options.max_length, rng, keep_rest=True)
        for width, rows in plan:
            # 4. A batch on the host. Its loss is a mean over its labels, and its parts are computed side by
            #    side. So each part is divided by the number of labels (or the sum of their weights) of the
            #    whole batch: then the parts add up to the mean.
            chosen = [features[row] for row in rows]
            batch = [*pad_features(chosen, width, prepared.tokenizer.pad_id), kind.label_array(chosen, width)]
            arrays = [torch.from_numpy(array) for array in batch]
            total = model.total(*device.put(arrays[-1]), *settings)

            def losses_of(part: range) -> tuple[torch.Tensor]:
                """Compute the share of the loss of some rows; device.backward calls this in each thread."""
                *inputs, labels = device.put(*(array[part.start:part.stop] for array in arrays))
                device.seed(data.seed_for(seed, step, f"device {part.start}"))      # for dropout
                with device.autocast():
                    return (model.loss(model(*inputs), labels, *settings, total=total),)

            # 5. An update: gradients clipped to norm 1, then Adam. Losses stay on the device, because reading
            #    one would wait for its step.
            [loss] = device.backward(losses_of, weights, range(len(rows)))
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.update(learning_rate_at(step, total_steps, warmup_steps, options.learning_rate))
            losses.append(loss)
            step += 1
            progress.show(step)

        # 6. The development set chooses the epoch. The test set has no part in this.
        dev_score = ""
        if "dev" in prepared.examples:
            scores, _ = evaluate(model, "dev", prepared, options)
            if scores[metric] > best_score:
                best_score, dev_scores = scores[metric], scores
                best_weights = copy.deepcopy(model.state_dict())
            dev_score = f"{scores[metric]:.6g}"
            progress.show(step, f"epoch {epoch + 1}: dev {metric} {scores[metric]:.4f}")
        log.append(f"{epoch + 1},{torch.stack(losses).mean():.6g},{dev_score}")
    progress.finish()
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return Trained(model, dev_scores, log)


def run_seed(seed: int, prepared: Prepared, options: Options, folder: Path) -> Measures:
    """Fine-tune once and write all that belongs to the seed; return the test scores.

        log.csv          epoch,loss,dev_f1
                         1,0.412351,0.71209
        predictions.*    the test set in the task's own submission format
        errors.md        what is wrong with these predictions
        model/           the model of the chosen epoch, in the Hugging Face layout
        scores.json      {"dev": {"precision": 0.84, ...}, "test": {"precision": 0.83, ...}}
    """
    kind, test = prepared.kind, prepared.examples["test"]
    trained = train(seed, prepared, options)
    test_scores, predictions = evaluate(trained.model, "test", prepared, options)
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "log.csv", trained.log)
    kind.write(folder, test, predictions)
    title = f"Errors of {options.task}, {prepared.test_set}, seed {seed}"
    report = kind.errors(test, prepared.features["test"], predictions)
    write_errors(folder / "errors.md", title, report.mistakes, report.note)
    save_pretrained(trained.model, folder / "model", prepared.tokenizer, kind.labels)
    # The scores are written last: a folder that has them is a finished seed.
    record: dict[str, Any] = {"dev": trained.dev_scores, "test": test_scores}
    if prepared.is_cut:
        record["test_set"] = prepared.test_set
    data.write_bytes(folder / "scores.json", json.dumps(record, indent=1).encode())
    return test_scores


# --- 4. Seeds, search, tables ---

class Start(NamedTuple):
    """Say what a run starts from."""

    init: Path | None           # the folder whose weights to take; None: start from random weights
    like: Path | None           # the folder whose sizes and vocabulary to take; None: tiny, a new vocabulary

    def fingerprint(self) -> str:
        """Compute a short hash of sizes, vocabulary and, unless the run starts from scratch, weights.

        A folder may keep its name while the model in it is replaced. The hash tells this, and the run stops:
        seeds that started from two models must not be averaged.
        """
        digest = hashlib.sha256(b"" if self.init else b"from scratch")
        weights = ("model.safetensors", "pytorch_model.bin") if self.init else ()
        for name in ("config.json", "vocab.txt", *weights):
            if self.like and (self.like / name).is_file():
                digest.update((self.like / name).read_bytes())
        return digest.hexdigest()[:16]


def find_start(options: Options) -> Start:
    """Find the model that --init and --like name; without them runs/pretrain, if it is there.

    A run from scratch is possible, because comparisons need one, but it is always announced.
    """
    default = "runs/pretrain" if Path("runs/pretrain/model/config.json").is_file() else None
    init, like = options.init or default, options.like or default
    if init and init != "none":
        return Start(model_folder(init), model_folder(init))
    remedy = "" if init else "Run train_pretrain.py first, or pass --init. "
    say(f"*** FROM SCRATCH: no pre-trained model is used, the scores will be far lower. {remedy}***")
    return Start(None, model_folder(like) if like else None)


def fetch_absent(options: Options) -> None:
    """Download the published files where the train or test file is not there.

    raises    FileNotFoundError saying what to put where, when they are not to be downloaded or not published
    """
    try:
        for split in ("train", "test"):
            data.find_split(options.task, split, options.data)
    except FileNotFoundError:
        if options.offline or not options.data or not data.missing_files(options.task, options.data):
            raise
        data.fetch_task(options.task, options.data)


def cut_published(options: Options, seed: int, problem: Exception) -> tuple[dict[str, list], str]:
    """Cut the one published file into parts; raise the problem again where there is no such file."""
    parts = data.TASKS[options.task].parts
    if not parts:
        raise problem
    try:
        whole = data.read_task(options.task, parts.split, options.data)
    except FileNotFoundError:
        raise problem from None
    test_set = f"part {seed % parts.number + 1} of {parts.number} of its {parts.split} file"
    test_set += ": not the published split"
    say(f"*** {problem}; so the test set is {test_set} ***")
    return data.cut_splits(data.TASKS[options.task], whole, seed), test_set


def read_dev(options: Options, test: list) -> list | None:
    """Read the development set; return None where there is none, or where it is the test set."""
    try:
        dev = data.read_task(options.task, "dev", options.data)
    except FileNotFoundError as error:
        say(f"{error}; without it the last epoch counts")
        return None
    if dev == test:             # gad and the yes/no questions were published with the same file twice
        say("the development set is the test set and must choose nothing; the last epoch counts")
        return None
    return dev


def read_splits(options: Options, seed: int) -> tuple[dict[str, list], str]:
    """Read train, dev (where there is one) and test; return them, and the name of the test set.

    Some data sets have no test file, or none that can be downloaded. Then one of their files is cut into
    parts, and each seed takes another part for testing.
    """
    # 1. Find or download the files. Where that fails, a task with `parts` is cut from the file that is there.
    try:
        if not options.task.startswith("demo-"):
            fetch_absent(options)
    except (OSError, ValueError) as problem:
        return cut_published(options, seed, problem)
    # 2. The published split. Without a development set, or where it equals the test set, no epoch is chosen:
    #    the model after the last epoch is used.
    train, test = (data.read_task(options.task, split, options.data) for split in ("train", "test"))
    dev = read_dev(options, test)
    examples = {"train": train, "test": test} if dev is None else {"train": train, "dev": dev, "test": test}
    return examples, PUBLISHED_TEST_SET


def prepare(options: Options, start: Start, seed: int) -> Prepared:
    """Read the task's files and the tokenizer, and make the features; print what was cut or split."""
    # 1. Examples, and the labels to tell apart.
    device = Device.choose(options.device, options.precision)
    examples, test_set = read_splits(options, seed)
    task = data.TASKS[options.task]
    kind = KINDS[task.kind](task, examples["train"])
    if kind.labels != task.labels:
        say(f"labels of the training set: {kind.describe_labels()}")

    # 2. Vocabulary and sizes: those of the model, or what the training set gives.
    if start.like:
        tokenizer, config = Tokenizer.from_file(start.like), read_config(start.like)
    else:
        tokenizer = Tokenizer(learn_vocab([kind.text_of(example) for example in examples["train"]],
                                          SCRATCH_VOCAB_SIZE))
        config = dataclasses.replace(PRESETS["tiny"], vocab_size=len(tokenizer.pieces))
    config = dataclasses.replace(config, hidden_dropout_prob=options.dropout,
                                 attention_probs_dropout_prob=options.dropout)
    if options.precision is None:
        device.mention_bfloat16(config.hidden_size)
    if options.max_length > config.max_position_embeddings:
        raise ValueError(f"--max-length {options.max_length}: the model has {config.max_position_embeddings} "
                         "positions")

    # 3. Features of each split.
    features = {}
    for split, part in examples.items():
        # Say at once what does not fit or cannot be found, not after hours of training.
        features[split] = kind.encode(part, tokenizer, options.max_length)
        note = kind.describe_features(features[split], options.max_length)
        say(f"{options.task} {split}: {len(part):,} examples, {note}")
        kind.announce(split, part, features[split])
    return Prepared(kind, tokenizer, config, start.init, device, examples, features, test_set)


def score_table(options: Options, results: list[Measures], test_set: str = PUBLISHED_TEST_SET) -> str:
    """Write one line for each measure, in percent: mean and standard deviation, and the papers' figures.

        ncbi-disease, test set, 2 seeds
                                        mean      sd  ELECTRAMed Bio-ELECTRA          ++    ++ tuned
        precision                      60.00   14.14       85.87
        f1                             65.00    7.07       87.54       78.32       80.01       84.85
        f1 of each seed: 60.00, 70.00

    For BioASQ the sum over the batches is the last line.
    """
    task = data.TASKS[options.task]
    # 1. A column for each paper that reports a score of this task.
    published = {measure: dict(zip(PAPERS, row)) for measure, row in PUBLISHED.get(options.task, {}).items()}
    papers = [paper for paper in PAPERS if any(row.get(paper) for row in published.values())]
    lines = [f"{options.task}, {test_set}, {len(results)} seed{'s' * (len(results) > 1)}",
             f"{'':28}{'mean':>8}{'sd':>8}" + "".join(f"{paper:>12}" for paper in papers)]
    # 2. A line for each measure. Types of entities come from gold and predicted tags, so one seed may have a
    #    type that the others lack; its measures count as 0 for these.
    for measure in dict.fromkeys(measure for result in results for measure in result):
        mean, sd = metrics.mean_and_sd([result.get(measure, 0.0) for result in results])
        line = f"{measure:28}{100 * mean:8.2f}{100 * sd:8.2f}"
        for paper in papers:
            score = published.get(measure, {}).get(paper)
            line += f"{score:12.2f}" if score else " " * 12
        lines.append(line.rstrip())
    # 3. The score of each seed.
    every = ", ".join(f"{100 * result[task.metric]:.2f}" for result in results)
    lines.append(f"{task.metric} of each seed: {every}")
    return "\n".join([*lines, *KINDS[task.kind].closing_lines(results)])


def claim(options: Options, start: Start, has_begun: bool) -> None:
    """Record the options in the run folder; once part of the run is finished, refuse options that differ.

    Otherwise a second call, with another batch size, would add its seeds to those of the first, unnoticed.
    """
    record = {**dataclasses.asdict(options), "starting_model": start.fingerprint()}
    data.claim_run_folder(Path(options.out), record, FIXED if has_begun else ())


def run_seeds(options: Options) -> tuple[str, list[Measures]]:
    """Fine-tune with every seed that is not finished yet; return the table and the test scores.

    OUT then holds seed-0/, seed-1/, ... (run_seed), options.json, table.txt, and in model/ the model to use.
    """
    out, metric = Path(options.out), data.TASKS[options.task].metric
    start = find_start(options)
    claim(options, start, any(out.glob("seed-*/scores.json")))

    # 1. Train what is not there. Where a file is cut, every seed tests another part; but a search has left
    #    out part 0, and all its seeds test that one.
    folders = [out / f"seed-{seed}" for seed in range(options.seeds)]
    prepared = None
    for seed, folder in enumerate(folders):
        if (folder / "scores.json").is_file():
            continue
        if prepared is None or (prepared.is_cut and not options.search):
            prepared = prepare(options, start, 0 if options.search else seed)
        scores = run_seed(seed, prepared, options, folder)
        say(f"seed {seed}: test {metric} {100 * scores[metric]:.2f}")

    # 2. The table of all seeds, also of those that were finished before.
    results = [json.loads((folder / "scores.json").read_bytes()) for folder in folders]
    tests = [result["test"] for result in results]
    test_sets = dict.fromkeys(result.get("test_set", PUBLISHED_TEST_SET) for result in results)
    table = score_table(options, tests, "; ".join(test_sets))
    write_lines(out / "table.txt", [table])

    # 3. The model to use: that of the seed with the best development score (the test set never chooses).
    #    Without a development set all seeds count 0, and max takes the first.
    best = max(range(options.seeds), key=lambda seed: results[seed]["dev"].get(metric, 0.0))
    (out / "model").mkdir(exist_ok=True)
    for file in (folders[best] / "model").iterdir():
        data.write_bytes(out / "model" / file.name, file.read_bytes())
    held = ", ".join(sorted(os.listdir(folders[best])))
    say(f"{folders[best]} holds {held}; to read a text with its model: "
        f"python train_finetune.py --out {out} --predict FILE")
    return table, tests


def draw_trials(options: Options) -> list[Options]:
    """Draw --search points of the grid; a larger number draws the same points first.

    Each has a folder of its own in OUT, such as learning-rate-0.0001-epochs-5-batch-size-32.
    """
    points = list(itertools.product(*GRID.values()))
    random.Random(0).shuffle(points)
    trials = []
    for point in points[:options.search]:
        values = dict(zip(GRID, point))
        name = "-".join(f"{key.replace('_', '-')}-{value:g}" for key, value in values.items())
        trials.append(dataclasses.replace(options, out=str(Path(options.out) / name), **values))
    return trials


def search(options: Options) -> Options:
    """Try random points of the grid, each with seed 0; return the options of the one with the best dev score.

    run_seeds then writes its seeds into that trial's folder. A trial is never run twice: an interrupted
    search continues, and one with a larger number adds trials. search.csv lists the trials, the best first:

        learning_rate,epochs,batch_size,dev_f1
        0.0001,15,12,0.861204

    source    Bio-ELECTRA's grid; it was searched by hyperopt there, at random here
    """
    # 1. Each trial writes its development scores last: a folder with dev.json is a finished trial.
    metric, start = data.TASKS[options.task].metric, find_start(options)
    prepared, scored = None, []
    for number, trial in enumerate(draw_trials(options), start=1):
        folder = Path(trial.out)
        record = folder / "dev.json"
        claim(trial, start, record.is_file())
        if not record.is_file():
            prepared = prepared or prepare(trial, start, 0)         # the same for all points of the grid
            if "dev" not in prepared.examples:
                raise ValueError(f"--search: {options.task} has no development set to choose by")
            data.write_bytes(record, json.dumps(train(0, prepared, trial).dev_scores, indent=1).encode())
        score = json.loads(record.read_bytes())[metric]
        say(f"trial {number} of {options.search}: {folder.name}: dev {metric} {100 * score:.2f}")
        scored.append((score, trial))
    # 2. The table of the trials, and the best one.
    scored.sort(key=lambda pair: -pair[0])                          # of equal ones the first that was drawn
    lines = [",".join([*GRID, f"dev_{metric}"])]
    for score, trial in scored:
        lines.append(",".join([*(f"{getattr(trial, name):g}" for name in GRID), f"{score:.6g}"]))
    write_lines(Path(options.out) / "search.csv", lines)
    _, best = scored[0]
    return best


class CurvePoint(NamedTuple):
    """Hold a row of curve.csv: what fine-tuning scores from one pre-training model, in percent."""

    step: int                   # pre-training steps
    mean: float                 # over the seeds
    low: float                  # the 95 % interval of the mean
    high: float


def score_curve(options: Options) -> str:
    """Fine-tune from every model that a pre-training run kept; write curve.csv and curve.svg.

    Does more pre-training help downstream? Each model is fine-tuned with all seeds, in a folder of its own.

        step,f1,low,high
        20000,78.12,77.40,78.84

    returns   the lines of curve.csv
    source    Bio-ELECTRA, Figure 1
    """
    run_folder, out = Path(options.init or "runs/pretrain"), Path(options.out)
    models, metric = sorted(run_folder.glob("models/step-*")), data.TASKS[options.task].metric
    if not models:
        raise ValueError(f"--curve: {run_folder / 'models'} holds no models: expected a run of "
                         "train_pretrain.py, which keeps one every --keep-every steps")
    points = []
    for model in models:
        _, results = run_seeds(dataclasses.replace(options, init=str(model), out=str(out / model.name)))
        values = [100 * result[metric] for result in results]
        low, high = metrics.confidence_interval(values)
        step = int(model.name.removeprefix("step-"))
        points.append(CurvePoint(step, metrics.mean_and_sd(values).mean, low, high))
    lines = [f"step,{metric},low,high"]
    lines += [f"{point.step},{point.mean:.2f},{point.low:.2f},{point.high:.2f}" for point in points]
    write_lines(out / "curve.csv", lines)
    draw_curve(points, out / "curve.svg", options.task, metric)
    return "\n".join(lines)


def draw_curve(points: list[CurvePoint], path: Path, title: str, metric: str) -> None:
    """Draw means and intervals against pre-training steps, where matplotlib is installed.

    It is an extra package. Without it, curve.csv still holds the same figures.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say(f"no {path.name}: matplotlib is not installed (pip install matplotlib)")
        return
    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot(xlabel="pre-training steps", ylabel=f"{metric}, percent", title=title)
    steps, means, lows, highs = zip(*points)
    axes.plot(steps, means, marker="o")
    axes.fill_between(steps, lows, highs, alpha=0.2)
    figure.savefig(path)


# --- 5. Raw text ---
#
# Raw text goes the same way as a test set: the kind makes examples of its lines, encodes them, and decodes
# the outputs. Only the last step differs: results are printed for each line, and nothing is scored.

class Predictor(NamedTuple):
    """Hold a fine-tuned model, and what is needed to read text with it."""

    model: nn.Module
    kind: Kind
    tokenizer: Tokenizer
    options: Options
    device: Device

    def predict(self, lines: list[Line]) -> Results:
        """Return what the model finds in each line: lines -> examples -> features -> outputs -> results."""
        examples = self.kind.raw_examples(lines, self.tokenizer)
        features = self.kind.encode(examples, self.tokenizer, self.options.max_length)
        if any(feature.is_cut for feature in features):
            say(f"of {len(examples)} texts, {self.kind.describe_features(features, self.options.max_length)}")
        outputs = predict(self.model, features, self.options, self.tokenizer.pad_id, self.device)
        return self.kind.results(examples, features, outputs, self.options)


def open_predictor(options: Options) -> Predictor:
    """Load the model of a fine-tuning run, with the options it was trained with.

    The labels stand in its config.json, so that nothing of the task's data is needed.
    """
    folder = model_folder(options.out)
    try:
        labels = json.loads((folder / "config.json").read_bytes()).get("id2label", {}).values()
        trained = json.loads((Path(options.out) / "options.json").read_bytes())
        options = dataclasses.replace(options, task=trained["task"], max_length=trained["max_length"],
                                      tag_loss=trained["tag_loss"])
        task = data.find_task(options.task)
        kind = KINDS[task.kind](task._replace(labels=tuple(labels)))
        if kind.has_labels and not labels:
            raise ValueError("config.json has no id2label")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{options.out}: not a run of train_finetune.py ({error!r}): "
                         "fine-tune first, or pass its folder by --out") from None
    device = Device.choose(options.device, options.precision)
    model = kind.new_model(read_config(folder))
    load_weights(model, folder)
    return Predictor(model.to(device.kind), kind, Tokenizer.from_file(folder), options, device)


def input_lines(path: str) -> Iterator[Line]:
    """Yield the lines of a file, or of standard input for "-", that are not blank.

    raises    ValueError naming the file where it is not UTF-8
    """
    try:
        lines = enumerate(sys.stdin, start=1) if path == "-" else data.numbered_lines(path)
        for number, text in lines:
            if text.strip():
                yield Line(f"{path} line {number}", text.strip())
    except UnicodeDecodeError as error:                 # of a file, numbered_lines raises its own ValueError
        raise ValueError(f"standard input: not UTF-8 ({error.reason}): convert it to UTF-8") from None


def predict_lines(options: Options) -> None:
    """Print one JSON line for each line of a file or of standard input; on a terminal, marked text.

    Lines are read in blocks: rows of like length then share a batch, and a file of any size fits in memory.
    """
    predictor = open_predictor(options)
    lines = input_lines(str(options.predict))
    is_dialogue = options.predict == "-" and sys.stdin.isatty()     # then each line is answered at once
    while block := list(itertools.islice(lines, 1 if is_dialogue else READ_AT_ONCE)):
        for result in predictor.predict(block):
            is_for_people = sys.stdout.isatty()
            shown = predictor.kind.show(result) if is_for_people else json.dumps(result, ensure_ascii=False)
            print(shown, flush=is_dialogue)


# --- 6. Command line ---

def run(options: Options) -> int:
    """Do what the options ask for, and print its result on standard output; return 0.

    What is said meanwhile goes to standard error, so that results can be redirected into a file.
    """
    if options.predict is not None:
        predict_lines(options)
    elif options.curve:
        print(score_curve(options), flush=True)
    else:
        table, _ = run_seeds(search(options) if options.search else options)
        print(table, flush=True)
    return 0


def check(options: Options) -> None:
    """Refuse options that do not go together; raise ValueError naming them."""
    # 1. Options that only one kind of task has: with another kind they would silently do nothing.
    task = data.TASKS[options.task]
    for kind in KINDS.values():
        for name in kind.own_options:
            is_given = getattr(options, name) != getattr(Options(), name)
            if is_given and name not in KINDS[task.kind].own_options:
                raise ValueError(f"--{name.replace('_', '-')} is for {kind.purpose}; "
                                 f"{options.task} is of the kind {task.kind}")
    # 2. Of these three things only one can be done at a time.
    asked = [options.search is not None, options.curve, options.predict is not None]
    if asked.count(True) > 1:
        raise ValueError("--search, --curve and --predict are three different things to do: choose one")
    # 3. A search draws no more points than the grid has, and draws all the values itself.
    size = math.prod(map(len, GRID.values()))
    if options.search and options.search > size:
        raise ValueError(f"--search {options.search}: the grid has {size} points")
    given = [name for name in GRID if getattr(options, name) is not None]
    if options.search and given:
        raise ValueError(f"--search draws --{given[0].replace('_', '-')} itself: drop one of the two")


def complete(options: Options) -> Options:
    """Check the options, and fill in from the task's protocol what the command line left open.

    In Bio-ELECTRA's protocol, for example, the batch size of all tasks is 12, but ChemProt has an entry of
    its own with 24. Options that the command line gives stay as they are.
    """
    check(options)
    task = data.TASKS[options.task]
    protocol = options.protocol or ("bio-electra" if "bio_electra" in task.source else "electramed")
    values: dict[str, Any] = {"out": f"runs/finetune/{options.task}", "protocol": protocol}
    for part in ("", task.kind, options.task):              # from what holds for all to what holds for one
        values |= PROTOCOLS[protocol].get(part, {})
    still_open = {name: value for name, value in values.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **still_open)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; return the exit status."""
    # Options are parsed inside the command, because their errors too become one line and exit status 2.
    return data.run_command(lambda: run(complete(
        data.parse_options(Options, "Fine-tune ELECTRA on a task.", arguments))))


if __name__ == "__main__":
    sys.exit(main())
