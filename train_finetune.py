"""Fine-tune a pre-trained ELECTRA on a task of the papers, and score it as they do.

After reading this file you hold the second half of both papers: a head on top of the discriminator,
layer-wise learning rates, the choice of the best epoch on the development set, several seeds, and for each
kind of task its windows, its decoding, its metric, its submission format and its list of errors.

    python train_finetune.py --task demo-ner                                    # after train_pretrain.py
    python train_finetune.py --task ncbi-disease --data corpora --init runs/med --seeds 5
    python train_finetune.py --out runs/finetune/ncbi-disease --predict notes.txt            # read raw text

Where it stands: data.py reads task files into examples, electramed.py holds the heads, metrics.py the scores;
this file connects them. A kind of task (entities, relations, yes/no questions, ranking, answers) is one class
in section 2, which tells its whole story in the order in which data flows:

    examples -> features (rows for the model) -> head -> labels and loss      while training
    output of the head -> predictions -> scores, submission file, errors.md   while testing
    lines of text -> examples -> features -> output -> results                with --predict

A new kind is one new class there, a reader in data.py and a metric. What the other sections know of single
kinds are the options that only one kind has (--negative, --tag-loss, --class-weights). `--init` takes a
pre-training run, a fine-tuned run (SQuAD first, then BioASQ), or a published folder. The test set is scored
once per seed, after the epoch was chosen. Left out: one model for several kinds of task at once, because
neither paper has one.
Sources: ELECTRAMed Tables 5 and 7-10; Bio-ELECTRA, its paper and released scripts; "TF" is the finetune
folder of the official TensorFlow code (its qa, tagging and classification tasks).

    1. Options and protocol     2. The kinds of task          3. Training one seed
    4. Seeds, search, tables    5. Raw text                   6. Command line
"""
from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The import of torch takes seconds, on a slow disk up to twenty: who waits at a terminal is told why.
if __name__ == "__main__" and sys.stderr and sys.stderr.isatty():
    print("importing torch", file=sys.stderr)

# This comes before torch: it sets how torch's threads wait, and what Ctrl-C does meanwhile.
from train_pretrain import flag, option, parse_options, record_run

import numpy as np
import torch
from torch import nn

import data
import metrics
from data import DATA_ROOT, Task, say
from electramed import (
    IGNORED_LABEL, PRECISIONS, PRESETS, Adam, Device, ElectraConfig, SequenceClassifier, SpanExtractor,
    TokenTagger, learning_rate_at, load_encoder, load_head, model_folder, pad_rows, parameter_groups,
    read_config, save_pretrained, weights_files, written_whole)
from tokenizer import Tokenizer, learn_vocab, read_object


# --- 1. Options and protocol ---

WARMUP_SHARE = 0.1              # of all steps
QUESTION_LENGTH = 64            # pieces that a question is cut to
DOCUMENT_STRIDE = 128           # pieces between the starts of two windows of a passage
MAX_ANSWER_PIECES = 30          # TF configure_finetuning.py: longer answers are not considered
BEST_SPANS = 20                 # starts and ends considered in each window, and spans kept for each example
ANSWERS_SHOWN = 5               # answers that --predict prints for each question
EVALUATION_BATCH = 64           # rows; it changes the speed, not the result
READ_AT_ONCE = 256              # lines of a file that --predict reads as one block
SCRATCH_VOCAB_SIZE = 4000       # pieces learnt from the training set where there is no vocabulary
TASK_FILE = "task.json"         # in a fine-tuned model's folder: what --predict needs to know of its training
# What a label that means "no relation" is called, the likeliest first.
NEGATIVE_NAMES = ("false", "none", "no_relation", "no", "negative", "0", "na", "n/a")

CLASS_WEIGHTS = (1.0, 99.0)     # of wrong and right candidates, with --class-weights: a weighted mean

# ELECTRAMed, Table 5. The paper gives no epochs: 3 and, for questions, 2 are those of official ELECTRA.
TABLE_5 = {"epochs": 3, "batch_size": 32, "max_length": 128, "learning_rate": 5e-5, "layer_decay": 0.8,
           "weight_decay": 0.0, "dropout": 0.1}
# The entry "" holds for all tasks; that of a kind overrides it, and that of a task overrides its kind's. For
# example, SQuAD's batch size is that of "qa" in ELECTRAMed's protocol, and that of "" in Bio-ELECTRA's.
PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "electramed": {
        "": TABLE_5, "bioasq7b": {"learning_rate": 5e-6},
        "qa": {"epochs": 2, "batch_size": 16, "max_length": 384, "learning_rate": 3e-5}},
    "bio-electra": {
        "": {**TABLE_5, "batch_size": 12, "learning_rate": 1e-4, "weight_decay": 0.01},
        "qa": {"epochs": 2, "max_length": 192}, "classify": {"max_length": 192}, "rank": {"max_length": 64},
        "linnaeus": {"max_length": 192}, "gad": {"batch_size": 32}, "chemprot": {"batch_size": 24},
        "chemprot-tsv": {"batch_size": 24}}}
# The grid of Bio-ELECTRA, from which --search draws.
GRID: dict[str, tuple[Any, ...]] = {"learning_rate": (1e-5, 5e-5, 1e-4, 5e-4), "epochs": (3, 5, 15, 20),
                                    "batch_size": (12, 24, 32, 64)}
# The demo tasks are small, and so is the model of `python train_pretrain.py`: larger steps, more epochs.
DEMO = {"epochs": 10, "batch_size": 16, "learning_rate": 2e-4}
PROTOCOLS["electramed"] |= {"demo-ner": DEMO, "demo-re": DEMO, "demo-qa": {**DEMO, "max_length": 256}}

# Test scores of the papers in percent, with the standard deviation over ten seeds where the paper has one
# (Bio-ELECTRA divides by n, our tables by n - 1). ELECTRAMed, Tables 7 to 9; Bio-ELECTRA, Tables 2 to 7.
# "++" is Bio-ELECTRA++; "++ tuned" has searched hyper-parameters, all others their default ones; "weighted"
# stands for class weights. A line with a colon says what the lines below it hold: all measures of the first
# paper, then all of the second, and so on. A line may hold the measures of a part of a task: "yesno yes" has
# "yes precision", "yes recall" and "yes f1".
PAPER_SCORES = """
ELECTRAMed: precision, recall, f1
ncbi-disease  85.87  89.29  87.54
bc5cdr        88.76  91.34  90.03
jnlpba        69.33  78.56  73.65
chemprot      75.47  70.67  72.94
ddi2013       80.07  78.24  79.13
Bio-ELECTRA, ++: precision, recall, f1
ncbi-disease  73.47 (0.92)  83.88 (0.64)  78.32 (0.52)  75.44 (1.06)  85.19 (0.77)  80.01 (0.68)
bc4chemd      82.76 (0.42)  83.51 (0.46)  83.13 (0.18)  83.65 (0.18)  83.95 (0.27)  83.80 (0.19)
bc2gm         67.54 (0.48)  75.03 (0.16)  71.08 (0.23)  69.34 (0.43)  76.09 (0.28)  72.55 (0.30)
linnaeus      85.90 (1.53)  82.38 (0.72)  84.10 (0.79)  86.01 (1.55)  84.07 (0.92)  85.02 (0.59)
chemprot-tsv  61.38 (1.90)  60.40 (3.12)  60.86 (2.22)  64.66 (1.63)  63.85 (2.35)  64.22 (1.40)
gad           72.99 (1.09)  92.70 (1.58)  81.66 (0.73)  72.48 (0.55)  91.71 (1.17)  80.96 (0.35)
yesno yes     87.99 (2.95)  97.94 (1.35)  92.66 (1.56)  91.24 (1.57)  95.29 (2.31)  93.19 (0.75)
yesno no      77.14 (26.47)  46.92 (16.39)  58.18 (19.91)  78.91 (7.41)  63.85 (7.92)  69.84 (3.87)
++ tuned: precision, recall, f1
ncbi-disease  83.40 (0.79)  86.36 (0.65)  84.85 (0.65)
bc4chemd      88.45 (0.17)  87.44 (0.20)  87.94 (0.09)
bc2gm         77.73 (0.38)  80.87 (0.34)  79.27 (0.31)
linnaeus      93.77 (1.25)  96.28 (0.65)  95.01 (0.84)
chemprot-tsv  73.23 (0.86)  71.46 (0.79)  72.33 (0.71)
Bio-ELECTRA, ++: exact_match, f1
bioasq8b      57.51 (0.88)  66.87 (0.63)  57.93 (0.66)  67.48 (0.44)
Bio-ELECTRA, ++, weighted, ++ weighted: mrr
rerank        32.5 (1.1)  33.5 (1.7)  33.2 (1.3)  33.2 (1.3)
ELECTRAMed: strict_accuracy, lenient_accuracy, mrr
bioasq7b batch 1  44.62  51.28  47.95
bioasq7b batch 2  46.40  62.40  53.16
bioasq7b batch 3  37.93  58.62  46.62
bioasq7b batch 4  61.18  82.35  69.55
bioasq7b batch 5  24.57  44.00  31.42
"""
# MRR of the best system in each test batch of BioASQ 7b (ELECTRAMed, Table 9); the sum over the batches of a
# system's MRR / this MRR (Table 10).
BEST_MRR = {1: 0.4795, 2: 0.5667, 3: 0.5115, 4: 0.6955, 5: 0.3638}
TABLE_10 = "ELECTRAMed 4.713, KU-DMIS-1 4.542, auth-qa-1 2.737, LabZhu 2.650, baseline 1.424"


def published_scores(task: str) -> dict[str, dict[str, str]]:
    """Return the papers' scores of a task: measure -> paper -> score, such as "78.32 (0.52)"."""
    found: dict[str, dict[str, str]] = {}
    for row in PAPER_SCORES.strip().splitlines():
        if ":" in row:
            papers, measures = (names.split(", ") for names in row.split(": "))
        elif row.split()[0] == task:
            name, *scores = re.split("  +", row)
            part = name.removeprefix(task)                  # " batch 1" of "bioasq7b batch 1", else ""
            for (paper, measure), score in zip(itertools.product(papers, measures), scores):
                found.setdefault(f"{part} {measure}".strip(), {})[paper] = score
    return found


