"""Fine-tune a pre-trained ELECTRA on a task of the papers, and score it as they do.

After reading this file you hold the second half of both papers: a head on top of the discriminator, layer-wise
learning rates, the choice of the best epoch on the development set, several seeds, and each task's own metric,
submission format and list of errors.

    python train_finetune.py --task demo-ner                          # after train_pretrain.py: ten seconds
    python train_finetune.py --task ncbi-disease --data corpora --init runs/med --seeds 5
    python train_finetune.py --out runs/finetune/ncbi-disease --predict notes.txt            # read raw text

Where it stands: data.py reads task files and makes features, electramed.py holds the heads, metrics.py the
scores. `--init` takes a pre-training run, a fine-tuned run (SQuAD first, then BioASQ), or a published folder.
The test set is scored once a seed, after the epoch was chosen; where there is no development set, the last epoch
counts.
Sources: ELECTRAMed Tables 5 and 7-9; Bio-ELECTRA, its paper and released scripts; TF finetune/ (qa, tagging and
classification tasks).

    1. Options and protocol     2. The kinds of task, their errors     3. Training one seed
    4. Seeds, search, tables    5. Raw text                            6. Command line
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
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Where torch's threads compute one product together (the optimiser; rows of a batch they compute side by side), they
# wait asleep. Waiting by spinning, their default, takes the cores from every other process, and from the side-by-side
# threads; it has to be said before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

import data
import metrics
from data import Feature, Task, option, say
from electramed import (IGNORED_LABEL, PRESETS, Adam, Device, ElectraConfig, SequenceClassifier, SpanExtractor,
                        TokenTagger, learning_rate_at, load_encoder, load_weights, model_folder, parameter_groups,
                        read_config, save_pretrained)
from tokenizer import Tokenizer, learn_vocab


# --- 1. Options and protocol ---

@dataclass(frozen=True)
class Options:
    """The command line. What is None follows from the task's protocol."""

    task: str = option("demo-ner", "what to fine-tune on", choices=list(data.TASKS))
    data: str | None = option(os.environ.get("ELECTRAMED_DATA", "corpora"), "folder of the published data sets, "
                              "or of this task's train, dev and test files")
    offline: bool = option(False, "do not download a published data set that is not there")
    protocol: str = option(None, "whose hyper-parameters to use (default: those of the paper that has the task, "
                           "ELECTRAMed's if both do)", choices=["electramed", "bio-electra"])
    init: str | None = option(None, "pre-training run, fine-tuned run or model folder to start from; none: from "
                              "scratch (default: runs/pretrain, if it is there)")
    like: str | None = option(None, "with --init none: the model folder whose sizes and vocabulary to use "
                              "(default: runs/pretrain; without it tiny, with a vocabulary of the training set)")
    out: str = option(None, "run folder (default: runs/finetune/TASK); finished seeds are not run again")
    seeds: int = option(1, "runs with seeds 0, 1, ...; the table gives their mean and standard deviation", at_least=1)
    search: int | None = option(None, "first try that many random points of Bio-ELECTRA's grid of learning rate, "
                                "epochs and batch size on the development set; the seeds then run with the best",
                                at_least=1)
    curve: bool = option(False, "fine-tune from each model that the pre-training run --init kept, and write the score "
                         "against its steps")
    predict: str | None = option(None, "read a file (-: standard input) with the model of --out instead of training: "
                                 "a text a line, or for pairs {\"question\": ..., \"passage\": ...}; "
                                 "JSON lines come out")

    epochs: int = option(None, "passes over the training set", at_least=1)
    batch_size: int = option(None, "examples in a batch", at_least=1)
    max_length: int = option(None, "tokens of the longest row; what is longer becomes windows", at_least=8)
    learning_rate: float = option(None, "peak learning rate of the head", at_least=0)
    layer_decay: float = option(None, "factor of the learning rate from each layer to the one below", at_least=0)
    weight_decay: float = option(None, "decoupled weight decay", at_least=0)
    dropout: float = option(None, "dropout of hidden states and attention", at_least=0)
    class_weights: bool = option(False, "for ranking: weigh the loss 1 to 99 in favour of the few right candidates")
    tag_loss: str = option("softmax", "for entities: one softmax over the labels, or a binary classifier for each",
                           choices=["softmax", "binary"])
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda"])
    precision: str | None = option(None, "default: float32 on the CPU, bfloat16 on a GPU",
                                   choices=["float32", "bfloat16"])


# may change when finished seeds are kept
FREE = ("out", "seeds", "protocol", "device", "precision", "offline", "search", "curve", "predict")
FIXED = tuple(field.name for field in dataclasses.fields(Options) if field.name not in FREE) + ("starting_model",)

WARMUP_SHARE = 0.1              # of all steps
QUESTION_LENGTH = 64            # pieces
DOCUMENT_STRIDE = 128           # pieces between two windows of a passage

PLACES = 3                      # of one and the same error that errors.md shows

CLASS_WEIGHTS = (1.0, 99.0)     # of wrong and right candidates, with --class-weights; the loss is a weighted mean

# ELECTRAMed, Table 5. The paper gives no epochs: 3 and, for questions, 2 are official ELECTRA's.
TABLE_5 = {"epochs": 3, "batch_size": 32, "max_length": 128, "learning_rate": 5e-5, "layer_decay": 0.8,
           "weight_decay": 0.0, "dropout": 0.1}
# What holds for all tasks (""), then what differs for a kind, then for a task.
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
# What --search draws from: Bio-ELECTRA's grid.
GRID: dict[str, tuple[Any, ...]] = {"learning_rate": (1e-5, 5e-5, 1e-4, 5e-4), "epochs": (3, 5, 15, 20),
                                "batch_size": (12, 24, 32, 64)}
# The demo tasks are small and so is the model that `python train_pretrain.py` makes: larger steps, more epochs.
DEMO = {"epochs": 20, "batch_size": 16, "learning_rate": 1e-3}
PROTOCOLS["electramed"] |= {"demo-ner": DEMO, "demo-re": DEMO, "demo-qa": {**DEMO, "max_length": 256}}

# Test scores in percent: ELECTRAMed, Tables 7, 8 and 9; Bio-ELECTRA, Bio-ELECTRA++ without and with tuning, and
# Bio-ELECTRA with class weights.
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
    "bioasq7b": {
        f"batch {batch} {name}": (score,) for batch, scores in enumerate(
            [(44.62, 51.28, 47.95), (46.40, 62.40, 53.16), (37.93, 58.62, 46.62), (61.18, 82.35, 69.55),
             (24.57, 44.00, 31.42)], start=1)
        for name, score in zip(("strict_accuracy", "lenient_accuracy", "mrr"), scores)},
    "bioasq8b": {"exact_match": (None, 57.51, 57.93), "f1": (None, 66.87, 67.48)},
    "yesno": {"yes f1": (None, 92.66, 93.19), "no f1": (None, 58.18, 69.84)},
    "rerank": {"mrr": (None, 32.5, 33.5, None, 33.2)},
}
# MRR of the best system in each batch of BioASQ 7b (ELECTRAMed, Table 9); divided by it and added up: Table 10.
BEST_MRR = (0.4795, 0.5667, 0.5115, 0.6955, 0.3638)


# --- 2. The kinds of task, their errors ---
#
# A kind says how examples become features, what the model's output for them means, how that is scored, in which
# form it is handed in, and what is wrong with it. An output is what the head gives for one feature, cut to its
# real tokens: (T, C) for ner, decoded to a tag for each word; (C,) for re and classify, to a label, and for rank,
# to the probability of label 1; (T, 2) for qa, to spans.

Measures = dict[str, float]            # name -> score; the names are the rows of the table
Answers = list[list[data.Answer]]      # to the question of each example, best first


class Error(NamedTuple):
    """One thing that is wrong, as errors.md lists it."""

    headings: tuple[str, ...]   # from the widest group down to what is counted: ("Drug", "missed", "jorganux")
    lines: tuple[str, ...]      # Markdown: where it happened, and what was expected and predicted


Report = tuple[list[Error], str]       # and a note for the head of errors.md


class Kind(NamedTuple):
    """The parts in which tagging, classification, question answering and ranking differ."""

    head: Callable[[ElectraConfig, int], nn.Module]                 # (configuration, number of labels)
    encode: Callable[..., tuple[list[Feature], str]]                # (examples, tokenizer, labels, max_length)
    decode: Callable[..., list]                                     # (examples, features, outputs, labels)
    score: Callable[[Task, list, list], Measures]                   # (task, examples, predictions)
    write: Callable[[Task, Path, list, list], None]                 # (task, folder, examples, predictions)
    errors: Callable[[Task, list, list[Feature], list], Report]     # (task, examples, features, predictions)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, each line with its end."""
    data.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def plain(text: str) -> str:
    """The text on one line, its characters that mean something in Markdown behind a backslash."""
    return " ".join(text.split()).translate({ord(character): "\\" + character for character in "\\`*[]<"})


def precision_recall_f1(scores: metrics.Scores, prefix: str = "") -> Measures:
    """Precision, recall and F1, over all types and for each."""
    named = {prefix: scores}
    if len(scores.per_type) > 1:
        named |= {f"{name} ": part for name, part in sorted(scores.per_type.items())}
    return {prefix + measure: getattr(part, measure) for prefix, part in named.items()
            for measure in ("precision", "recall", "f1")}


def score_tags(task: Task, examples: list[data.TaggedSentence], predictions: list[list[str]]) -> Measures:
    """Exact-match entities by the conlleval rules."""
    return precision_recall_f1(metrics.entity_scores([example.tags for example in examples], predictions))


def write_tags(task: Task, folder: Path, examples: list[data.TaggedSentence], predictions: list[list[str]]) -> None:
    """CoNLL columns: word, gold tag, predicted tag; what the conlleval script reads."""
    sentences = ("".join(f"{word} {gold} {predicted}\n" for word, gold, predicted in
                         zip(example.words, example.tags, tags)) for example, tags in zip(examples, predictions))
    data.write_bytes(folder / "predictions.txt", "\n".join(sentences).encode())


def mark_spans(words: list[str], gold: metrics.Span | None, predicted: metrics.Span | None) -> str:
    """The sentence with the gold entity in **bold** and the predicted one in [brackets], which may overlap it."""
    shown = [plain(word) for word in words]
    for span, opening, closing in ((gold, "**", "**"), (predicted, "[", "]")):
        if span:
            _, start, end = span
            shown[start] = opening + shown[start]
            shown[end - 1] += closing
    return " ".join(shown)


def tag_errors(task: Task, examples: list[data.TaggedSentence], features: list[Feature],
               predictions: list[list[str]]) -> Report:
    """Entities of each type that were missed, spurious, or got another boundary or type, by what they read."""
    errors, count = [], Counter[str]()
    for example, tags in zip(examples, predictions):
        for verdict, gold, predicted in metrics.match_entities(*map(metrics.spans_from_tags, (example.tags, tags))):
            count[verdict] += 1
            if verdict != "hit":
                (kind, start, end), *other = filter(None, (gold, predicted))
                group = f"taken for {other[0][0]}" if verdict == "type" else verdict
                errors.append(Error((kind or "entity", group, " ".join(example.words[start:end])),
                                    (mark_spans(example.words, gold, predicted),)))
    return errors, (f"Of {count.total() - count['spurious']} entities {count['hit']} found, {count['missed']} missed, "
                    f"{count['boundary']} with another boundary, {count['type']} taken for another type; "
                    f"{count['spurious']} spurious.\n"
                    "The gold entity stands in **bold**, the predicted one in [brackets].")


def decode_labels(examples: list, features: list[Feature], outputs: list[np.ndarray],
                  labels: Sequence[str]) -> list[str]:
    """The likeliest label of each example."""
    return [labels[int(output.argmax())] for output in outputs]


def score_labels(task: Task, examples: list[data.LabelledText], predictions: list[str]) -> Measures:
    """Micro precision, recall and F1 over the labels but the negative one."""
    gold = [example.label for example in examples]
    return precision_recall_f1(metrics.relation_scores(gold, predictions, task.negative or ""))


def write_labels(task: Task, folder: Path, examples: list[data.LabelledText], predictions: list[str]) -> None:
    """Rows of index and label, in the order of the test file."""
    write_lines(folder / "predictions.tsv", [
        "index\tlabel", *(f"{example.id}\t{label}" for example, label in zip(examples, predictions))])


def label_errors(task: Task, examples: list[data.LabelledText], features: list[Feature],
                 predictions: list[str]) -> Report:
    """False positives, false negatives and confused relations; the negative answer to yes/no questions is 0."""
    negative, errors = task.negative or "0", []
    for example, predicted in zip(examples, predictions):
        if predicted != example.label:
            group = ("false positives" if example.label == negative
                     else "false negatives" if predicted == negative else "one for another")
            errors.append(Error((group, f"{predicted} for {example.label}", example.text),
                                (plain(example.text_pair),) if example.text_pair is not None else ()))
    return errors, f"{len(errors)} of {len(examples)} texts have another label than the gold one."