@dataclasses.dataclass(frozen=True)
class Options:
    """Hold the command line. complete() fills in options that are None from the protocol of the task.

    train_pretrain.parse_options makes a flag of each field: batch_size is --batch-size.
    """

    # What to train on, from what, and where to write.
    task: str = option("demo-ner", "what to fine-tune on", choices=list(data.TASKS))
    # From here to the end of this class the name `data` means the field below, and not the module.
    data: str | None = option(DATA_ROOT, "folder of the published data sets, or of train, dev and test files")
    offline: bool = option(False, "do not download a published data set that is not there")
    protocol: str = option(None, "paper whose hyper-parameters to use (default: by task)", list(PROTOCOLS))
    init: str | None = option(None, "run or model folder to start from (default: runs/pretrain, if there)")
    scratch: bool = option(False, "take only sizes and vocabulary of --init, and draw the weights at random")
    cased: bool = option(False, "keep capitals and accents (default: as the files of the vocabulary say)")
    out: str = option(None, "run folder (default: runs/finetune/TASK); finished seeds are not run again")

    # What to do: train some seeds, or one of four other things.
    seeds: int = option(1, "runs with seeds 0, 1, ...; the table has mean and standard deviation", at_least=1)
    search: int | None = option(None, "first try that many points of Bio-ELECTRA's grid", at_least=1)
    curve: bool = option(False, "fine-tune from each model that --init kept: scores against steps, curve.csv")
    evaluate: bool = option(False, "do not train: score the model of --init, or of --out, on the test set")
    predict: str | None = option(None, "file (-: standard input) to read with the model of --out, into JSON")

    # Hyper-parameters. One that is not given comes from the protocol (PROTOCOLS, above).
    epochs: int = option(None, "passes over the training set", at_least=1)
    batch_size: int = option(None, "examples in a batch", at_least=1)
    max_length: int = option(None, "tokens of the longest row; longer texts are cut or windowed", at_least=8)
    learning_rate: float = option(None, "peak learning rate of the head", at_least=0)
    layer_decay: float = option(None, "learning rate of a layer / that of the layer above it", at_least=0)
    weight_decay: float = option(None, "decoupled weight decay", at_least=0)
    dropout: float = option(None, "dropout of hidden states and attention", at_least=0)
    negative: str | None = option(None, "for relations: the label that means none (default: by its name)")
    class_weights: bool = option(False, "for ranking: weigh the loss 1 to 99 in favour of right candidates")
    tag_loss: str = option("softmax", "for entities: one over all tags, or one each", ["softmax", "binary"])

    # Where to compute.
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda"])
    tpu: bool = option(False, "compute on all XLA devices of this machine, through torch_xla")
    precision: str | None = option(None, "default: float32 on CPU, else bfloat16", choices=PRECISIONS)


# Options that may change between calls while finished seeds are kept. If any other option has changed, the
# run stops and names it.
FREE = ("out", "seeds", "protocol", "device", "tpu", "precision", "offline", "search", "curve", "evaluate",
        "predict")
FIXED = [field.name for field in dataclasses.fields(Options) if field.name not in FREE]


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
Results = Iterator[dict[str, Any]]     # what raw examples hold, in plain numbers and strings
Examples = Sequence[Any]               # of one kind: TaggedSentence, LabelledText, Question, ...
Mistake = tuple[str, str, str]         # for errors.md: what is right (or "nothing"), the prediction, the text
# A line of raw text, or a document of a corpus file, with which its result begins: {"line": 3, "text": ...},
# {"line": 3, "question": ..., "passage": ...} or {"document": 2, "pmid": "7", "text": ...}.
RawLine = dict[str, Any]