def score_yesno(task: Task, examples: list[data.LabelledText], predictions: list[str]) -> Measures:
    """BioASQ's measures: the mean of both answers' F1, accuracy, and each answer by itself."""
    gold, predicted = (["yes" if label == "1" else "no" for label in labels]
                       for labels in ([example.label for example in examples], predictions))
    scores = metrics.bioasq_yesno_scores(gold, predicted)
    return {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy,
            **precision_recall_f1(scores.yes, "yes "), **precision_recall_f1(scores.no, "no ")}


def decode_probabilities(examples: list, features: list[Feature], outputs: list[np.ndarray],
                         labels: Sequence[str]) -> list[float]:
    """The probability of label 1 of each candidate."""
    return [float(np.exp(-np.logaddexp(0, output[0] - output[1]))) for output in outputs]


def score_ranking(task: Task, examples: list[data.Candidate], predictions: list[float]) -> Measures:
    """Mean reciprocal rank of each question's first right candidate."""
    groups: dict[str, list[tuple[float, int]]] = {}
    for example, probability in zip(examples, predictions):
        groups.setdefault(example.group, []).append((probability, int(example.label)))
    return {"mrr": metrics.reranking_mrr(groups)}


def write_ranking(task: Task, folder: Path, examples: list[data.Candidate], predictions: list[float]) -> None:
    """Rows of probability, question and candidate, in the order of the test file."""
    write_lines(folder / "predictions.tsv", [
        "probability\tquestion\tanswer_candidate",
        *(f"{probability:.6g}\t{example.text}\t{example.text_pair}"
          for example, probability in zip(examples, predictions))])


def ranking_errors(task: Task, examples: list[data.Candidate], features: list[Feature],
                   predictions: list[float]) -> Report:
    """Questions whose first right candidate is not ranked first, those where it stands lowest before the others."""
    ranked: dict[str, list[data.Candidate]] = {}
    for _, example in sorted(zip(predictions, examples), key=lambda pair: -pair[0]):
        ranked.setdefault(example.group, []).append(example)
    found = []
    for question, candidates in ranked.items():
        first_right = [rank for rank, candidate in enumerate(candidates) if candidate.label == "1"][:1]
        if first_right != [0]:
            group = "not ranked first" if first_right else "no right candidate"
            found.append((first_right, Error((group, question), (
                *(f"right, rank {rank + 1} of {len(candidates)}: {plain(candidates[rank].text_pair)}"
                  for rank in first_right), f"ranked first: {plain(candidates[0].text_pair)}"))))
    errors = [error for _, error in sorted(found, key=lambda pair: pair[0], reverse=True)]
    return errors, f"{len(errors)} of {len(ranked)} questions have no right candidate in the first place."


def question_id(task: Task, example: data.Question) -> str:
    """What all contexts of a question share: in BioASQ several snippets ask the same."""
    return metrics.bioasq_question_id(example.id) if task.metric == "mrr" else example.id


def gold_and_predicted(task: Task, examples: list[data.Question],
                       predictions: Answers) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The gold answers to each question, and those predicted, best first.

    Gold are the accepted synonyms or, where there are none, the answers in the question's contexts. What is
    predicted for BioASQ are up to five answers, merged from all snippets.
    """
    gold: dict[str, list[str]] = {}
    for example in examples:
        accepted = [text for text, _ in example.answers] if example.gold is None else example.gold
        known = gold.setdefault(question_id(task, example), [])
        known += [text for text in accepted if text not in known]
    if task.metric == "mrr":
        return gold, metrics.merge_bioasq_snippets({
            example.id: [(answer.text, answer.probability) for answer in answers]
            for example, answers in zip(examples, predictions)})
    return gold, {example.id: [answer.text for answer in answers] for example, answers in zip(examples, predictions)}


def by_batch(examples: list[data.Question], predictions: Answers) -> dict[int, tuple[list[data.Question], Answers]]:
    """The examples and predictions of each BioASQ test batch."""
    parts: dict[int, tuple[list[data.Question], Answers]] = {}
    for example, answers in zip(examples, predictions):
        if example.batch is not None:
            part = parts.setdefault(example.batch, ([], []))
            part[0].append(example)
            part[1].append(answers)
    return dict(sorted(parts.items()))


def score_answers(task: Task, examples: list[data.Question], predictions: Answers) -> Measures:
    """SQuAD's exact match and F1, or BioASQ's measures: over all questions and for each test batch."""
    if task.metric != "mrr":
        gold, predicted = gold_and_predicted(task, examples, predictions)
        return metrics.squad_scores({name: next(iter(texts), "") for name, texts in predicted.items()}, gold)._asdict()
    parts = {"": (examples, predictions),
             **{f"batch {batch} ": part for batch, part in by_batch(examples, predictions).items()}}
    return {prefix + measure: value for prefix, part in parts.items() for measure, value in
            metrics.bioasq_factoid_scores(*gold_and_predicted(task, *part))._asdict().items()}


def write_answers(task: Task, folder: Path, examples: list[data.Question], predictions: Answers) -> None:
    """SQuAD's {id: text}; for BioASQ one submission file a batch, with up to five answers a question."""
    files: dict[str, Any] = {"predictions.json": {
        name: next(iter(texts), "") for name, texts in gold_and_predicted(task, examples, predictions)[1].items()}}
    if task.metric == "mrr":
        files = {f"predictions-batch-{batch}.json": {"questions": [
            {"id": name, "type": "factoid", "exact_answer": [[text] for text in texts]}
            for name, texts in gold_and_predicted(task, *part)[1].items()]}
            for batch, part in by_batch(examples, predictions).items()}
    for name, content in files.items():
        data.write_bytes(folder / name, json.dumps(content, indent=1, ensure_ascii=False).encode())


def answer_errors(task: Task, examples: list[data.Question], features: list[Feature], predictions: Answers) -> Report:
    """Questions whose best answer is wrong, by where it stands."""
    gold, predicted = gold_and_predicted(task, examples, predictions)
    findable, overlapping = set(), set()        # questions a span can answer; those where a best answer overlaps it
    for example, spans, answers in zip(examples, data.findable_answers(examples, features), predictions):
        if spans:
            findable.add(question_id(task, example))
        if any(span.start < best.end and best.start < span.end and span.text != best.text
               for best in answers[:1] for span in spans):
            overlapping.add(question_id(task, example))
    normal = str.lower if task.metric == "mrr" else metrics.normalise_squad_answer
    errors = []
    for name, question in {question_id(task, example): example.question for example in examples}.items():
        sides = {"gold": gold[name], "predicted": predicted[name][:metrics.FACTOID_ANSWERS]}
        is_right = [normal(text) in map(normal, gold[name]) for text in sides["predicted"]]
        if not any(is_right[:1]):
            group = ("boundary" if name in overlapping else "right, but not first" if any(is_right)
                     else "elsewhere" if name in findable else "out of reach")
            errors.append(Error((group, question), tuple(
                f"{side}: {' | '.join(map(plain, texts)) or 'none'}" for side, texts in sides.items())))
    return errors, (f"{len(errors)} of {len(gold)} questions are answered wrongly.\nBoundary: the best answer overlaps "
                    "a gold one; out of reach: no gold answer is a span of a window.")


PARTS_OF = {
    "ner": Kind(TokenTagger, data.encode_tagging,
                lambda examples, features, outputs, labels:
                    data.decode_tags(examples, features, [output.argmax(-1) for output in outputs], labels),
                score_tags, write_tags, tag_errors),
    "re": Kind(SequenceClassifier, data.encode_classification, decode_labels, score_labels, write_labels, label_errors),
    "classify": Kind(SequenceClassifier, data.encode_classification, decode_labels, score_yesno, write_labels,
                     label_errors),
    "rank": Kind(SequenceClassifier, data.encode_classification, decode_probabilities, score_ranking, write_ranking,
                 ranking_errors),
    "qa": Kind(lambda config, num_labels: SpanExtractor(config),
               lambda examples, tokenizer, labels, max_length:
                   data.encode_questions(examples, tokenizer, max_length, DOCUMENT_STRIDE, QUESTION_LENGTH),
               lambda examples, features, outputs, labels: data.decode_answers(examples, features, outputs),
               score_answers, write_answers, answer_errors),
}


def outline(errors: Sequence[Error], depth: int = 0) -> list[str]:
    """Errors as lines of Markdown under their headings, the most frequent first; of what is equal three places."""
    groups: dict[str, list[Error]] = {}
    for error in errors:
        groups.setdefault(error.headings[depth], []).append(error)
    lines = []
    for heading, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        if depth + 1 < len(group[0].headings):
            lines += ["", f"##{'#' * depth} {heading}: {len(group)}", *outline(group, depth + 1)]
        else:
            times = f"{len(group)} x " if len(group) > 1 else ""
            lines.append(f"- {times}{plain(heading)}")
            lines += [f"  - {line}" for error in group[:PLACES] for line in error.lines]
    return lines


def write_errors(path: Path, title: str, errors: list[Error], note: str) -> None:
    """Write a file to read: what the errors are, how often they occur, and where."""
    equal = Counter(error.headings for error in errors if error.lines)
    if left_out := sum(max(0, count - PLACES) for count in equal.values()):
        note += f"\nOf equal errors the first {PLACES} places are shown, {left_out} are left out."
    write_lines(path, [f"# {title}", "", note, *outline(errors)])


# --- 3. Training one seed ---

class Prepared(NamedTuple):
    """What all seeds share: the task's examples and features, and the model they start from."""

    task: Task
    labels: Sequence[str]
    tokenizer: Tokenizer
    config: ElectraConfig
    init: Path | None                           # None: from scratch
    device: Device
    examples: dict[str, list]                   # by split; dev may be missing
    features: dict[str, list[Feature]]
    test_set: str                               # what the test scores are of


def label_array(kind: str, features: Sequence[Feature], width: int) -> np.ndarray:
    """The labels of a batch: (B, T) for ner, (B, 2) for qa, else (B,)."""
    if kind == "ner":
        return np.array([feature.labels + [IGNORED_LABEL] * (width - len(feature.labels)) for feature in features])
    return np.array([feature.labels for feature in features])


def predict(model: nn.Module, features: Sequence[Feature], options: Options, pad_id: int,
            device: Device) -> list[np.ndarray]:
    """The head's output for each feature, in their order, cut to the feature's tokens."""
    lengths = np.array([len(feature.input_ids) for feature in features])
    outputs: list[Any] = [None] * len(features)
    model.eval()
    for width, rows in data.plan_batches(lengths, 64, options.max_length, np.random.default_rng(0), True):
        batch = [torch.from_numpy(array) for array in data.pad_batch([features[i][1:3] for i in rows], width, pad_id)]

        def logits_of(part: range) -> np.ndarray:
            with torch.inference_mode(), device.autocast():
                inputs = device.put(*(tensor[part.start:part.stop] for tensor in batch))
                return model(*inputs).float().cpu().numpy()

        for i, row in zip(rows, itertools.chain(*device.side_by_side(logits_of, range(len(rows))))):
            outputs[i] = row[:lengths[i]] if row.ndim == 2 else row
    model.train()
    return outputs


def evaluate(model: nn.Module, split: str, prepared: Prepared, options: Options) -> tuple[Measures, list]:
    """Measures and predictions on a split."""
    kind = PARTS_OF[prepared.task.kind]
    examples, features = prepared.examples[split], prepared.features[split]
    outputs = predict(model, features, options, prepared.tokenizer.pad_id, prepared.device)
    predictions = kind.decode(examples, features, outputs, prepared.labels)
    return kind.score(prepared.task, examples, predictions), predictions