class Feature(NamedTuple):
    """Hold one row for the model, cut from an example, and what turns the model's output back into answers.

    Say the tokenizer knows "fever", "kel" and "##marin", and the labels are O, B-Disease, I-Disease. Then

        words  Kelmarin   fever             tags  B-Disease  I-Disease

        input_ids  [CLS]  kel  ##marin  fever  [SEP]            (as numbers)
        labels      -100    1     -100      2   -100            (-100 is IGNORED_LABEL: no label here)
        spots       (1, 0), (3, 1): word 0 is at position 1, word 1 at position 3
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
    stride = min(stride, capacity)                  # one beyond the window would skip pieces
    # All but the first window exist because the one before them ended before the text did.
    starts = range(0, max(1, length - capacity + stride), stride)
    return [(start, min(length, start + capacity)) for start in starts]


def best_windows(length: int, windows: list[tuple[int, int]]) -> np.ndarray:
    """Find for each piece the window in which it has most context: every piece belongs to exactly one.

    The context of a piece in a window is the smaller of its two sides. Piece 3 has 0 pieces to its right in
    the window (0, 4), but one to each side in (2, 6):

    >>> best_windows(10, [(0, 4), (2, 6), (4, 8), (6, 10)])
    array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])

    returns   (length,) numbers of windows; of equally good ones the first
    source    TF qa_tasks.is_max_context
    """
    # Two windows overlap from the start of the second to the end of the first. Up to the middle of the
    # overlap a piece has more context in the first window, and from there on in the second.
    borders = [(start + end + 1) // 2 for (_, end), (start, _) in itertools.pairwise(windows)]
    return np.searchsorted(borders, np.arange(length), side="right")


def visible(text: str) -> str:
    """Write control characters as escapes, so that a label or name can do nothing to a terminal or a table.

    >>> visible("gene\\t\\x1b[31m")
    'gene\\\\t\\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def precision_recall_f1(scores: metrics.Scores, prefix: str = "") -> Measures:
    """Name precision, recall and F1 over all types, and where there are several types also those of each.

        {"precision": 0.8, "recall": 0.6, "f1": 0.69, "Drug precision": 0.9, ..., "Gene f1": 0.5}

    prefix   put before the names of the measures over all types
    """
    named = {prefix: scores}
    if len(scores.per_type) > 1:
        named |= {f"{visible(name)} ": part for name, part in scores.per_type.items()}
    return {name + measure: getattr(part, measure)
            for name, part in named.items() for measure in ("precision", "recall", "f1")}


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, each line with its end."""
    data.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def tsv_row(*fields: str) -> str:
    """Join fields by tabs; a tab or a line end in one of them, as JSON may hold, becomes a space."""
    return "\t".join(re.sub(r"[\t\r\n]", " ", field) for field in fields)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, for people too: one value on each line, and letters such as β as they are."""
    data.write_bytes(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def escape_markdown(text: str) -> str:
    """Put a text on one line, with a backslash before what means something in Markdown.

    Some characters mean something everywhere, others where a line begins, as "1." does, or "-":

    >>> print(escape_markdown("1. cell_line  *"), escape_markdown("- a 1. b"))
    1\\. cell\\_line \\* \\- a 1. b
    """
    text = re.sub(r"[\\`*_~&\[\]<>#]|^[-+=]", r"\\\g<0>", visible(" ".join(text.split())))
    return re.sub(r"^(\d+)(?=[.)])", r"\1\\", text)


def write_errors(path: Path, title: str, mistakes: Sequence[Mistake]) -> None:
    """Write errors.md, a file for people: equal mistakes with all their places, the most frequent first.

        # Errors of demo-ner, test set, seed 0: 57

        ## 12 x jorganux (Drug) -> nothing

        - jorganux helped in eight adults .
    """
    places: dict[tuple[str, str], list[str]] = {}               # (gold, predicted) -> texts
    for gold, predicted, text in mistakes:
        places.setdefault((gold, predicted), []).append(escape_markdown(text))
    lines = [f"# {escape_markdown(title)}: {len(mistakes)}"]
    for (gold, predicted), texts in sorted(places.items(), key=lambda item: -len(item[1])):
        lines += ["", f"## {len(texts)} x {escape_markdown(gold)} -> {escape_markdown(predicted)}", ""]
        lines += [f"- {text}" for text in texts]
    write_lines(path, lines)


def locate_words(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Encode a text, and find the words that its pieces spell.

    A piece without ## begins a word, so that every punctuation mark is a word of its own: "kelmarin fever."
    has the words "kelmarin", "fever" and ".".

    returns   ids; the number of the word that each piece belongs to; the characters (start, end) of each word
    """
    ids, offsets = tokenizer.encode_with_offsets(text)
    word_of: list[int] = []
    words: list[tuple[int, int]] = []
    for piece, (start, end) in zip(ids, offsets):
        if words and tokenizer.pieces[piece].startswith("##"):
            start, _ = words.pop()          # it makes the word before it longer
        words.append((start, end))
        word_of.append(len(words) - 1)
    return ids, word_of, words


class Kind:
    """List what the rest of the program asks of a kind of task, in the order in which data flows.

    The five classes below derive from this one, which holds what most of them share. Letters: B rows of a
    batch, T tokens, C labels. An *output* is what the head gives for one feature, cut to its real
    tokens. A *prediction* is what all features of one example say together: tags, a label, a probability,
    or answers.

    A new kind whose examples are texts or pairs with one label each derives from Classification, and writes
    `score` and, for texts, raw_fields (as Relations has them). Any other kind derives from this class and
    writes what follows, in this order:

        encode(examples, tokenizer, max_length) -> features             rows of at most max_length tokens
        head                                        a class of electramed.py; its `loss` takes what
                                                    label_array returns
        decode(examples, features, outputs) -> predictions              one for each example
        score(examples, predictions) -> measures                        those that the papers report
        write(folder, examples, predictions)                            the task's own submission format
        errors(examples, predictions) -> mistakes                       for errors.md
        raw_examples(line, tokenizer) -> examples                       of a line of raw text, for encode
        results(examples, features, outputs, options) -> results        what --predict finds in each example

    Then three names make it known: the class in KINDS, its reader in data.READERS, a task in data.TASKS,
    whose `metric` is one of the measures. Gold labels fed back as outputs must score 1: test that first.
    """

    head: Any
    nothing: dict[str, Any] = {}            # what is found in an empty line of raw text
    raw_fields: tuple[str, ...] = ("text",)  # what each line of raw text holds; several: as JSON
    remark = ""                             # what a reader of the scores has to know

    def __init__(self, task: Task, examples: Examples = (), facts: dict[str, Any] | None = None) -> None:
        """Take the labels that the task names; where it names none, find them in its training examples.

        facts    what task.json keeps of the training examples, because raw text is read by it
        """
        self.task, self.facts = task, facts or {}
        self.labels: tuple[str, ...] = task.labels or self.find_labels(examples)
        self.number_of = {label: number for number, label in enumerate(self.labels)}

    # Labels and vocabulary, where the task or the model does not bring them.

    def count_labels(self, examples: Examples) -> Counter[str]:
        """Count how often each label occurs."""
        return Counter(example.label for example in examples)

    def find_labels(self, examples: Examples) -> tuple[str, ...]:
        """List the labels that occur, in the order in which the head numbers them.

        They are sorted, so that the order of the examples does not matter.
        """
        return tuple(sorted(self.count_labels(examples)))

    def text_of(self, example: Any) -> str:
        """Return all text of an example, to learn a vocabulary from when there is no model.

        By default that is every field that is a string.
        """
        return " ".join(field for field in example if isinstance(field, str))

    # Features, head, labels and loss.

    def describe_features(self, features: Features, max_length: int) -> str:
        """Say how many rows the examples gave, and of how many examples the end was cut off.

        An example that gave several rows was read in windows, and lost nothing.
        """
        cut = {feature.example for feature in features if feature.is_cut}
        return f"{len(features):,} rows of at most {max_length} tokens, {len(cut)} cut"

    def announce(self, split: str, examples: Examples, features: Features) -> None:
        """Say before training what no model can get right: here, labels that the training set lacks."""
        if unknown := sorted(map(visible, self.count_labels(examples).keys() - set(self.labels))):
            say(f"*** {', '.join(unknown)}: not in the training set, so always missed in {split} ***")

    def new_model(self, config: ElectraConfig) -> nn.Module:
        """Build an encoder with this kind's head on top; one for answers needs no number of labels."""
        return self.head(config, len(self.labels)) if self.labels else self.head(config)

    def label_array(self, features: Features, width: int) -> np.ndarray:
        """Return the labels of a batch whose rows have `width` tokens: (B,), or (B, 2) of starts and ends."""
        return np.array([feature.labels for feature in features])

    def loss_settings(self, options: Options, device: Device) -> dict[str, Any]:
        """Return further arguments of the head's loss by name; see the heads in electramed.py."""
        return {}

    # Raw text.

    def line_result(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the result of a line of raw text, from the results of its examples.

        Here an empty line has no example, and any other line has one. Tagging has one for each sentence.
        """
        return results[0] if results else self.nothing


# --- 2.2 Tagging ---
#
# Training files differ in how they cut words: JNLPBA's keeps IL-2 whole, that of ncbi-disease makes it three
# words, IL - 2. Raw text has to be cut as the training file was, so training writes down what that file does.

# In text whose words are cut already some mark stands between spaces, and none stands at a word as in prose:
# a comma, a full stop behind three letters or at the end, brackets around a word. (Both have "S. aureus".)
AS_IN_PROSE = r"\S,|[a-z]{3}\.|\S\.\s*\Z|(?<!\S)\([^\s()]+\)"
CUT_BEFORE = re.compile(rf"(?!.*(?:{AS_IN_PROSE})(?!\S)).*(?<!\S)[.,()](?!\S)", re.S)
MARK = re.compile(r"[^\w\s]|_")                 # a punctuation mark or symbol


def mark_shape(left: str, mark: str, right: str) -> str:
    """Return a mark with what stands beside it: "a" for a letter, "1" for a digit, " " for anything else.

    The shape of the mark in IL-2 is "a-1", in CD4+ "1+ ", and in "-dependent" " -a".
    """
    left, right = ("1" if c.isdecimal() else "a" if c.isalnum() else " " for c in (left, right))
    return left + mark + right


def marks_inside_words(examples: Sequence[data.TaggedSentence]) -> list[str]:
    """List the shapes of the marks that a file keeps inside its words more often than not.

    >>> marks_inside_words([data.TaggedSentence("IL-2 raised CD4+ cells - ( p53 )".split(), ["O"] * 8)])
    ['1+ ', 'a-1']
    """
    counts = Counter[str]()                     # times inside a word, less the times alone
    for example in examples:
        text = f"  {' '.join(example.words)}  "
        for found in MARK.finditer(text):
            before, left, mark, right, after = list(text[found.start() - 2:found.end() + 2])
            if left == right == " ":
                # A word of its own. Whether there were spaces beside it in the text that the file was made
                # from is not known. So it counts against each shape that it may have had.
                counts.subtract({mark_shape(a, mark, b) for a in (before, " ") for b in (after, " ")})
            else:
                counts[mark_shape(left, mark, right)] += 1
    return sorted(shape for shape, count in counts.items() if count > 0)


def cut_words(text: str, tokenizer: Tokenizer, inside: Container[str]) -> list[tuple[int, int]]:
    """Cut raw text into words as a training file was cut.

    inside    shapes of marks that the file keeps inside words (marks_inside_words)
    returns   characters (start, end) of each word. Other marks are words of their own, as locate_words has
              them. In a text that was cut into words before (CUT_BEFORE), spaces are the only borders
    """
    if CUT_BEFORE.match(text):
        return [found.span() for found in re.finditer(r"\S+", text)]
    padded = f" {text} "
    joins = {place for place, mark in enumerate(text)
             if mark_shape(padded[place], mark, padded[place + 2]) in inside}
    words: list[tuple[int, int]] = []
    for start, end in locate_words(text, tokenizer)[2]:
        # A mark that joins is in one word with what it touches on either side.
        if words and words[-1][1] == start and joins & {start - 1, start}:
            start, _ = words.pop()
        words.append((start, end))
    return words


class RawSentence(NamedTuple):
    """Hold a sentence of raw text, which Tagging.encode reads like a TaggedSentence."""

    words: list[str]
    tags: list[str]             # all O, as placeholders: the model predicts the true ones
    spans: list[tuple[int, int]]        # the characters of each word in its line
    text: str                   # that line


class Tagging(Kind):
    """Find entities: one tag for each word, read as spans.

    The published files have one word per line, its tag last, and an empty line between sentences:

        jorganux    O                  -> TaggedSentence(words=["jorganux", "slowed", "kelmarin", "fever"],
        slowed      O                                    tags=["O", "O", "B-Disease", "I-Disease"])
        kelmarin    B-Disease
        fever       I-Disease

    Features    A sentence becomes one row, or several windows that overlap. The tag of a word stands on its
                first wordpiece, in the window where that piece has most context. Spots are (position, word):
                where in the row the first piece of which word stands (Feature shows an example). All other
                positions have no label: neither loss nor prediction looks at them.
    Head        C logits for each token; the largest one at a word's position is its predicted tag.
    Loss        Softmax over the C tags, or with --tag-loss binary one classifier for each tag.
    Scores      Tags are read as entities by the rules of conlleval: an entity counts when its type and both
                of its borders are right. Precision, recall and F1 are micro-averaged over all types.
    Submission  Columns of word, gold tag and predicted tag, which the conlleval script reads.
    Raw text    A line is split into sentences and these into words, which are then read like those of a file.
                A line whose words were cut before is one sentence, as in a file.
    """

    head = TokenTagger

    def __init__(self, task: Task, examples: Examples = (), facts: dict[str, Any] | None = None) -> None:
        """Find out how words are to be cut: {"marks_inside_words": ["1+ ", "a-1"]}; a trained model knows."""
        super().__init__(task, examples, facts or {"marks_inside_words": marks_inside_words(examples)})

    def count_labels(self, examples: Examples) -> Counter[str]:
        """Count how often each tag occurs."""
        return Counter(tag for example in examples for tag in example.tags)

    def find_labels(self, examples: Examples) -> tuple[str, ...]:
        """List the tags that occur: O first, then the others in alphabetical order."""
        return ("O", *sorted(self.count_labels(examples).keys() - {"O"}))

    def text_of(self, example: data.TaggedSentence) -> str:
        """Return the words of a sentence."""
        return " ".join(example.words)

    def encode(self, examples: Examples, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        """Cut sentences into rows [CLS] window [SEP]; no word is lost, however long the sentence.

        Windows overlap by half. So each word is in a window with at least a quarter window of text before it
        and as much after it, unless the sentence begins or ends sooner. With 4 pieces in a window,
        "a b c d e f" is read as "a b c d" and "c d e f": the tags of a, b and c stand in the first window,
        those of d, e and f in the second.

        A tag that is not among the labels is not trained on, but still counts when predictions are scored.
        source    the first piece has the label, as in TF tagging_tasks.py; there long sentences are cut
        """
        capacity = max_length - 2                                           # without [CLS] and [SEP]
        features = []
        for number, example in enumerate(examples):
            # 1. Wordpieces, and the word that each belongs to. A word of which cleaning leaves nothing is one
            #    [UNK], so that every word has a first piece.
            ids, word_of = tokenizer.encode_words(example.words)
            # 2. Windows, and for each piece the one to which it belongs.
            windows = split_windows(len(ids), capacity, capacity // 2)
            window_of = best_windows(len(ids), windows)
            # 3. One row for each window, with the tags of the words whose first piece belongs to it.
            for window, (start, end) in enumerate(windows):
                row = tokenizer.row(ids[start:end])
                labels, spots = [IGNORED_LABEL] * len(row.ids), []
                for piece in range(start, end):
                    word, is_first = word_of[piece], piece == 0 or word_of[piece - 1] < word_of[piece]
                    if is_first and window_of[piece] == window:
                        spots.append((1 + piece - start, word))             # [CLS] is at position 0
                        labels[1 + piece - start] = self.number_of.get(example.tags[word], IGNORED_LABEL)
                features.append(Feature(number, *row, labels, spots))
        return features

    def label_array(self, features: Features, width: int) -> np.ndarray:
        """Return (B, T) label ids: only the first piece of a word has one; padding, [CLS], [SEP] have none.

        Two rows, [CLS] kel ##marin [SEP] and [CLS] fever [SEP], padded to 5 tokens:

            -100    1  -100  -100  -100
            -100    2  -100  -100  -100
        """
        return np.array([feature.labels + [IGNORED_LABEL] * (width - len(feature.labels))
                         for feature in features])

    def loss_settings(self, options: Options, device: Device) -> dict[str, Any]:
        """Return whether each label has a sigmoid of its own; otherwise all share one softmax.

        source    ELECTRAMed's paper: three binary classifiers over B, I and O; its released code: the softmax
        """
        return {"is_binary": options.tag_loss == "binary"}

    def at_words(self, examples: Examples, features: Features, outputs: Outputs) -> list[list[Any]]:
        """Collect for each word of each example its logits (C,): those at its spot, of which it has one."""
        words: list[list[Any]] = [[] for _ in examples]
        for feature, output in zip(features, outputs):          # windows and their spots follow the text
            words[feature.example] += [output[position] for position, _ in feature.spots]
        return words

    def decode(self, examples: Examples, features: Features, outputs: Outputs) -> list[list[str]]:
        """Turn outputs (T, C) into one tag for each word.

        The tags of a sentence may fit badly: an I- after O, say, opens an entity when they are scored.
        """
        return [[self.labels[logits.argmax()] for logits in words]
                for words in self.at_words(examples, features, outputs)]

    def score(self, examples: Examples, predictions: Sequence[list[str]]) -> Measures:
        """Compute precision, recall and F1 of entities by the rules of conlleval."""
        return precision_recall_f1(metrics.entity_scores([example.tags for example in examples], predictions))

    def write(self, folder: Path, examples: Examples, predictions: Sequence[list[str]]) -> None:
        """Write predictions.txt: word, gold tag, predicted tag; an empty line between sentences.

            slowed O O
            kelmarin B-Disease B-Disease
            fever I-Disease O

        conlleval cuts lines at every space, so a space inside a word is written as "_".
        """
        sentences = []
        for example, tags in zip(examples, predictions):
            rows = zip(example.words, example.tags, tags)
            sentences.append("".join(f"{word.replace(' ', '_')} {gold} {tag}\n" for word, gold, tag in rows))
        data.write_bytes(folder / "predictions.txt", "\n".join(sentences).encode())

    def errors(self, examples: Examples, predictions: Sequence[list[str]]) -> Iterator[Mistake]:
        """Yield the gold entities that were missed, and the predicted ones that are wrong."""
        for example, tags in zip(examples, predictions):
            gold, predicted = set(metrics.spans_from_tags(example.tags)), set(metrics.spans_from_tags(tags))
            for span in sorted(gold ^ predicted, key=lambda span: (span.start, span in predicted)):
                entity = f"{' '.join(example.words[span.start:span.end])} ({span.type})"
                sides = (entity, "nothing") if span in gold else ("nothing", entity)
                yield *sides, " ".join(example.words)

    def raw_examples(self, line: RawLine, tokenizer: Tokenizer) -> Iterator[RawSentence]:
        """Split a line into sentences, and these into words, each with its place in the line."""
        inside = self.facts.get("marks_inside_words", [])                   # models of before have none
        text = line["text"]
        for first, last in [(0, len(text))] if CUT_BEFORE.match(text) else data.split_sentences(text):
            words = cut_words(text[first:last], tokenizer, inside)
            spans = [(first + start, first + end) for start, end in words]
            yield RawSentence([text[start:end] for start, end in spans], ["O"] * len(spans), spans, text)

    def results(self, examples: Examples, features: Features, outputs: Outputs, options: Options) -> Results:
        """Return the entities of each sentence, with the mean probability of their words' tags.

            {"entities": [
                {"start": 16, "end": 30, "type": "Disease", "text": "kelmarin fever", "score": 0.9712}]}
        """
        is_binary = options.tag_loss == "binary"                # then the loss trained a sigmoid of each tag
        by_word = self.at_words(examples, features, outputs)
        for example, tags, words in zip(examples, self.decode(examples, features, outputs), by_word):
            entities = []
            for span in metrics.spans_from_tags(tags):
                (start, _), (_, end) = example.spans[span.start], example.spans[span.end - 1]
                logits = torch.tensor(np.array(words[span.start:span.end]))             # (words, C)
                p = logits.sigmoid() if is_binary else logits.softmax(-1)
                text, score = example.text[start:end], round(p.amax(-1).mean().item(), 4)
                entities.append({"start": start, "end": end, "type": span.type, "text": text, "score": score})
            yield {"entities": entities}

    def line_result(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the entities of all sentences of a line."""
        return {"entities": [entity for result in results for entity in result["entities"]]}


# --- 2.3 Relations, YesNo, Ranking: one label for a text or a pair of texts ---

class Classification(Kind):
    """Share what Relations, YesNo and Ranking have in common: one label for a text or a pair of texts.

    Features    One row: [CLS] text [SEP], or [CLS] first [SEP] second [SEP]. What is too long is cut.
    Head        C logits, computed from the hidden state at [CLS] alone; the largest one is the label.
    Loss        Softmax over the C labels.
    Submission  A row of index and label for each row of the test file.
    Raw text    One text per line, or one line of JSON for a pair.
    """

    head = SequenceClassifier
    nothing = {"label": None, "score": None}
    raw_fields: tuple[str, ...] = ("question", "passage")

    def encode(self, examples: Examples, tokenizer: Tokenizer, max_length: int) -> list[Feature]:
        """Make one row of each example; of a pair that is too long, the longer part is cut piece by piece.

        With room for 6 pieces, parts of 3 and 9 pieces become 3 and 3, parts of 1 and 9 become 1 and 5.
        A label that the training set lacks is no label: it is not trained on, and always missed.
        source    TF classification_tasks.truncate_seq_pair
        """
        features = []
        for number, example in enumerate(examples):
            is_pair = example.text_pair is not None
            first, second = tokenizer.encode(example.text), tokenizer.encode(example.text_pair or "")
            room = max_length - 2 - is_pair                     # without [CLS] and a [SEP] for each part
            excess = len(first) + len(second) - room            # negative where both parts fit
            for _ in range(excess):
                longer = first if len(first) > len(second) else second
                longer.pop()
            row = tokenizer.row(first, second if is_pair else None)
            label = self.number_of.get(example.label, IGNORED_LABEL)
            features.append(Feature(number, *row, label, is_cut=excess > 0))
        return features

    def decode(self, examples: Examples, features: Features, outputs: Outputs) -> list:
        """Return the likeliest label of each example; outputs (C,)."""
        return [self.labels[output.argmax()] for output in outputs]

    def write(self, folder: Path, examples: Examples, predictions: Sequence[Any]) -> None:
        """Write predictions.tsv: rows of index and label, in the order of the test file.

            index   label
            s7.1    treats
        """
        rows = [tsv_row(example.id, label) for example, label in zip(examples, predictions)]
        write_lines(folder / "predictions.tsv", ["index\tlabel", *rows])

    def errors(self, examples: Examples, predictions: Sequence[Any]) -> Iterator[Mistake]:
        """Yield the texts with a wrong label."""
        for example, label in zip(examples, predictions):
            if label != example.label:
                yield example.label, label, f"{example.text} {example.text_pair or ''}"

    def raw_examples(self, line: RawLine, tokenizer: Tokenizer) -> list[data.LabelledText]:
        """Take a line for a text; or for a question and a passage: its answer in words, or a candidate."""
        text, *text_pair = (line[field] for field in self.raw_fields)
        return [data.LabelledText("", text, "", *text_pair)]

    def results(self, examples: Examples, features: Features, outputs: Outputs, options: Options) -> Results:
        """Return the label of each text or pair, and its probability."""
        for label, output in zip(self.decode(examples, features, outputs), outputs):
            yield {"label": label, "score": round(torch.tensor(output).softmax(-1).max().item(), 4)}


class Relations(Classification):
    """Name the relation between two entities of a sentence, or say that there is none.

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

    raw_fields = ("text",)          # a sentence with placeholders, such as @DRUG$ and @DISEASE$

    def __init__(self, task: Task, examples: Examples = (), facts: dict[str, Any] | None = None) -> None:
        """Take or find the labels, and say which one is the negative one, which scores leave out.

        task.json keeps it: {"negative": "false"}. That of a model made elsewhere is known by its name alone.
        raises    ValueError where --negative is none of the labels
        """
        super().__init__(task, examples, facts)
        self.negative = self.choose_negative(self.labels)
        if self.negative not in (known := task.labels or sorted(self.count_labels(examples))):
            raise ValueError(f"--negative {self.negative}: the labels are {', '.join(known)}")
        self.facts = {"negative": self.negative}
        self.remark = f", {self.negative!r} taken for \"no relation\""

    def choose_negative(self, labels: Sequence[str]) -> str:
        """Choose the label that means "no relation": that of --negative, of the task or of task.json.

        Otherwise it is a label with one of NEGATIVE_NAMES, such as "false" or "0", else the first label.
        """
        by_name = [label for name in NEGATIVE_NAMES for label in sorted(labels) if label.casefold() == name]
        return self.task.negative or self.facts.get("negative") or [*by_name, *labels][0]

    def find_labels(self, examples: Examples) -> tuple[str, ...]:
        """List the labels that occur, the negative one first; if none is named so, the most frequent one."""
        counts = self.count_labels(examples)
        negative = self.choose_negative([label for label, _ in counts.most_common()])
        return (negative, *sorted(counts.keys() - {negative}))

    def score(self, examples: Examples, predictions: Sequence[str]) -> Measures:
        """Compute micro-averaged precision, recall and F1 over all labels but the negative one."""
        gold = [example.label for example in examples]
        return precision_recall_f1(metrics.relation_scores(gold, predictions, self.negative))


class YesNo(Classification):
    """Answer yes or no to a question, given its answer in words.

    The published files have a label (1 for yes, 0 for no), the question, and the answer in words:

        label   question                        answer
        1       Does jorganux slow fever?       Two trials found that it does.
                                     -> LabelledText("0", "Does jorganux ...?", "1", "Two trials ...")

    Scores      Most answers are yes, so a model that always says yes has a high accuracy. BioASQ takes the
                mean of two F1: of yes taken as the positive answer, and of no. A data set of one's own may
                have other labels, and more: the mean is over all that its training and test files have.
    """

    def score(self, examples: Examples, predictions: Sequence[str]) -> Measures:
        """Compute BioASQ's measures: the mean of the answers' F1, accuracy, and each answer by itself."""
        gold = [example.label for example in examples]
        answers = sorted({*self.labels, *gold}, reverse=True)               # 1 before 0, yes before no
        scores = metrics.bioasq_yesno_scores(gold, predictions, answers)
        measures = {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy}
        # 1 and 0 mean yes and no where there are no other labels.
        names = {"1": "yes", "0": "no"} if {"0", "1"}.issuperset(answers) else {}
        for answer in answers:
            name = visible(names.get(answer, answer))
            measures |= precision_recall_f1(scores.per_label[answer], f"{name} ")
        return measures


class Ranking(Classification):
    """Rank candidate sentences by how probably they answer a question.

    The published files have a label, the question and one candidate per row; about 1 in 100 is right:

        label   question                        answer candidate
        0       What does jorganux slow?        Fever was common in adults.
        1       What does jorganux slow?        Jorganux slowed kelmarin fever.
                                  -> ..., LabelledText("0", "What does ...?", "1", "Jorganux ...")

    Loss        With so few right candidates "wrong" is nearly always right. --class-weights weighs the right
                ones 99 to 1: Bio-ELECTRA's weighted re-ranker.
    Prediction  The probability of label 1, by which the candidates of each question are sorted.
    Scores      The mean of 1 / rank of the first right candidate (MRR); 1 if it is always ranked first.
    Submission  Rows of probability, question and candidate.
    """

    nothing = {"probability": None}

    def __init__(self, task: Task, examples: Examples = (), facts: dict[str, Any] | None = None) -> None:
        """Check the labels: those of a model that was trained elsewhere may be others.

        raises    ValueError for other labels than 0 and 1, in this order: the second logit is read as "right"
        """
        super().__init__(task, examples, facts)
        if self.labels != ("0", "1"):
            raise ValueError(f"the model ranks by the labels {', '.join(map(visible, self.labels))}: expected"
                             ' 0 (wrong), then 1 (right); mend "id2label" in its config.json')

    def loss_settings(self, options: Options, device: Device) -> dict[str, Any]:
        """Return the weights of the two labels, where they are asked for.

        source    Bio-ELECTRA's weighted re-ranker: 1 and 99
        """
        weights = torch.tensor(CLASS_WEIGHTS, device=device.kind)
        return {"class_weights": weights if options.class_weights else None}

    def decode(self, examples: Examples, features: Features, outputs: Outputs) -> list[float]:
        """Return the probability of label 1 of each candidate."""
        return [torch.tensor(output).softmax(-1)[1].item() for output in outputs]

    def score(self, examples: Sequence[data.LabelledText], predictions: Sequence[float]) -> Measures:
        """Compute the mean over the questions of 1 / rank of the first right candidate."""
        groups: dict[str, list[tuple[float, int]]] = {}
        for example, probability in zip(examples, predictions):
            groups.setdefault(example.group, []).append((probability, int(example.label)))
        return {"mrr": metrics.reranking_mrr(groups)}

    def write(self, folder: Path, examples: Examples, predictions: Sequence[float]) -> None:
        """Write predictions.tsv: rows of probability, question and candidate, as in the test file."""
        rows = [tsv_row(f"{p:.6g}", pair.text, pair.text_pair) for pair, p in zip(examples, predictions)]
        write_lines(folder / "predictions.tsv", ["probability\tquestion\tanswer_candidate", *rows])

    def errors(self, examples: Examples, predictions: Sequence[float]) -> Iterator[Mistake]:
        """Yield the questions whose best candidate is wrong, with their first right candidate.

        The question whose wrong candidate has the highest probability comes first.
        """
        ranked: dict[str, list[Any]] = {}           # the candidates of each question, best first
        for _, example in sorted(zip(predictions, examples), key=lambda pair: -pair[0]):
            ranked.setdefault(example.group, []).append(example)
        for question, (best, *others) in ranked.items():
            if best.label != "1":
                right = [candidate.text_pair for candidate in others if candidate.label == "1"]
                yield right[0] if right else "nothing", best.text_pair, question

    def results(self, examples: Examples, features: Features, outputs: Outputs, options: Options) -> Results:
        """Return the probability that each candidate is right, by which a reader can sort several."""
        for p in self.decode(examples, features, outputs):
            yield {"probability": round(p, 6)}


# --- 2.4 Answers ---

class PieceSpot(NamedTuple):
    """Say which characters of the passage a position of a row stands for."""

    position: int               # counted from [CLS] at 0
    start: int                  # first character of its word: answers are whole words
    end: int                    # the character after the word's last one
    is_best: bool               # whether this row is the window in which the piece has most context


class Answer(NamedTuple):
    """Hold a span of the passage, in characters, and its share of the probability of all spans kept."""

    text: str
    start: int
    end: int
    probability: float


class Asked(NamedTuple):
    """Hold a question with all accepted answers, and the texts answered: in BioASQ from all its snippets."""

    example: data.Question      # the first of its passages
    gold: list[str]
    texts: list[str]            # best first; none where nothing was answered


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
    accuracy and MRR, over all questions and for each test batch; one file for each batch.
    """

    head = SpanExtractor
    nothing: dict[str, Any] = {"answers": []}
    raw_fields = ("question", "passage")

    @property
    def is_bioasq(self) -> bool:
        """Tell whether the task is scored as BioASQ does, and not as SQuAD does."""
        return self.task.metric == "mrr"                    # of the question tasks only BioASQ's have it

    def find_labels(self, examples: Examples) -> tuple[str, ...]:
        """List no label: answers are positions."""
        return ()

    def text_of(self, example: data.Question) -> str:
        """Return what is read of a question, and its id; not its type, which is "factoid" or "list"."""
        return f"{example.id} {example.question} {example.context}"

    def encode(self, examples: Examples, tokenizer: Tokenizer, max_length: int,
               stride: int = DOCUMENT_STRIDE) -> list[Feature]:
        """Write rows [CLS] question [SEP] window [SEP]; labels are the positions of the first gold answer.

        Say the question has 2 pieces and the passage is "a b c d e", of which "d e" is the answer. In rows of
        9 tokens, with a stride of 2, there are two windows: "a b c d" with the labels (0, 0), because e is
        missing, and "c d e" with (5, 6): [CLS] is at position 0, c at 4.

        stride   pieces between the starts of two windows of one passage; never over half a window
        """
        features = []
        for number, example in enumerate(examples):
            # 1. Wordpieces of the question, and of the passage with the characters they stand for.
            whole_question = tokenizer.encode(example.question)
            question = whole_question[:min(QUESTION_LENGTH, max_length - 7)]    # some room for the passage
            ids, word_of, words = locate_words(example.context, tokenizer)
            before = len(question) + 2                      # [CLS] question [SEP]
            capacity = max_length - before - 1              # and the last [SEP]
            # 2. The pieces of all words that the gold answer touches, even if it begins or ends inside one.
            #    An answer that is nowhere in the passage cannot be learnt.
            text, begin = example.answers[0] if example.answers else ("", 0)
            gold = [piece for piece, word in enumerate(word_of)
                    if words[word][1] > begin and words[word][0] < begin + len(text)]
            # 3. One row for each window. Without the whole gold answer its labels are (0, 0), that is [CLS].
            windows = split_windows(len(ids), capacity, min(stride, capacity // 2))
            window_of = best_windows(len(ids), windows)
            for window, (start, end) in enumerate(windows):
                labels = None if example.gold and not example.answers else (0, 0)
                if gold and start <= gold[0] and gold[-1] < end:
                    labels = (before + gold[0] - start, before + gold[-1] - start)
                spots = [PieceSpot(before + piece - start, *words[word_of[piece]],
                                   bool(window_of[piece] == window)) for piece in range(start, end)]
                row = tokenizer.row(question, ids[start:end])
                features.append(Feature(number, *row, labels, spots, len(question) < len(whole_question)))
        return features

    def announce(self, split: str, examples: Examples, features: Features) -> None:
        """Say how much of a test set of BioASQ cannot be scored: without its golden file, nothing can.

        raises   ValueError where no training example has an answer: nothing could be learnt
        """
        if split == "train" and not any(example.answers for example in examples):
            raise ValueError("no training example has an answer that is in its passage")
        lacking = sum(not (example.answers or example.gold) for example in examples)
        if self.is_bioasq and lacking:
            say(f"*** {split}: {lacking:,} of {len(examples):,} snippets belong to questions without an "
                "answer, as in a test batch without its golden file: they count as wrong ***")

    def decode(self, examples: Examples, features: Features, outputs: Outputs,
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
        proposed: list[dict[tuple[int, int], float]] = [{} for _ in examples]       # (start, end) -> score
        for feature, logits in zip(features, outputs):
            spot_at = {spot.position: spot for spot in feature.spots}
            starts, ends = np.argsort(-logits, axis=0, kind="stable")[:best].T.tolist()
            for start, end in itertools.product(starts, ends):
                first, last = spot_at.get(start), spot_at.get(end)
                if first and last and first.is_best and start <= end < start + max_pieces:
                    span, spans = (first.start, last.end), proposed[feature.example]
                    score = float(logits[start, 0] + logits[end, 1])
                    spans[span] = max(score, spans.get(span, score))
        # 2. Keep the best spans of all windows, each once: pieces of one word stand for the same characters.
        #    Their probabilities are the softmax of their scores.
        answers: list[list[Answer]] = []
        for example, spans in zip(examples, proposed):
            kept = sorted(spans, key=lambda span: -spans[span])[:best]
            shares = torch.tensor([spans[span] for span in kept], dtype=torch.float64).softmax(-1).tolist()
            answers.append([Answer(example.context[start:end], start, end, share)
                            for (start, end), share in zip(kept, shares)])
        return answers

    def questions(self, examples: Examples, predictions: Sequence[list[Answer]]) -> dict[str, Asked]:
        """Collect what belongs to each question: {"q1": Asked(example, ["fever", ...], ["gout", ...])}.

        Accepted are the answers in its passages; or, where they are known by their texts alone, the synonyms
        of BioASQ's golden files. In BioASQ the texts are up to five of all snippets; equal ones of several
        snippets are one, with the sum of their probabilities.
        """
        asked: dict[str, Asked] = {}
        for example, answers in zip(examples, predictions):
            # In BioASQ q1_000 and q1_001 both ask q1.
            name = metrics.bioasq_question_id(example.id) if self.is_bioasq else example.id
            gold = asked.setdefault(name, Asked(example, [], [answer.text for answer in answers])).gold
            accepted = [text for text, _ in example.answers] if example.gold is None else example.gold
            gold += [text for text in accepted if text not in gold]
        if self.is_bioasq:
            snippets = {example.id: [(answer.text, answer.probability) for answer in answers]
                        for example, answers in zip(examples, predictions)}
            for name, merged in metrics.merge_bioasq_snippets(snippets).items():
                asked[name] = asked[name]._replace(texts=merged)
        return asked

    def parts(self, asked: dict[str, Asked], field: str) -> dict[Any, dict[str, Asked]]:
        """Divide the questions by a field, batch or type: {1: {"q1": ..., "q2": ...}, 2: {"q3": ...}}."""
        values = {getattr(one.example, field) for one in asked.values()} - {None}
        return {value: {name: one for name, one in asked.items() if getattr(one.example, field) == value}
                for value in sorted(values)}

    def score(self, examples: Examples, predictions: Sequence[list[Answer]]) -> Measures:
        """Compute SQuAD's exact match and F1, or BioASQ's measures: over all questions, and over parts.

        Parts are the test batches and, where there are both, factoid and list questions:

            {"strict_accuracy": 0.3, ..., "mrr": 0.4, ..., "batch 1 mrr": 0.5, ..., "list mrr": 0.2, ...}
        """
        asked, measures = self.questions(examples, predictions), Measures()
        if not self.is_bioasq:
            best = {name: "".join(one.texts[:1]) for name, one in asked.items()}
            return metrics.squad_scores({name: one.gold for name, one in asked.items()}, best)._asdict()
        parts = {"": asked, **{f"batch {batch} ": part for batch, part in self.parts(asked, "batch").items()}}
        if len(types := self.parts(asked, "type")) > 1:
            parts |= {f"{type_} ": part for type_, part in types.items()}
        for prefix, part in parts.items():
            scores = metrics.bioasq_factoid_scores({name: one.gold for name, one in part.items()},
                                                   {name: one.texts for name, one in part.items()})
            measures |= {prefix + measure: value for measure, value in scores._asdict().items()}
        return measures

    def write(self, folder: Path, examples: Examples, predictions: Sequence[list[Answer]]) -> None:
        """Write SQuAD's predictions.json, or predictions-batch-1.json, ... as BioASQ wants them.

            {"q1": "kelmarin fever"}                                                              SQuAD
            {"questions": [{"id": "q1", "type": "factoid", "exact_answer": [["fever"], ...]}]}    BioASQ

        Questions of BioASQ that belong to no test batch are written as SQuAD's are.
        """
        asked = self.questions(examples, predictions)
        batches = self.parts(asked, "batch")
        for batch, part in batches.items():
            answers = [{"id": name, "type": one.example.type, "exact_answer": [[text] for text in one.texts]}
                       for name, one in part.items()]
            write_json(folder / f"predictions-batch-{batch}.json", {"questions": answers})
        if not batches:
            best = {name: "".join(one.texts[:1]) for name, one in asked.items()}
            write_json(folder / "predictions.json", best)

    def errors(self, examples: Examples, predictions: Sequence[list[Answer]]) -> Iterator[Mistake]:
        """Yield the questions whose best answer is wrong; texts are compared as the task's metric does."""
        normalise = str.lower if self.is_bioasq else metrics.normalise_squad_answer
        for asked in self.questions(examples, predictions).values():
            given = asked.texts[:metrics.FACTOID_ANSWERS]
            if not given or normalise(given[0]) not in map(normalise, asked.gold):
                yield " | ".join(asked.gold), " | ".join(given), asked.example.question

    def raw_examples(self, line: RawLine, tokenizer: Tokenizer) -> list[data.Question]:
        """Take a question and its passage from a line."""
        return [data.Question("", line["question"], line["passage"], [])]

    def results(self, examples: Examples, features: Features, outputs: Outputs, options: Options) -> Results:
        """Return the best answers to each question, with their characters in the passage.

            {"answers": [{"start": 16, "end": 30, "text": "kelmarin fever", "score": 0.8127}, ...]}
        """
        for answers in self.decode(examples, features, outputs):
            yield {"answers": [{"start": answer.start, "end": answer.end, "text": answer.text,
                                "score": round(answer.probability, 4)} for answer in answers[:ANSWERS_SHOWN]]}


# The kinds by the names that data.TASKS gives them.
KINDS: dict[str, Any] = {"ner": Tagging, "re": Relations, "classify": YesNo, "rank": Ranking, "qa": Answers}
# Options that mean something for one kind alone.
OWN_OPTIONS = {"tag_loss": Tagging, "negative": Relations, "class_weights": Ranking}


# --- 3. Training one seed ---
#
# prepare (section 4) makes what all seeds share. train fits one model, evaluate scores it on a split;
# fit_seed and score_model write what came of it. Between these two the model is read from its folder again,
# so that the scores are those of what was saved.

class Finetuned(NamedTuple):
    """Hold a fine-tuned model with all that is needed to use it."""

    model: Any                      # TokenTagger, SequenceClassifier or SpanExtractor
    tokenizer: Tokenizer
    labels: tuple[str, ...]         # in the order of the model's outputs; () where it finds answers
    facts: dict[str, Any]           # task.json; {} where the folder has none, as published ones


def load_finetuned(directory: str | os.PathLike) -> Finetuned:
    """Read a fine-tuned model: of a run, of a seed, or a model folder, ours or a published one.

        model, tokenizer, labels, _ = load_finetuned("runs/finetune/demo-re")
        row = tokenizer.row("@DRUG$ slowed @DISEASE$ .")
        logits = model.eval()(torch.tensor([row.ids]))                  # (1, C), without dropout
        print(labels[int(logits.argmax())])

    raises   ValueError or OSError naming the folder where it holds no fine-tuned model
    """
    folder = model_folder(directory)
    inode = folder.stat().st_ino            # its number, which a folder that takes its place does not have
    model, labels = load_head(folder)
    facts = read_object(folder / TASK_FILE) if (folder / TASK_FILE).is_file() else {}
    tokenizer = Tokenizer.from_file(folder)
    if folder.stat().st_ino != inode:
        raise OSError(f"{folder} was replaced while it was read: repeat the command")
    return Finetuned(model, tokenizer, tuple(labels), facts)


class Prepared(NamedTuple):
    """Hold what all seeds share: the task's examples and features, and the model they start from.

    Files are read and encoded once for all seeds, unless a file is cut and each seed tests another part.
    """

    kind: Any                                   # of section 2
    tokenizer: Tokenizer
    config: ElectraConfig
    init: Path | None                           # None: the weights are drawn at random
    device: Device
    examples: dict[str, list]                   # by split; dev may be missing
    features: dict[str, list[Feature]]
    test_set: str = "test set"                  # its name in tables


def make_batch(features: Features, width: int, size: int, prepared: Prepared) -> tuple[torch.Tensor, ...]:
    """Pad features to a batch and put it on the device.

    width     tokens of a row
    size      rows of a full batch. A TPU compiles a program for each shape, so there the last, smaller batch
              is filled up. Rows that were added have no label, so that they add nothing to the loss
    returns   ids, mask and segments (B, T), and labels: (B,), (B, T) or (B, 2), by kind
    """
    rows = [(feature.input_ids, feature.first_length) for feature in features]
    # Where an answer is nowhere in its passage, there is no label; this happens in evaluation alone.
    is_labelled = all(feature.labels is not None for feature in features)
    labels = prepared.kind.label_array(features, width) if is_labelled else np.zeros((len(features), 1), int)
    if prepared.device.xla:                     # as many rows on each of its devices
        missing = math.ceil(size / prepared.device.count) * prepared.device.count - len(rows)
        rows += rows[:1] * missing
        labels = np.concatenate([labels, np.full((missing, *labels.shape[1:]), IGNORED_LABEL)])
    return prepared.device.put(*pad_rows(rows, prepared.tokenizer.pad_id, width), torch.from_numpy(labels))


def make_batches(features: Features, size: int, seed: int, prepared: Prepared,
                 options: Options) -> Iterator[tuple[np.ndarray, tuple[torch.Tensor, ...]]]:
    """Yield all features, each once, in batches of `size` rows: their numbers, and what make_batch returns.

    Features of like length share a batch, so that little of it is padding. The seed gives the order.
    """
    lengths, rng = np.array([len(feature.input_ids) for feature in features]), np.random.default_rng(seed)
    for width, rows in data.plan_batches(lengths, size, options.max_length, rng, keep_rest=True):
        yield rows, make_batch([features[row] for row in rows], width, size, prepared)


def predict(model: nn.Module, features: Features, prepared: Prepared, options: Options) -> Outputs:
    """Return the head's output for each feature, in their order, cut to the feature's tokens.

    Outputs are computed in float32 even where training is not: in bfloat16 many of them would be equal by
    rounding, and the order of equal candidates is that of the file.
    """
    outputs: list[Any] = [None] * len(features)
    model.eval()
    # The order of the batches changes nothing.
    for rows, (*inputs, _) in make_batches(features, EVALUATION_BATCH, 0, prepared, options):
        with torch.no_grad():
            logits = prepared.device.fetch(model(*inputs).float()).numpy()
        for row, output in zip(rows, logits):
            # (T, ...) for a head that judges tokens, here without padding; (C,) for one that judges the row.
            outputs[row] = output[:len(features[row].input_ids)] if output.ndim == 2 else output
    model.train()
    if not all(np.isfinite(output).all() for output in outputs):       # argmax would give nan a label, too
        raise ValueError("the model's output is not finite (nan or inf): train with a lower --learning-rate")
    return outputs


def evaluate(model: nn.Module, split: str, prepared: Prepared, options: Options) -> tuple[Measures, list]:
    """Return scores and predictions on a split: features -> outputs -> predictions -> scores."""
    kind, examples, features = prepared.kind, prepared.examples[split], prepared.features[split]
    predictions = kind.decode(examples, features, predict(model, features, prepared, options))
    return kind.score(examples, predictions), predictions


def train(seed: int, prepared: Prepared, options: Options) -> tuple[nn.Module, Measures, list[str]]:
    """Fine-tune once: update the model for some epochs, and choose one of them by the development set.

    Everything random is seeded by (seed, purpose, epoch or step): a seed gives the same model every time.
    returns   the model as it was after the epoch that did best on the development set (after the last one
              where there is none), its scores there (none without a development set), the lines of log.csv
    """
    kind, features, device = prepared.kind, prepared.features["train"], prepared.device
    metric = kind.task.metric

    # 1. The model: a head drawn at random on top of the pre-trained encoder (load_encoder has an exception).
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
    total_steps = options.epochs * math.ceil(len(features) / options.batch_size)
    warmup_steps = int(WARMUP_SHARE * total_steps)

    best_weights, dev_scores = None, Measures()
    log = [f"epoch,loss,dev_{metric}"]
    progress, step = data.Progress(total_steps, f"steps of seed {seed}"), 0
    for epoch in range(1, options.epochs + 1):
        # 3. An epoch: every feature once, in a new order, in batches of padded rows with their labels.
        order, losses = data.seed_for(seed, epoch - 1, "order"), []
        for _, (*inputs, labels) in make_batches(features, options.batch_size, order, prepared, options):
            # 4. An update: forward, backward, gradients clipped to norm 1, Adam. Losses stay on the device,
            #    because reading one would wait for its step.
            device.seed(data.seed_for(seed, step, "dropout"))
            with device.autocast():
                loss = model.loss(model(*inputs), labels, **settings)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step(learning_rate_at(step, total_steps, warmup_steps, options.learning_rate))
            losses.append(loss.detach())
            device.flush()
            step += 1
            progress.show(step)

        # 5. Is all finite? A loss or gradient of nan makes weights of nan, and so their sum. Such a model
        #    would still be scored: it ranks the first candidate first.
        mean_loss = torch.stack(losses).mean().item()
        sum_of_weights = torch.stack([weight.detach().sum() for weight in weights]).sum().item()
        if not math.isfinite(mean_loss + sum_of_weights):
            raise ValueError(f"seed {seed}, epoch {epoch}: the loss or the weights are not finite: lower "
                             "--learning-rate")
        log.append(f"{epoch},{mean_loss:.6g},")

        # 6. The development set chooses the epoch. The test set has no part in this.
        if "dev" in prepared.examples:
            scores, _ = evaluate(model, "dev", prepared, options)
            if best_weights is None or scores[metric] > dev_scores[metric]:
                dev_scores = scores
                best_weights = {name: weight.clone() for name, weight in model.state_dict().items()}
                device.flush()          # else XLA would copy within the next step, by a program of its own
            log[-1] += f"{scores[metric]:.6g}"
            progress.show(step, f"epoch {epoch}: dev {metric} {scores[metric]:.4f}")
    progress.finish()
    if best_weights:
        model.load_state_dict(best_weights)
    return model, dev_scores, log


def fit_seed(seed: int, prepared: Prepared, options: Options, folder: Path) -> None:
    """Fine-tune once and write what came of it, except scores on the test set.

        log.csv     epoch,loss,dev_f1
                    1,0.412351,0.71209
        model/      the model of the chosen epoch, in the Hugging Face layout, with task.json beside it:
                    {"task": "demo-ner", "max_length": 128, "tag_loss": "softmax",
                     "marks_inside_words": ["a-1"]}
        dev.json    {"f1": 0.84, ...}, or {} without a development set
    """
    model, dev_scores, log = train(seed, prepared, options)
    write_lines(folder / "log.csv", log)
    facts = {"task": options.task, "max_length": options.max_length, "tag_loss": options.tag_loss,
             **prepared.kind.facts}
    save_pretrained(model, folder / "model", prepared.tokenizer, prepared.kind.labels,
                    {TASK_FILE: json.dumps(facts, indent=1).encode()})
    # The scores are written last: a folder that has them need not be trained again.
    write_json(folder / "dev.json", dev_scores)


def score_model(title: str, model: nn.Module, prepared: Prepared, options: Options, folder: Path,
                dev_scores: Measures) -> Measures:
    """Score a trained model on the test set, and write what came of it; return the scores.

        predictions.*    the test set in the task's own submission format
        errors.md        what is wrong with these predictions
        scores.json      {"task": "ner", "test_set": "test set", "dev": {"f1": 0.84, ...}, "test": {...}}

    title   what errors.md says of the model, such as "seed 0"
    """
    kind, test = prepared.kind, prepared.examples["test"]
    scores, predictions = evaluate(model.to(prepared.device.kind), "test", prepared, options)
    kind.write(folder, test, predictions)
    write_errors(folder / "errors.md", f"Errors of {options.task}, {prepared.test_set}, {title}",
                 list(kind.errors(test, predictions)))
    # The scores are written last: a folder that has them is finished.
    write_json(folder / "scores.json", {"task": options.task, "test_set": prepared.test_set + kind.remark,
                                        "dev": dev_scores, "test": scores})
    return scores


# --- 4. Seeds, search, tables ---

def fetch_absent(options: Options) -> None:
    """Download a task's published files if its train or test file is not there.

    Where that fails, the problem is said. `data.read_splits` then tells what to put where, or cuts the file
    that is there.
    """
    absent = not all(data.find_split(options.task, split, options.data) for split in ("train", "test"))
    if absent and options.data and not options.offline and data.missing_files(options.task, options.data):
        try:
            data.fetch_task(options.task, options.data)
        except (OSError, ValueError) as problem:
            say(f"*** {problem} ***")


def encode_splits(kind: Any, tokenizer: Tokenizer, config: ElectraConfig, examples: dict[str, list],
                  options: Options) -> dict[str, list[Feature]]:
    """Make the features of each split, and say at once, not after hours, what is cut or cannot be found.

    raises   ValueError where the rows are longer than the model can read, or too short to hold a text
    """
    length, features = options.max_length, {}
    if not 8 <= length <= config.max_position_embeddings:
        raise ValueError(f"--max-length, or that of {TASK_FILE}, is {length}: the model reads 8 to "
                         f"{config.max_position_embeddings} tokens")
    for split, part in examples.items():
        features[split] = kind.encode(part, tokenizer, length)
        rows = kind.describe_features(features[split], length)
        say(f"{options.task} {split}: {len(part):,} examples, {rows}")
        kind.announce(split, part, features[split])
    return features


def prepare(options: Options, start: Path | None, seed: int) -> Prepared:
    """Read the task's files and the tokenizer, and make the features; print what was cut or split."""
    # 1. Examples, and the labels to tell apart.
    init = None if options.scratch else start
    if not init:        # comparisons need such a run; but it is always announced
        say("*** FROM SCRATCH: scores will be far lower; train_pretrain.py makes a model to start from ***")
    device = Device.choose(options.device, options.precision, options.tpu)
    examples, test_set = data.read_splits(options.task, options.data, seed)
    task = data.TASKS[options.task]
    kind = KINDS[task.kind](task._replace(negative=options.negative or task.negative), examples["train"])
    if kind.labels != task.labels:
        say(f"labels of the training set: {', '.join(map(visible, kind.labels))}{kind.remark}")

    # 2. Vocabulary and sizes: those of the model, or what the training set gives.
    if start:
        tokenizer = Tokenizer.from_file(start, lowercase=False if options.cased else None)
        if doubt := tokenizer.casing_doubt():
            say(f"{start}: {doubt}")
        config = read_config(start)
    else:
        pieces = learn_vocab(map(kind.text_of, examples["train"]), SCRATCH_VOCAB_SIZE, not options.cased)
        tokenizer = Tokenizer(pieces, lowercase=not options.cased)
        config = PRESETS["tiny"].with_tokenizer(tokenizer)
    p = options.dropout
    config = dataclasses.replace(config, hidden_dropout_prob=p, attention_probs_dropout_prob=p)

    # 3. Features of each split. Those for training need a label: an answer may be nowhere in its passage.
    features = encode_splits(kind, tokenizer, config, examples, options)
    features["train"] = [feature for feature in features["train"] if feature.labels is not None]
    return Prepared(kind, tokenizer, config, init, device, examples, features, test_set)


def score_table(options: Options, results: list[Measures], test_set: str = "test set") -> str:
    """Write one line for each measure, in percent: mean and standard deviation, and the papers' figures.

        ncbi-disease, test set, 2 seeds
                                        mean      sd    ELECTRAMed   Bio-ELECTRA            ++      ++ tuned
        settings                     default               default       default       default      searched
        precision                      60.00   14.14         85.87  73.47 (0.92)  75.44 (1.06)  83.40 (0.79)
        f1                             65.00    7.07         87.54  78.32 (0.52)  80.01 (0.68)  84.85 (0.65)
        f1 of each seed: 60.00, 70.00

    Only columns with the same settings compare like with like. Default settings are those of a paper's
    protocol, "own" are others that the command line gave, and those of a model that was trained before are
    unknown. For BioASQ the sum over the batches comes last, as in ELECTRAMed's Table 10: a system that is the
    best in all five batches has 5. Of fewer batches the line says how many there are.
    """
    task = data.TASKS[options.task]
    # 1. A column for each paper that reports a score of this task, with how its settings were found.
    published = published_scores(options.task)
    papers = list(dict.fromkeys(paper for row in published.values() for paper in row))
    is_default = all(getattr(options, name) == value for name, value in protocol_values(options).items())
    settings = ("unknown" if options.evaluate else "searched" if options.search
                else "default" if is_default else "own")
    several = len(results) > 1                      # one seed has no deviation
    rows = [["", "mean", "sd" * several, *papers],
            ["settings", settings, "", *("searched" if "tuned" in paper else "default" for paper in papers)]]
    # 2. A row for each measure. Types of entities come from gold and predicted tags, so one seed may have a
    #    type that the others lack; its measures count as 0 for these.
    means = {}
    for measure in dict.fromkeys(measure for result in results for measure in result):
        means[measure], sd = metrics.mean_and_sd([100 * result.get(measure, 0.0) for result in results])
        theirs = [published.get(measure, {}).get(paper, "") for paper in papers]
        rows.append([measure, f"{means[measure]:.2f}", f"{sd:.2f}" * several, *theirs])
    # 3. The rows as lines, and the score of each seed.
    lines = [f"{options.task}, {test_set}, {len(results)} seed{'s' * several}"]
    for name, first, second, *cells in rows:
        lines.append((f"{name:28}{first:>8}{second:>8}" + "".join(f"{cell:>14}" for cell in cells)).rstrip())
    every = ", ".join(f"{100 * result[task.metric]:.2f}" for result in results)
    lines.append(f"{task.metric} of each seed: {every}")
    # 4. The sum over the batches of our MRR / the best system's. Other editions of BioASQ had other systems.
    shares = [means[f"batch {batch} mrr"] / 100 / best for batch, best in BEST_MRR.items()
              if published and f"batch {batch} mrr" in means]
    if shares:
        lines.append(f"sum over {len(shares)} batches of MRR / best MRR (ELECTRAMed's Table 10): "
                     f"ours {sum(shares):.3f}; {TABLE_10}")
    return "\n".join(lines)


def begin_run(options: Options) -> Path | None:
    """Find the model to start from, and record it with the options in the run folder.

    Once part of the run is finished, options that differ are refused. Otherwise a second call with another
    batch size would add its seeds to those of the first, and nobody would notice. The same would happen with
    other data files, or another model, of the same names. So the contents of all files are compared.

    returns   the model folder that --init names; without --init runs/pretrain, if it is there, or else None
    raises    ValueError naming the option or the files that have changed
    """
    is_there = options.init or Path("runs/pretrain/model/config.json").is_file()
    start = model_folder(options.init or "runs/pretrain") if is_there else None
    files = data.task_files(options.task, options.data)
    if start:           # sizes and vocabulary of the model and, unless from scratch, its weights
        names = ("*config.json", "tokenizer.json", "vocab.txt")
        files += [path for name in names for path in start.glob(name)]
        files += [] if options.scratch else weights_files(start)
    has_begun = any(Path(options.out).rglob("dev.json"))        # of a seed, or of a trial of a search
    made_from = {path.name: data.file_hash(path)[:16] for path in files}
    record_run(Path(options.out), dataclasses.asdict(options), FIXED if has_begun else (), made_from)
    return start


def copy_model(source: Path, target: Path) -> None:
    """Copy the model of a run or a seed to another one, in place of the model there."""
    with written_whole(target / "model") as folder:
        shutil.copytree(source / "model", folder)


def run_seeds(options: Options) -> str:
    """Fine-tune with every seed that is not finished yet; return the table of all seeds.

    OUT then holds seed-0/, seed-1/, ... (fit_seed, score_model), options.json, table.txt, and in model/ the
    model to use.
    """
    out, task, start = Path(options.out), data.TASKS[options.task], begin_run(options)
    # 1. Train and test what is not finished. Where a file is cut, every seed has another part as its test
    #    set. After a search all seeds have part 0: the search has used all the others, and not this one.
    folders = [out / f"seed-{seed}" for seed in range(options.seeds)]
    prepared = None
    for seed, folder in enumerate(folders):
        if (folder / "scores.json").is_file():
            continue
        if prepared is None or (task.parts and not options.search):
            prepared = prepare(options, start, 0 if options.search else seed)
        if not (folder / "dev.json").is_file():         # a search, or an interrupted run, may have trained it
            fit_seed(seed, prepared, options, folder)
        scores = score_model(f"seed {seed}", load_finetuned(folder).model, prepared, options, folder,
                             read_object(folder / "dev.json"))
        say(f"seed {seed}: test {task.metric} {100 * scores[task.metric]:.2f}")

    # 2. The table of all seeds, also of those that were finished before.
    results = [read_object(folder / "scores.json") for folder in folders]
    test_set = "; ".join(dict.fromkeys(result["test_set"] for result in results))
    table = score_table(options, [result["test"] for result in results], test_set)
    write_lines(out / "table.txt", [table])

    # 3. The model to use: that of the seed with the best development score (the test set never chooses).
    #    Without a development set all seeds count 0, and max takes the first.
    best = max(range(options.seeds), key=lambda seed: results[seed]["dev"].get(task.metric, 0.0))
    copy_model(folders[best], out)
    files = ", ".join(sorted(os.listdir(folders[best])))
    say(f"{folders[best]} holds {files}; to read a text: python train_finetune.py --out {out} --predict FILE")
    return table


def search(options: Options) -> str:
    """Try random points of the grid, each with seed 0; run all seeds with the one of the best dev score.

    Each point has a folder of its own in OUT, such as learning-rate-0.0001-epochs-5-batch-size-32. The seeds
    are written into that of the best one, whose seed 0 is trained already; OUT/model is their best model.
    No point is trained twice: an interrupted search continues, and one with a larger number draws the same
    points first, and then more, all 64 at most. search.csv lists them, the best first:

        learning_rate,epochs,batch_size,dev_f1
        0.0001,15,12,0.861204

    returns   the table of the seeds
    source    Bio-ELECTRA's grid; it was searched by hyperopt there, at random here
    """
    metric, start = data.TASKS[options.task].metric, begin_run(options)
    # 1. Draw the points.
    points = list(itertools.product(*GRID.values()))
    random.Random(0).shuffle(points)
    prepared, scored = None, []
    for point in points[:options.search]:
        values = dict(zip(GRID, point))
        name = "-".join(f"{key.replace('_', '-')}-{value:g}" for key, value in values.items())
        trial = dataclasses.replace(options, out=f"{options.out}/{name}", **values)
        # 2. Train with each. The files of examples and features are the same for all, so they are read once.
        begin_run(trial)
        folder = Path(trial.out) / "seed-0"
        if not (folder / "dev.json").is_file():
            prepared = prepared or prepare(trial, start, 0)
            if "dev" not in prepared.examples:
                raise ValueError(f"--search: {options.task} has no development set to choose by")
            fit_seed(0, prepared, trial, folder)
        scored.append((read_object(folder / "dev.json")[metric], trial))
        say(f"point {len(scored)} of {options.search}: {name}: dev {metric} {100 * scored[-1][0]:.2f}")
    # 3. List them. Of equally good points the one that was drawn first comes first.
    scored.sort(key=lambda pair: -pair[0])
    rows = [",".join(f"{getattr(trial, key):g}" for key in GRID) + f",{score:.6g}" for score, trial in scored]
    write_lines(Path(options.out) / "search.csv", [f"{','.join(GRID)},dev_{metric}", *rows])
    # 4. Run all seeds with the best one.
    _, best = scored[0]
    table = run_seeds(best)
    copy_model(Path(best.out), Path(options.out))
    return table


def score_curve(options: Options) -> str:
    """Fine-tune from every model that a pre-training run kept; write curve.csv: mean and 95 % interval.

    Does more pre-training help downstream? Each model is fine-tuned with all seeds, in a folder of its own.

        step,f1,low,high
        20000,78.12,77.40,78.84

    One seed has no interval: then the last two columns are empty.
    returns   the lines of curve.csv
    source    Bio-ELECTRA, Figure 1
    """
    run_folder, out = Path(options.init or "runs/pretrain"), Path(options.out)
    models, metric = sorted(run_folder.glob("models/step-" + "[0-9]" * 8)), data.TASKS[options.task].metric
    if not models:
        raise ValueError(f"--curve: {run_folder / 'models'} holds no models: expected a run of "
                         "train_pretrain.py, which keeps one every --keep-every steps")
    lines = [f"step,{metric},low,high"]
    for model in models:
        run_seeds(dataclasses.replace(options, init=str(model), out=str(out / model.name)))
        folders = [out / model.name / f"seed-{seed}" for seed in range(options.seeds)]
        values = [100 * read_object(folder / "scores.json")["test"][metric] for folder in folders]
        low, high = metrics.confidence_interval(values)
        interval = f"{low:.2f},{high:.2f}" if options.seeds > 1 else ","
        step, mean = int(model.name.removeprefix("step-")), metrics.mean_and_sd(values)[0]
        lines.append(f"{step},{mean:.2f},{interval}")
    write_lines(out / "curve.csv", lines)
    return "\n".join(lines)


# Trained models.

def as_trained(options: Options, trained: Finetuned, examples: dict[str, list]) -> tuple[Prepared, Options]:
    """Prepare the use of a trained model: return what predict and evaluate take, with its labels and options.

    raises   ValueError where the model is not of the task's kind, or tells other labels apart
    """
    # 1. Is it a model for this task? (The order of the labels is the model's own.)
    task, model = data.find_task(options.task), trained.model
    head = KINDS[task.kind].head
    if not isinstance(model, head) or set(trained.labels) != set(task.labels or trained.labels):
        theirs = ", ".join(map(visible, trained.labels)) or "no labels"
        ours = ", ".join(task.labels) or "any labels"
        trained_as = f" (of --task {trained.facts['task']})" if "task" in trained.facts else ""
        raise ValueError(f"{options.task} asks for a {head.__name__} with {ours}, the model is a "
                         f"{type(model).__name__} with {theirs}{trained_as}: choose another --task or model")
    task = task._replace(labels=trained.labels, negative=options.negative or task.negative)
    kind = KINDS[task.kind](task, (), trained.facts)

    # 2. The options it was trained with; a published model has those of the protocol.
    for name, type_ in (("max_length", int), ("tag_loss", str)):
        if name in trained.facts:
            options = dataclasses.replace(options, **{name: data.take(trained.facts, name, type_, TASK_FILE)})
    device = Device.choose(options.device, options.precision, options.tpu)
    model.to(device.kind)
    features = encode_splits(kind, trained.tokenizer, model.config, examples, options)
    return Prepared(kind, trained.tokenizer, model.config, None, device, examples, features), options


def score_trained(options: Options) -> str:
    """Score a trained model on the task's test set, and return the table; nothing is trained.

    The model is that of --init, or else of --out. Its table, predictions and errors.md go into a folder
    "evaluation": in --out with --init, beside the model without.
    """
    trained = load_finetuned(options.init or options.out)
    parent = Path(options.out) if options.init else model_folder(options.out).parent
    examples = {"test": data.read_task(options.task, "test", options.data)}
    prepared, options = as_trained(options, trained, examples)
    with data.only_process(folder := parent / "evaluation"):
        scores = score_model("without training", trained.model, prepared, options, folder, {})
        table = score_table(options, [scores], prepared.test_set + prepared.kind.remark)
        write_lines(folder / "table.txt", [table])
    say(f"predictions and errors are in {folder}")
    return table


# --- 5. Raw text ---
#
# Raw text goes the same way as a test set: the kind makes examples of its lines, encodes them, and decodes
# the outputs. Only the last step differs: results are printed for each line, and nothing is scored.

def read_line(text: str, fields: Sequence[str], place: str) -> dict[str, str]:
    """Return what a line holds by name: {"text": ...}, or {"question": ..., "passage": ...} read from JSON.

    fields    the names; of a single one the text is the line as it is, and so is that of an empty line
    raises    ValueError naming the place of a line that is not such JSON
    """
    if len(fields) == 1 or not text.strip():
        return {"text": text}
    place += ": expected {" + ", ".join(f'"{field}": "..."' for field in fields) + "}"
    content = data.parse_json(text, place)
    return {field: data.take(content, field, str, place) for field in fields}


def input_lines(path: str, fields: Sequence[str]) -> Iterator[RawLine]:
    """Yield the lines of a file, or of standard input for "-", as they are; of a corpus file its documents.

    XML and archives are read as for pre-training; an empty line stands between their sentences. The file is
    opened once, so that a pipe can be read, too.

    fields    what the lines should hold (read_line); where they look otherwise, that is said
    raises    ValueError naming file and line where it is not UTF-8, or the archive is damaged
    """
    form = "text" if len(fields) == 1 else "JSON"
    with data.open_file(path) as file:
        format = data.detect_format(file)
        if format in ("xml", "tar"):
            for number, document in enumerate(data.read_documents(path, file=file), start=1):
                content = read_line("\n\n".join(document), fields, f"{path} document {number}")
                yield {"document": number, **document.id, **content}
        else:
            if format not in ("text", "binary", form):
                say(f"*** {path} seems to be {format}: each line is read as {form} ***")
            for number, text in data.numbered_lines("standard input" if path == "-" else path, file):
                yield {"line": number, **read_line(text, fields, f"{path} line {number}")}


def predict_lines(options: Options) -> None:
    """Print one JSON line for each line of a file or of standard input.

    Lines are read in blocks: rows of like length then share a batch, and a file of any size fits in memory.
    raises    ValueError naming a model without task.json, or the line that cannot be read
    """
    # 1. The model, and what task.json says of its training. (Published models have none: use --evaluate.)
    trained = load_finetuned(options.out)
    task = data.take(trained.facts, "task", str, f"{options.out}: {TASK_FILE}")
    prepared, options = as_trained(dataclasses.replace(options, task=task), trained, {})
    kind, lines = prepared.kind, input_lines(str(options.predict), prepared.kind.raw_fields)
    if sys.stdout is None:
        raise ValueError("standard output is closed: redirect it to a file")
    is_ascii = "utf" not in str(sys.stdout.encoding).lower()        # then β has to be written as \u03b2

    while block := list(itertools.islice(lines, READ_AT_ONCE)):
        # 2. Each line of the block gives some examples: an empty one none, a text one for each sentence.
        read = [list(kind.raw_examples(line, trained.tokenizer))
                if any(line.get(field, "").strip() for field in kind.raw_fields) else [] for line in block]
        examples = [example for some in read for example in some]
        # 3. Their outputs are computed together, as those of a test set.
        features = kind.encode(examples, trained.tokenizer, options.max_length)
        if any(feature.is_cut for feature in features):
            say(f"of {len(examples)} texts, {kind.describe_features(features, options.max_length)}")
        outputs = predict(trained.model, features, prepared, options)
        results = kind.results(examples, features, outputs, options)
        # 4. A line is printed with what was found in its examples.
        for line, some in zip(block, read):
            found = kind.line_result(list(itertools.islice(results, len(some))))
            print(json.dumps({**line, **found}, ensure_ascii=is_ascii))


# --- 6. Command line ---

def run(options: Options) -> int:
    """Do what the options ask for, and print its result on standard output; return 0.

    What is said meanwhile goes to standard error, so that results can be redirected into a file.
    """
    if options.predict:
        predict_lines(options)
        return 0
    fetch_absent(options)
    if options.evaluate:
        result = score_trained(options)
    else:
        job = score_curve if options.curve else search if options.search else run_seeds
        with data.only_process(options.out):
            result = job(options)
    print(result, flush=True)
    return 0


def check(options: Options) -> None:
    """Refuse options that do not go together; raise ValueError naming them."""
    given = {name for name, default in vars(Options()).items() if getattr(options, name) != default}
    # 1. Options that only one kind of task has: with another kind they would silently do nothing.
    for name, kind in OWN_OPTIONS.items():
        if name in given and kind is not KINDS[data.TASKS[options.task].kind]:
            raise ValueError(f"{flag(name)} is for {kind.__name__}, not for {options.task}")
    # 2. Four things to do, of which a command can do one.
    if len(given & {"search", "curve", "evaluate", "predict"}) > 1:
        raise ValueError("--search, --curve, --evaluate and --predict are different things to do: choose one")
    # 3. A search draws these values itself.
    if options.search and given & set(GRID):
        raise ValueError("--search draws --learning-rate, --epochs and --batch-size itself: drop these")
    # 4. A trained model is used as it was trained: its folder says how.
    needed = {"task"} if options.predict else {"task", "data", "init", "negative"}
    idle = sorted(given & set(FIXED) - needed)
    if (options.predict or options.evaluate) and idle:
        raise ValueError(f"--predict and --evaluate use a model as it was trained: drop {flag(idle[0])}")
    # 5. The demo tasks are invented, and read no files: with --data, another task was meant.
    if options.task.startswith("demo-") and options.data and "data" in given:
        raise ValueError(f"--data: {options.task} reads no files: choose a --task of {options.data}")
    # 6. A rate that grows from layer to layer downwards has no use, and soon no number.
    if (options.layer_decay or 0) > 1:
        raise ValueError(f"--layer-decay must be at most 1, not {options.layer_decay}")
    # 7. Where to compute.
    if options.tpu and options.device != "auto":
        raise ValueError("--tpu computes on XLA devices: drop --device")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("fine-tuning uses one device, or with --tpu all of this machine: drop torchrun")


def protocol_values(options: Options) -> dict[str, Any]:
    """Return the hyper-parameters that the protocol has for the task.

    In Bio-ELECTRA's protocol, for example, the batch size of all tasks is 12, but ChemProt has an entry of
    its own with 24.
    """
    values: dict[str, Any] = {}
    for part in ("", data.TASKS[options.task].kind, options.task):      # from what holds for all to one's own
        values |= PROTOCOLS[options.protocol].get(part, {})
    return values


def complete(options: Options) -> Options:
    """Check the options, and fill in from the task's protocol what the command line left open."""
    check(options)
    default = "bio-electra" if "bio_electra" in data.TASKS[options.task].source else "electramed"
    options = dataclasses.replace(options, protocol=options.protocol or default)
    values = {"out": f"runs/finetune/{options.task}", **protocol_values(options)}
    still_open = {name: value for name, value in values.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **still_open)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; return the exit status."""
    # Options are parsed inside the command, because their errors too become one line and exit status 2.
    tables = {f"{protocol} {part}".strip(): values for protocol, parts in PROTOCOLS.items()
              for part, values in parts.items()}
    return data.run_command(lambda: run(complete(
        parse_options(Options, "Fine-tune ELECTRA on a task.", arguments, tables))))


if __name__ == "__main__":
    sys.exit(main())