def train(seed: int, prepared: Prepared, options: Options) -> tuple[nn.Module, Measures, list[str]]:
    """Fine-tune once.

    returns   the model as it was after the epoch that did best on the development set (after the last one where
              there is none), its scores there, and the lines of log.csv
    """
    task, features, device = prepared.task, prepared.features["train"], prepared.device
    torch.manual_seed(data.seed_for(seed, 0, "weights"))
    model = PARTS_OF[task.kind].head(prepared.config, len(prepared.labels))
    if prepared.init:
        load_encoder(model, prepared.init)
    model.to(device.kind).train()
    settings: Sequence[Any] = ([options.tag_loss == "binary"] if task.kind == "ner"
                               else device.put(torch.tensor(CLASS_WEIGHTS)) if options.class_weights else ())
    weights = list(model.parameters())
    optimizer = Adam(parameter_groups(model, options.weight_decay, options.layer_decay))
    lengths = np.array([len(feature.input_ids) for feature in features])
    per_epoch = -(-len(features) // options.batch_size)
    total_steps = options.epochs * per_epoch
    warmup_steps = int(WARMUP_SHARE * total_steps)
    best_score, best_weights, dev_scores = -1.0, None, {}
    log = ["epoch,loss,dev_" + task.metric]
    progress, step = data.Progress(total_steps, f"steps of seed {seed}"), 0
    for epoch in range(options.epochs):
        rng, losses = np.random.default_rng(data.seed_for(seed, epoch, "order")), []
        for width, rows in data.plan_batches(lengths, options.batch_size, options.max_length, rng, True):
            chosen = [features[i] for i in rows]
            batch = data.pad_batch([feature[1:3] for feature in chosen], width, prepared.tokenizer.pad_id)
            arrays = [torch.from_numpy(array) for array in [*batch, label_array(task.kind, chosen, width)]]
            total = model.total(device.put(arrays[-1])[0], *settings)              # type: ignore[operator]

            def losses_of(part: range) -> tuple[torch.Tensor]:
                *inputs, labels = device.put(*(array[part.start:part.stop] for array in arrays))
                device.seed(data.seed_for(seed, step, f"device {part.start}"))     # dropout
                with device.autocast():
                    return model.loss(model(*inputs), labels, *settings, total=total),     # type: ignore[operator]

            loss = device.backward(losses_of, weights, range(len(rows)))
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.update(learning_rate_at(step, total_steps, warmup_steps, options.learning_rate))
            losses.append(loss[0])
            step += 1
            progress.show(step)
        log.append(f"{epoch + 1},{torch.stack(losses).mean():.6g},")
        if "dev" in prepared.examples:
            scores, _ = evaluate(model, "dev", prepared, options)
            if scores[task.metric] > best_score:
                best_score, dev_scores = scores[task.metric], scores
                best_weights = copy.deepcopy(model.state_dict())
            log[-1] += f"{scores[task.metric]:.6g}"
            progress.show(step, f"epoch {epoch + 1}: dev {task.metric} {scores[task.metric]:.4f}")
    progress.finish()
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return model, dev_scores, log


def run_seed(seed: int, prepared: Prepared, options: Options, folder: Path) -> Measures:
    """Fine-tune once; writes log.csv, the model, test predictions, errors.md, scores.json; returns the test scores."""
    kind, test = PARTS_OF[prepared.task.kind], prepared.examples["test"]
    model, dev_scores, log = train(seed, prepared, options)
    test_scores, predictions = evaluate(model, "test", prepared, options)
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "log.csv", log)
    kind.write(prepared.task, folder, test, predictions)
    write_errors(folder / "errors.md", f"Errors of {options.task}, {prepared.test_set}, seed {seed}",
                 *kind.errors(prepared.task, test, prepared.features["test"], predictions))
    save_pretrained(model, folder / "model", prepared.tokenizer, prepared.labels)
    record = {"dev": dev_scores, "test": test_scores,
              **({} if prepared.test_set == "test set" else {"test_set": prepared.test_set})}
    data.write_bytes(folder / "scores.json", json.dumps(record, indent=1).encode())   # last: this seed is finished
    return test_scores


# --- 4. Seeds, search, tables ---

def find_model(options: Options) -> tuple[Path | None, Path | None]:
    """The folder whose weights to start from, and the folder whose sizes and vocabulary to use."""
    default = "runs/pretrain" if Path("runs/pretrain/model/config.json").is_file() else None
    init, like = options.init or default, options.like or default
    if init and init != "none":
        return model_folder(init), model_folder(init)
    say("*** FROM SCRATCH: no pre-trained model is used, the scores will be far lower. "
        + ("***" if init else "Run train_pretrain.py first, or pass --init. ***"))
    return None, model_folder(like) if like else None


def fingerprint(init: Path | None, like: Path | None) -> str:
    """A short hash of what a run starts from: sizes, vocabulary, and the weights unless it starts from scratch."""
    digest = hashlib.sha256(b"" if init else b"from scratch")
    for name in ("config.json", "vocab.txt", *(("model.safetensors", "pytorch_model.bin") if init else ())):
        if like and (like / name).is_file():
            digest.update((like / name).read_bytes())
    return digest.hexdigest()[:16]


def fetch_absent(options: Options) -> None:
    """Fetch what is published where the train or test file is not there; the error says what was not to be had."""
    try:
        for split in ("train", "test"):
            data.find_split(options.task, split, options.data)
    except FileNotFoundError:
        if options.offline or not options.data or not data.missing_files(options.task, options.data):
            raise
        data.fetch_task(options.task, options.data)


def read_splits(options: Options, seed: int) -> tuple[dict[str, list], str]:
    """Train, dev (where there is one) and test, and what the test set is; where it is a part, another for each seed."""
    task, name = data.TASKS[options.task], options.task
    try:
        if not name.startswith("demo-"):
            fetch_absent(options)
    except (OSError, ValueError) as problem:
        if not task.parts:
            raise
        split, count, _ = task.parts
        try:
            examples = data.cut_splits(task, data.read_task(name, split, options.data), seed)
        except FileNotFoundError:
            raise problem from None
        test_set = f"part {seed % count + 1} of {count} of its {split} file: not the published split"
        say(f"*** {problem}; so the test set is {test_set} ***")
        return examples, test_set
    examples = {split: data.read_task(name, split, options.data) for split in ("train", "test")}
    try:
        dev = data.read_task(name, "dev", options.data)
        if dev != examples["test"]:
            return {"train": examples["train"], "dev": dev, "test": examples["test"]}, "test set"
        say("the development set is the test set and must choose nothing; the last epoch counts")
    except FileNotFoundError as error:
        say(f"{error}; without it the last epoch counts")
    return examples, "test set"


def prepare(options: Options, init: Path | None, like: Path | None, seed: int) -> Prepared:
    """Read the task's files, and the tokenizer, and make the features; says what was cut, split or has no answer."""
    device = Device.choose(options.device, options.precision)
    examples, test_set = read_splits(options, seed)
    task = data.with_labels(data.TASKS[options.task], examples["train"])
    if task != data.TASKS[options.task]:
        say(f"labels of the training set: {', '.join(task.labels)}"
            + (f"; {task.negative} is taken for \"no relation\"" if task.kind == "re" else ""))
    if like:
        tokenizer, config = Tokenizer.from_file(like), read_config(like)
    else:
        tokenizer = Tokenizer(learn_vocab(training_texts(examples["train"]), 4000))
        config = dataclasses.replace(PRESETS["tiny"], vocab_size=len(tokenizer.pieces))
    config = dataclasses.replace(config, hidden_dropout_prob=options.dropout,
                                 attention_probs_dropout_prob=options.dropout)
    if options.precision is None:
        device.mention_bfloat16(config.hidden_size)
    if options.max_length > config.max_position_embeddings:
        raise ValueError(f"--max-length {options.max_length}: the model has {config.max_position_embeddings} "
                         "positions")
    features = {}
    for split, part in examples.items():
        features[split], note = PARTS_OF[task.kind].encode(part, tokenizer, task.labels, options.max_length)
        say(f"{options.task} {split}: {len(part):,} examples, {note}")
        if unknown := data.label_counts(task.kind, part).keys() - set(task.labels):
            say(f"*** {', '.join(sorted(unknown))}: not in the training set, so always missed in {split} ***")
        if task.kind == "qa":
            say_what_can_be_found(task, split, part, features[split])
    return Prepared(task, task.labels, tokenizer, config, init, device, examples, features, test_set)


def say_what_can_be_found(task: Task, split: str, examples: list[data.Question], features: list[Feature]) -> None:
    """Count the questions without a gold answer, and those whose gold no span can give; print the score of the rest."""
    if without := sum(not (example.answers or example.gold) for example in examples):
        say(f"*** {without} questions of {split} have no gold answer and score 0: the golden files are missing ***")
    found = data.findable_answers(examples, features)
    ceiling = PARTS_OF[task.kind].score(task, examples, found)[task.metric]
    asked = {question_id(task, example) for example in examples}
    answered = {question_id(task, example) for example, answers in zip(examples, found) if answers}
    say(f"{split}: {len(asked - answered)} of {len(asked)} questions have no gold answer that is a span of a window; "
        f"gold fed back scores {task.metric} {100 * ceiling:.2f}, the ceiling of exact answers")


def training_texts(examples: list) -> list[str]:
    """All text of a training set, to learn a vocabulary from when there is no model."""
    return [" ".join(example.words) if isinstance(example, data.TaggedSentence)
            else " ".join(part for part in example if isinstance(part, str)) for example in examples]


def score_table(options: Options, results: list[Measures], test_set: str = "test set") -> str:
    """One line a measure, in percent: mean and standard deviation over the seeds, and the papers' figures.

    Below them every seed's score, and for BioASQ the sum over the batches.
    """
    published = {measure: dict(zip(PAPERS, row)) for measure, row in PUBLISHED.get(options.task, {}).items()}
    papers = [paper for paper in PAPERS if any(row.get(paper) for row in published.values())]
    measures = dict.fromkeys(measure for result in results for measure in result)      # a type may be in one only
    lines = [f"{options.task}, {test_set}, {len(results)} seed{'s' * (len(results) > 1)}",
             f"{'':28}{'mean':>8}{'sd':>8}" + "".join(f"{paper:>12}" for paper in papers)]
    for measure in measures:
        mean, sd = metrics.mean_and_sd([result.get(measure, 0.0) for result in results])
        row = published.get(measure, {})
        figures = "".join(f"{score:12.2f}" if (score := row.get(paper)) else " " * 12 for paper in papers)
        lines.append(f"{measure:28}{100 * mean:8.2f}{100 * sd:8.2f}{figures}".rstrip())
    metric = data.TASKS[options.task].metric
    every = ", ".join(f"{100 * result[metric]:.2f}" for result in results)
    return "\n".join([*lines, f"{metric} of each seed: {every}", *batch_total(results)])


def batch_total(results: list[Measures]) -> list[str]:
    """ELECTRAMed's Table 10 for BioASQ: the batches' mean MRR, each divided by the best, added up; else nothing."""
    mean = {batch: metrics.mean_and_sd([result[f"batch {batch} mrr"] for result in results]).mean
            for batch in range(1, 6) if all(f"batch {batch} mrr" in result for result in results)}
    if not mean:
        return []
    rows = {"ours": list(mean.values()), "best": [BEST_MRR[batch - 1] for batch in mean]}
    paper = {"paper": [PUBLISHED["bioasq7b"][f"batch {batch} mrr"][0] / 100 for batch in mean]}     # type: ignore
    total = metrics.batch_score_total(rows | paper)
    return [f"sum over {len(mean)} batches of MRR / best MRR (ELECTRAMed's Table 10): {total['ours']:.3f}; "
            f"ELECTRAMed {total['paper']:.3f}"]


def claim(options: Options, start: str, has_begun: bool) -> None:
    """Take the run folder for these options; once something in it is finished, what it depends on is fixed."""
    data.claim_run_folder(Path(options.out), {**dataclasses.asdict(options), "starting_model": start},
                          FIXED if has_begun else ())


def run_seeds(options: Options) -> tuple[str, list[Measures]]:
    """Fine-tune with every seed that is not finished yet; returns the table, also written, and the test scores."""
    out, metric = Path(options.out), data.TASKS[options.task].metric
    init, like = find_model(options)
    claim(options, fingerprint(init, like), any(out.glob("seed-*/scores.json")))
    folders = [out / f"seed-{seed}" for seed in range(options.seeds)]
    prepared = None
    for seed, folder in enumerate(folders):
        if (folder / "scores.json").is_file():
            continue
        # Of a file that is cut each seed tests another part, but after a search all test the part it left out.
        if not prepared or prepared.test_set != "test set" and not options.search:
            prepared = prepare(options, init, like, 0 if options.search else seed)
        scores = run_seed(seed, prepared, options, folder)
        say(f"seed {seed}: test {metric} {100 * scores[metric]:.2f}")
    results = [json.loads((folder / "scores.json").read_bytes()) for folder in folders]
    test_sets = dict.fromkeys(result.get("test_set", "test set") for result in results)
    table = score_table(options, [result["test"] for result in results], "; ".join(test_sets))
    write_lines(out / "table.txt", [table])
    # The model to use: that of the best development score, never chosen by the test set.
    best = max(range(options.seeds), key=lambda seed: results[seed]["dev"].get(metric, 0.0))
    (out / "model").mkdir(exist_ok=True)
    for file in (folders[best] / "model").iterdir():
        data.write_bytes(out / "model" / file.name, file.read_bytes())
    say(f"{folders[best]} holds {', '.join(sorted(os.listdir(folders[best])))}; to read a text with its model: "
        f"python train_finetune.py --out {out} --predict FILE")
    return table, [result["test"] for result in results]


def search(options: Options) -> Options:
    """Try random points of the grid on the development set, each with seed 0; returns the options of the best.

    A point has a folder of its own in OUT, where its seeds go if it wins: no trial is ever run twice, an
    interrupted search goes on, and so does one with a larger number, which draws the same points first.
    source    Bio-ELECTRA's grid; it was searched by hyperopt there, at random here
    """
    out, metric = Path(options.out), data.TASKS[options.task].metric
    points = list(itertools.product(*GRID.values()))
    random.Random(0).shuffle(points)
    init, like = find_model(options)
    start, prepared, trials = fingerprint(init, like), None, []
    for number, point in enumerate(points[:options.search], start=1):
        values = dict(zip(GRID, point))
        name = "-".join(f"{key.replace('_', '-')}-{value:g}" for key, value in values.items())
        trial = dataclasses.replace(options, out=str(out / name), **values)
        record = out / name / "dev.json"
        claim(trial, start, record.is_file())
        if not record.is_file():
            prepared = prepared or prepare(trial, init, like, 0)
            if "dev" not in prepared.examples:
                raise ValueError(f"--search: {options.task} has no development set to choose by")
            data.write_bytes(record, json.dumps(train(0, prepared, trial)[1], indent=1).encode())
        score = json.loads(record.read_bytes())[metric]
        say(f"trial {number} of {options.search}: {name}: dev {metric} {100 * score:.2f}")
        trials.append((score, trial))
    trials.sort(key=lambda scored: -scored[0])
    write_lines(out / "search.csv", [",".join([*GRID, f"dev_{metric}"]), *(
        ",".join(f"{getattr(trial, key):g}" for key in GRID) + f",{score:.6g}" for score, trial in trials)])
    return trials[0][1]


def score_curve(options: Options) -> str:
    """Fine-tune from every model a pre-training run kept; writes curve.csv, and curve.svg where matplotlib is there.

    returns   the rows: steps, mean score, and the borders of its 95 % interval over the seeds, in percent
    source    Bio-ELECTRA, Figure 1
    """
    run_folder, out = Path(options.init or "runs/pretrain"), Path(options.out)
    models, metric = sorted(run_folder.glob("models/step-*")), data.TASKS[options.task].metric
    if not models:
        raise ValueError(f"--curve: {run_folder / 'models'} holds no models: expected a run of train_pretrain.py, "
                         "which keeps one every --keep-every steps")
    rows = []
    for model in models:
        _, results = run_seeds(dataclasses.replace(options, init=str(model), out=str(out / model.name)))
        values = [100 * result[metric] for result in results]
        rows.append((int(model.name.removeprefix("step-")), metrics.mean_and_sd(values).mean,
                     *metrics.confidence_interval(values)))
    lines = [f"step,{metric},low,high", *(f"{step},{mean:.2f},{low:.2f},{high:.2f}" for step, mean, low, high in rows)]
    write_lines(out / "curve.csv", lines)
    try:
        from matplotlib.figure import Figure            # an extra: the figures are complete without a picture
    except ImportError:
        say("no curve.svg: matplotlib is not installed (pip install matplotlib)")
    else:
        axes = (figure := Figure(figsize=(6, 4))).add_subplot(xlabel="pre-training steps", ylabel=f"{metric}, percent",
                                                              title=options.task)
        steps, means, low, high = zip(*rows)
        axes.plot(steps, means, marker="o")
        axes.fill_between(steps, low, high, alpha=0.2)
        figure.savefig(out / "curve.svg")
    return "\n".join(lines)


# --- 5. Raw text ---

class Reader(NamedTuple):
    """A fine-tuned model, and what is needed to read with it."""

    model: nn.Module
    tokenizer: Tokenizer
    labels: list[str]
    options: Options
    device: Device

    def outputs(self, features: list[Feature]) -> list[np.ndarray]:
        """The head's output for each feature, as probabilities but for questions."""
        outputs = predict(self.model, features, self.options, self.tokenizer.pad_id, self.device)
        if self.options.tag_loss == "binary":
            return [np.exp(-np.logaddexp(0, -output)) for output in outputs]               # a sigmoid for each tag
        return [np.exp(output - np.logaddexp.reduce(output, axis=-1, keepdims=True)) if self.labels else output
                for output in outputs]


def open_reader(options: Options) -> Reader:
    """Load the model of a fine-tuning run, with the options it was trained with."""
    folder = model_folder(options.out)
    try:
        labels = list(json.loads((folder / "config.json").read_bytes()).get("id2label", {}).values())   # qa: none
        trained = json.loads((Path(options.out) / "options.json").read_bytes())
        options = dataclasses.replace(options, **{name: trained[name] for name in ("task", "max_length", "tag_loss")})
        kind = data.find_task(options.task).kind
        if not labels and kind != "qa":
            raise ValueError("config.json has no id2label")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{options.out}: not a run of train_finetune.py ({error!r}): "
                         "fine-tune first, or pass its folder by --out") from None
    device = Device.choose(options.device, options.precision)
    model = PARTS_OF[kind].head(read_config(folder), len(labels))
    load_weights(model, folder)
    return Reader(model.to(device.kind), Tokenizer.from_file(folder), labels, options, device)


def find_entities(reader: Reader, texts: list[str]) -> list[dict[str, Any]]:
    """The entities of each text: character span, type, words, and the mean probability of the words' tags.

    A text is split into sentences, and those into what the tokenizer takes for words: pieces without ##.
    """
    examples: list[data.TaggedSentence] = []
    places: list[tuple[int, list[tuple[int, int]]]] = []        # of each sentence: its text, its words' characters
    for number, text in enumerate(texts):
        for first, last in data.split_sentences(text):
            words: list[tuple[int, int]] = []
            for piece, (start, end) in zip(*reader.tokenizer.encode_with_offsets(text[first:last])):
                begins = words.pop()[0] if words and reader.tokenizer.pieces[piece].startswith("##") else first + start
                words.append((begins, first + end))
            examples.append(data.TaggedSentence([text[start:end] for start, end in words], ["O"] * len(words)))
            places.append((number, words))
    features, _ = data.encode_tagging(examples, reader.tokenizer, reader.labels, reader.options.max_length)
    outputs = reader.outputs(features)
    tags = data.decode_tags(examples, features, [output.argmax(-1) for output in outputs], reader.labels)
    sure = [[0.0] * len(example.words) for example in examples]
    for feature, output in zip(features, outputs):
        for position, word in feature.spots:
            sure[feature.example][word] = float(output[position].max())
    results: list[dict[str, Any]] = [{"text": text, "entities": []} for text in texts]
    for (number, words), sentence_tags, chances in zip(places, tags, sure):
        for kind, head, end in metrics.spans_from_tags(sentence_tags):
            start, stop = words[head][0], words[end - 1][1]
            results[number]["entities"].append({
                "start": start, "end": stop, "type": kind, "text": texts[number][start:stop],
                "score": round(float(np.mean(chances[head:end])), 4)})
    return results


def find_labels(reader: Reader, inputs: list[str] | list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The likeliest label of each text or pair of texts, and its probability; when ranking, that of label 1."""
    examples = [data.LabelledText("", *((text, "") if isinstance(text, str) else (text[0], "", text[1])))
                for text in inputs]
    features, note = data.encode_classification(examples, reader.tokenizer, reader.labels, reader.options.max_length)
    if not note.startswith("0 "):
        say(f"of {len(examples)} texts, {note}")
    results = []
    for example, chances in zip(examples, reader.outputs(features)):
        label = 1 if data.TASKS[reader.options.task].kind == "rank" else int(chances.argmax())
        asked = {"text": example.text} if example.text_pair is None else {
            "question": example.text, "passage": example.text_pair}
        results.append({**asked, "label": reader.labels[label], "score": round(float(chances[label]), 4)})
    return results


def find_answers(reader: Reader, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The five best answers to each question: character span in the passage, text, share of the probability."""
    examples = [data.Question(str(number), *pair, []) for number, pair in enumerate(pairs)]
    features, _ = data.encode_questions(examples, reader.tokenizer, reader.options.max_length, DOCUMENT_STRIDE,
                                        QUESTION_LENGTH)
    return [{"question": example.question, "passage": example.context,
             "answers": [{"start": answer.start, "end": answer.end, "text": answer.text,
                          "score": round(answer.probability, 4)} for answer in answers[:5]]}
            for example, answers in zip(examples, data.decode_answers(examples, features, reader.outputs(features)))]


def parse_pair(line: str, where: str) -> tuple[str, str]:
    """Read a question and its passage from a line of JSON."""
    try:
        question, passage = (json.loads(line)[name] for name in ("question", "passage"))
        if not (isinstance(question, str) and isinstance(passage, str)):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{where}: expected {{"question": "...", "passage": "..."}} in JSON, '
                         f"found {line[:60]!r}") from None
    return question, passage


def mark(result: dict[str, Any]) -> str:
    """A result for the eye: what was found stands in bold in its text, as in ELECTRAMed's Table 6."""
    text: str = result["passage"] if "passage" in result else result["text"]
    for found in reversed(result.get("entities", result.get("answers", [])[:1])):       # from the end: spans stay true
        name = f" [{found['type']}]" if found.get("type") else ""
        text = f"{text[:found['start']]}\x1b[1m{found['text']}\x1b[0m{name}{text[found['end']:]}"
    label = f"{result['label']} ({result['score']:.2f})  " if "label" in result else ""
    return label + (result["question"] + "\n" if "question" in result else "") + text


def input_lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines of a file, or of standard input for "-", with their numbers; ValueError where they are not UTF-8."""
    if path != "-":
        yield from data.numbered_lines(path)
        return
    try:
        yield from enumerate(sys.stdin, start=1)
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input: not UTF-8 ({error.reason}): convert it to UTF-8") from None


def predict_lines(options: Options) -> None:
    """Read the lines of a file or of standard input; print one JSON line for each, or marked text on a terminal."""
    reader = open_reader(options)
    kind = data.TASKS[reader.options.task].kind
    readers: dict[str, Callable[..., list[dict[str, Any]]]] = {"ner": find_entities, "qa": find_answers}
    read = readers.get(kind, find_labels)
    lines = ((number, line.strip()) for number, line in input_lines(str(options.predict)) if line.strip())
    size = 1 if options.predict == "-" and sys.stdin.isatty() else 256      # lines at a time: one is answered at once
    while block := list(itertools.islice(lines, size)):
        inputs = [line if kind in ("ner", "re") else parse_pair(line, f"{options.predict} line {number}")
                  for number, line in block]
        for result in read(reader, inputs):
            print(mark(result) if sys.stdout.isatty() else json.dumps(result, ensure_ascii=False), flush=size == 1)


# --- 6. Command line ---

def run(options: Options) -> int:
    """Do what the options ask for, and print its result; returns 0."""
    if options.predict is not None:
        predict_lines(options)
    elif options.curve:
        print(score_curve(options), flush=True)
    else:
        print(run_seeds(search(options) if options.search else options)[0], flush=True)
    return 0


def complete(options: Options) -> Options:
    """Fill in from the task's protocol what the command line left open."""
    task = data.TASKS[options.task]
    if options.class_weights and task.kind != "rank":
        raise ValueError(f"--class-weights are for ranking; {options.task} is of the kind {task.kind}")
    if options.tag_loss != "softmax" and task.kind != "ner":
        raise ValueError(f"--tag-loss {options.tag_loss} is for entities; {options.task} is of the kind {task.kind}")
    if bool(options.search) + options.curve + (options.predict is not None) > 1:
        raise ValueError("--search, --curve and --predict are three different things to do: choose one")
    if options.search and options.search > (size := math.prod(map(len, GRID.values()))):
        raise ValueError(f"--search {options.search}: the grid has {size} points")
    if options.search and (given := [name for name in GRID if getattr(options, name) is not None]):
        raise ValueError(f"--search draws --{given[0].replace('_', '-')} itself: drop one of the two")
    protocol = options.protocol or ("bio-electra" if "bio_electra" in task.source else "electramed")
    values: dict[str, Any] = {"out": f"runs/finetune/{options.task}", "protocol": protocol}
    for part in ("", task.kind, options.task):
        values |= PROTOCOLS[protocol].get(part, {})
    return dataclasses.replace(options, **{name: value for name, value in values.items()
                                           if getattr(options, name) is None})


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    return data.run_command(lambda: run(complete(
        data.parse_options(Options, "Fine-tune ELECTRA on a task.", arguments))))


if __name__ == "__main__":
    sys.exit(main())
