"""Checks train_finetune.py: each kind of task by itself, then whole runs on a net of a few thousand weights.

    1. Protocol                         7. Scores, tables and submission files
    2. Windows                          8. The error report
    3. Tagging                          9. What a span can give at most
    4. Relations, yes/no, ranking      10. Whole runs
    5. Answers                         11. Search and curve
    6. Gold fed back as predictions    12. Raw text
    13. Files of one's own, and wrong input
    14. Nothing wrong is silent: changed files, nan, labels, questions, every line of raw text
    15. What is easily meant otherwise: cut text, negative labels, lines of another form
"""
import csv
import dataclasses
import doctest
import io
import json
import math
import os
import re
import shutil
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import data
import electramed
import metrics
import train_finetune
from data import TASKS, LabelledText, Question, TaggedSentence, Task
from electramed import IGNORED_LABEL
from metrics import bioasq_question_id, spans_from_tags
from tokenizer import SPECIAL_TOKENS, Tokenizer, learn_vocab
from train_finetune import (
    KINDS, Answer, Answers, Feature, Kind, Ranking, Relations, Tagging, YesNo, best_windows, locate_words,
    split_windows)

QUICK = ["--epochs", "1", "--learning-rate", "1e-3"]
LETTERS = "abcdef"
# Spells every word of LETTERS one piece a letter, but for "abc", which is one.
SPELLER = Tokenizer([*SPECIAL_TOKENS, *",.-?", *LETTERS, *(f"##{letter}" for letter in LETTERS), "abc"])
TAGGING = Tagging(Task("ner", labels=("O", "B-Drug", "I-Drug")))
ANSWERS = Answers(TASKS["squad"])

seeds = st.integers(0, 2 ** 32)
words_of_letters = st.text(LETTERS, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A pre-training model with weights as they were drawn."""
    folder = tmp_path_factory.mktemp("pretrained")
    world = data.SyntheticWorld(0)
    texts = [sentence.text for number in range(50) for sentence in world.document(number)]
    tokenizer = Tokenizer(learn_vocab(texts, 400))
    config = electramed.ElectraConfig(
        vocab_size=len(tokenizer.pieces), embedding_size=16, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=384,
        cls_token_id=tokenizer.cls_id, sep_token_id=tokenizer.sep_id, mask_token_id=tokenizer.mask_id)
    torch.manual_seed(0)
    electramed.save_pretrained(electramed.ElectraForPretraining(config), folder, tokenizer)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_demo():
    """Fewer demo examples."""
    small = {split: (first, min(size, 60)) for split, (first, size) in data.DEMO_SPLITS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DEMO_SPLITS", small)
        yield


@pytest.fixture(scope="module")
def trained(pretrained, tmp_path_factory) -> Callable[[str], Path]:
    """The run folder of one seed of a demo task, trained when it is first asked for; never to be changed."""
    folders: dict[str, Path] = {}

    def of(task: str) -> Path:
        if task not in folders:
            folders[task] = tmp_path_factory.mktemp(task)
            assert run(task, pretrained, folders[task]) == 0
        return folders[task]

    return of


def run(task: str, init, out: Path, *more: str) -> int:
    return train_finetune.main(["--task", task, "--init", str(init), "--out", str(out), *QUICK, *more])


def scores(out: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    return json.loads((out / f"seed-{seed}" / "scores.json").read_text())


def kind_of(task: str) -> Kind:
    return KINDS[TASKS[task].kind](TASKS[task])


def options_for(task: str) -> train_finetune.Options:
    return train_finetune.complete(train_finetune.Options(task=task))


def prepared_for(kind: Kind, tokenizer: Tokenizer) -> train_finetune.Prepared:
    """What make_batch and predict need to know, on the CPU."""
    device, config = electramed.Device("cpu", "float32"), electramed.PRESETS["tiny"]
    return train_finetune.Prepared(kind, tokenizer, config, None, device, {}, {}, "test set")


# --- 1. Protocol ---

def test_the_default_protocol_has_the_values_of_the_papers_table_5():
    expected = {"ncbi-disease": (5e-5, 32, 128), "ddi2013": (5e-5, 32, 128), "bioasq7b": (5e-6, 16, 384)}
    for task, values in expected.items():
        options = options_for(task)
        assert values == (options.learning_rate, options.batch_size, options.max_length)
        assert (options.layer_decay, options.weight_decay, options.dropout) == (0.8, 0.0, 0.1)


def test_a_task_has_the_protocol_of_its_paper_and_another_on_demand():
    expected = {"squad": (2, 16, 384, 3e-5, 0.0), "bc5cdr": (3, 32, 128, 5e-5, 0.0),
                "gad": (3, 32, 128, 1e-4, 0.01), "linnaeus": (3, 12, 192, 1e-4, 0.01),
                "chemprot-tsv": (3, 24, 128, 1e-4, 0.01),
                "yesno": (3, 12, 192, 1e-4, 0.01), "rerank": (3, 12, 64, 1e-4, 0.01)}
    for task, values in expected.items():
        options = options_for(task)
        assert values == (options.epochs, options.batch_size, options.max_length, options.learning_rate,
                          options.weight_decay)
    asked = train_finetune.Options(task="squad", protocol="bio-electra", batch_size=7)
    other = train_finetune.complete(asked)
    assert (other.epochs, other.batch_size, other.max_length, other.learning_rate) == (2, 7, 192, 1e-4)


# --- 2. Windows ---

def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(train_finetune).failed == 0


def test_windows_on_paper():
    """Piece 3 is the last of the first window (0 to its right) and has 1 to each side in the second."""
    assert split_windows(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert best_windows(10, [(0, 4), (2, 6), (4, 8), (6, 10)]).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_an_empty_text_has_one_empty_window():
    assert split_windows(0, 4, 2) == [(0, 0)] and best_windows(0, [(0, 0)]).tolist() == []


def test_a_stride_longer_than_the_window_skips_no_piece():
    assert split_windows(9, 4, 100) == [(0, 4), (4, 8), (8, 9)]


@given(st.integers(0, 150), st.integers(1, 40), st.integers(1, 50))
def test_windows_cover_everything_and_each_piece_has_its_best(length, capacity, stride):
    windows = split_windows(length, capacity, stride)
    covered = set()
    for start, end in windows:
        covered |= set(range(start, end))
    assert covered == set(range(length))
    assert all(end - start <= capacity for start, end in windows)
    every = min(stride, capacity)
    assert [start for start, _ in windows] == [number * every for number in range(len(windows))]
    assert all(end < length for _, end in windows[:-1])             # the first to reach the end is the last

    def context(piece, window):
        start, end = windows[window]
        return min(piece - start, end - 1 - piece) if start <= piece < end else -1

    numbers = range(len(windows))
    expected = [max(numbers, key=lambda window: context(piece, window)) for piece in range(length)]
    assert best_windows(length, windows).tolist() == expected


# --- 3. Tagging: features and tags ---

def test_labels_stand_on_first_wordpieces_as_on_paper():
    example = TaggedSentence(["ab", "\x00", "abcd"], ["B-Drug", "I-Drug", "O"])
    [feature] = TAGGING.encode([example], SPELLER, 16)
    #                               [CLS]  a  ##b  [UNK]  abc  ##d  [SEP]
    assert [SPELLER.pieces[i] for i in feature.input_ids] == "[CLS] a ##b [UNK] abc ##d [SEP]".split()
    assert feature.labels == [IGNORED_LABEL, 1, IGNORED_LABEL, 2, 0, IGNORED_LABEL, IGNORED_LABEL]
    assert (feature.example, feature.first_length, feature.spots) == (0, 7, [(1, 0), (3, 1), (4, 2)])
    assert TAGGING.describe_features([feature], 16) == "1 rows of at most 16 tokens, 0 cut"


def test_a_long_sentence_is_read_in_windows_that_share_no_label():
    example = TaggedSentence([*"abcdefabcd"], ["O", "B-Drug"] * 5)
    features = TAGGING.encode([example], SPELLER, 6)                # four pieces a window, two new in each
    assert [SPELLER.decode(feature.input_ids) for feature in features] == [
        "a b c d", "c d e f", "e f a b", "a b c d"]
    words = [[word for _, word in feature.spots] for feature in features]
    assert words == [[0, 1, 2], [3, 4], [5, 6], [7, 8, 9]]
    assert TAGGING.describe_features(features, 6) == "4 rows of at most 6 tokens, 0 cut"


def test_the_labels_of_a_batch_are_padded_with_none():
    examples, none = [TaggedSentence(["a"], ["B-Drug"]), TaggedSentence(["ab"], ["O"])], IGNORED_LABEL
    labels = TAGGING.label_array(TAGGING.encode(examples, SPELLER, 16), 5)
    assert labels.tolist() == [[none, 1, none, none, none], [none, 0, none, none, none]]


odd_words = st.one_of(st.text(LETTERS, min_size=1, max_size=30),
                      st.sampled_from(["\x00", "é\u00ad", ".", "x", "a-b"]))
tagged = st.lists(st.tuples(odd_words, st.sampled_from(TAGGING.labels)), max_size=40)


def sentences_from(lists: list[list[tuple[str, str]]]) -> list[TaggedSentence]:
    return [TaggedSentence([word for word, _ in pairs], [tag for _, tag in pairs]) for pairs in lists]


@given(st.lists(tagged, max_size=4), st.integers(4, 24))
def test_each_word_has_its_label_in_exactly_one_window(sentences, max_length):
    examples = sentences_from(sentences)
    features = TAGGING.encode(examples, SPELLER, max_length)
    for feature in features:
        ids = feature.input_ids
        assert len(ids) == len(feature.labels) == feature.first_length <= max_length
        assert (ids[0], ids[-1]) == (SPELLER.cls_id, SPELLER.sep_id)
        labelled = [position for position, label in enumerate(feature.labels) if label != IGNORED_LABEL]
        assert labelled == [position for position, _ in feature.spots]
        for position, word in feature.spots:
            first = (SPELLER.encode(examples[feature.example].words[word]) or [SPELLER.unk_id])[0]
            assert ids[position] == first
    seen = Counter((feature.example, word) for feature in features for _, word in feature.spots)
    assert seen == {(n, word): 1 for n, example in enumerate(examples) for word in range(len(example.words))}


@given(st.lists(tagged, max_size=4), st.integers(4, 24))
def test_gold_labels_decode_to_the_gold_tags(sentences, max_length):
    examples = sentences_from(sentences)
    features = TAGGING.encode(examples, SPELLER, max_length)
    predictions = TAGGING.decode(examples, features, gold_outputs(TAGGING, features))
    assert predictions == [example.tags for example in examples]


@given(st.lists(tagged, min_size=1, max_size=4), st.integers(4, 12))
def test_every_gold_entity_is_found_when_gold_is_fed_back(sentences, max_length):
    examples = sentences_from(sentences)
    features = TAGGING.encode(examples, SPELLER, max_length)
    predictions = TAGGING.decode(examples, features, gold_outputs(TAGGING, features))
    count = sum(len(spans_from_tags(example.tags)) for example in examples)
    assert TAGGING.score(examples, predictions)["recall"] == (count > 0)
    assert list(TAGGING.errors(examples, predictions)) == []


def test_what_the_model_says_at_other_positions_changes_no_tag():
    example = TaggedSentence(["abcdef"] * 9, ["O"] * 9)
    features = TAGGING.encode([example], SPELLER, 9)
    noisy = []
    for feature in features:
        noisy.append(np.eye(3)[[1 if label == IGNORED_LABEL else 2 for label in feature.labels]])
    assert TAGGING.decode([example], features, noisy) == [["I-Drug"] * 9]


def test_raw_text_is_cut_into_words_as_the_training_file_is():
    """One file keeps IL-2 and CD4+ whole, the other one makes a word of each mark."""
    whole = sentences_from([[(word, "O") for word in "IL-2 ( p53 ) binds CD4+ cells .".split()]])
    marks = sentences_from([[(word, "O") for word in "IL - 2 ( p53 ) binds CD4 + cells .".split()]])
    text = "(IL-4) and CD8+ T-cells, 0.5 mg."
    for examples, expected in ((whole, "( IL-4 ) and CD8+ T - cells , 0 . 5 mg ."),
                               (marks, "( IL - 4 ) and CD8 + T - cells , 0 . 5 mg .")):
        kind = Tagging(TASKS["ner"], examples)
        for same in (kind, Tagging(TASKS["ner"], (), json.loads(json.dumps(kind.facts)))):
            [sentence] = same.raw_examples({"text": text}, SPELLER)
            assert sentence.words == expected.split()
            assert [text[start:end] for start, end in sentence.spans] == sentence.words
    assert Tagging(TASKS["ner"], marks).facts == {"marks_inside_words": []}
    [sentence] = Tagging(TASKS["ner"], (), {}).raw_examples({"text": "IL-2"}, SPELLER)
    assert sentence.words == ["IL", "-", "2"]                       # task.json of an earlier version


def test_a_mark_counts_by_what_stands_beside_it():
    """bc5cdr keeps 5-FU and 0.5 whole, but makes three words of most like beta-blocker, and two of CD4+."""
    lists = ["5-FU beta - blocker 0.5 g , 12 . Then", "5-HT a - b gamma-x CD4+ b", "CD4 + T CD8 + T"]
    examples = sentences_from([[(word, "O") for word in text.split()] for text in lists])
    assert train_finetune.marks_inside_words(examples) == ["1-a", "1.1"]


def test_text_that_was_cut_into_words_before_is_cut_at_its_spaces():
    for text, expected in (("a-b (c , d .", "a-b (c , d ."), ("a-b (c , d.", "a - b ( c , d .")):
        spans = train_finetune.cut_words(text, SPELLER, [])
        assert [text[start:end] for start, end in spans] == expected.split()


@pytest.mark.parametrize("name, share", [
    ("ncbi-disease", 1), ("bc2gm", 1), ("bc5cdr", 0.995), ("jnlpba", 0.995)])
def test_the_words_of_published_files_come_back_from_their_text(name, share, real_data):
    kind = Tagging(TASKS[name], data.read_task(name, "train", real_data)[:2000])
    right = total = 0
    for example in data.read_task(name, "test", real_data)[:300]:
        text = " ".join(example.words)
        words = train_finetune.cut_words(text, SPELLER, kind.facts["marks_inside_words"])
        found, start = set(words), 0
        for word in example.words:
            right += (start, start + len(word)) in found
            start += len(word) + 1
        total += len(example.words)
    assert share <= right / total


# --- 4. Relations, yes/no questions and ranking: features and labels ---

def test_a_text_is_one_row_and_cuts_are_counted(tiny_tokenizer):
    kind = Relations(Task("re", labels=("no", "yes")))
    texts = [LabelledText("1", "the drug", "yes"), LabelledText("2", "the gene " * 9, "no"),
             LabelledText("3", "", "no"), LabelledText("4", "the " * 6, "yes")]
    features = kind.encode(texts, tiny_tokenizer, 8)
    the, drug, gene = map(tiny_tokenizer.vocab.get, ("the", "drug", "gene"))
    assert [feature.input_ids for feature in features] == [
        [2, the, drug, 3], [2, *[the, gene] * 3, 3], [2, 3], [2, *[the] * 6, 3]]
    assert [(f.example, f.labels, f.first_length, f.is_cut) for f in features] == [
        (0, 1, 4, False), (1, 0, 8, True), (2, 0, 2, False), (3, 1, 8, False)]
    assert kind.describe_features(features, 8) == "4 rows of at most 8 tokens, 1 cut"


def test_of_a_pair_the_longer_part_is_cut_piece_by_piece(tiny_tokenizer):
    kind = YesNo(TASKS["yesno"])
    the, drug = map(tiny_tokenizer.vocab.get, ("the", "drug"))
    pairs = [("the", "drug"), ("the " * 3, "drug " * 9), ("the " * 9, "drug"), ("the " * 9, "drug " * 9),
             ("the", "")]
    examples = [LabelledText("", first, "0", second) for first, second in pairs]
    features = kind.encode(examples, tiny_tokenizer, 9)
    rows = [(1, 1), (3, 3), (5, 1), (3, 3), (1, 0)]
    assert [feature.input_ids for feature in features] == [
        [2, *[the] * first, 3, *[drug] * second, 3] for first, second in rows]
    assert [feature.first_length for feature in features] == [first + 2 for first, _ in rows]
    assert kind.describe_features(features, 9) == "5 rows of at most 9 tokens, 3 cut"
    prepared = prepared_for(kind, tiny_tokenizer)
    _, _, segments, labels = train_finetune.make_batch(features[:1], 8, 1, prepared)
    assert (segments.tolist(), labels.tolist()) == ([[0, 0, 0, 1, 1, 0, 0, 0]], [0])


@given(st.lists(st.sampled_from(["no", "yes", "maybe"]), min_size=1, max_size=9))
def test_gold_labels_decode_to_themselves(labels):
    kind = Relations(Task("re", labels=("no", "yes", "maybe")))
    examples = [LabelledText(str(i), "a", label) for i, label in enumerate(labels)]
    features = kind.encode(examples, SPELLER, 8)
    assert kind.decode(examples, features, gold_outputs(kind, features)) == labels


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_the_probability_of_a_candidate_is_the_softmax_of_its_two_logits(wrong, right):
    [probability] = Ranking(TASKS["rerank"]).decode([], [], [np.array([wrong, right])])
    assert probability == pytest.approx(1 / (1 + math.exp(wrong - right)))


def test_a_ranking_model_whose_labels_are_swapped_is_refused():
    assert Ranking(TASKS["rank"]._replace(labels=("0", "1"))).labels == ("0", "1")
    for labels in (("1", "0"), ("right", "wrong"), ("0", "1", "2")):
        with pytest.raises(ValueError, match=f"ranks by the labels {', '.join(labels)}: expected 0"):
            Ranking(TASKS["rank"]._replace(labels=labels))


def test_answers_with_the_labels_0_1_and_yes_have_a_row_each():
    """Alone, 1 and 0 are called yes and no; beside a label yes they keep their names."""
    examples = [LabelledText("", "", label) for label in ("0", "1", "yes", "yes")]
    measures = YesNo(TASKS["classify"], examples).score(examples, ["0", "yes", "yes", "1"])
    assert {name: measures[f"{name} f1"] for name in ("0", "1", "yes")} == {"0": 1, "1": 0, "yes": 0.5}
    assert measures["macro_f1"] == 0.5 and len(measures) == 2 + 3 * 3
    measures = YesNo(TASKS["classify"], examples[:2]).score(examples[:2], ["0", "1"])
    assert measures.keys() >= {"no f1", "yes f1"} and len(measures) == 2 + 2 * 3


# --- 5. Answers: features and spans ---

def test_the_type_of_a_question_is_no_text_to_learn_a_vocabulary_from():
    assert ANSWERS.text_of(Question("q1", "Which?", "a b", [("b", 2)], type="list")) == "q1 Which? a b"


def test_a_question_is_encoded_as_on_paper():
    #                                            0123456789
    example = Question("1", "ab?", context="The Abcd, é", answers=[("Abcd", 4)])
    [feature] = ANSWERS.encode([example], SPELLER, 16, stride=4)
    assert [SPELLER.pieces[i] for i in feature.input_ids] == (
        "[CLS] a ##b ? [SEP] [UNK] abc ##d , e [SEP]".split())
    assert feature.first_length == 5 and feature.labels == (6, 7)
    assert feature.spots == [
        (5, 0, 3, True), (6, 4, 8, True), (7, 4, 8, True), (8, 8, 9, True), (9, 10, 11, True)]
    logits = np.zeros((11, 2))
    logits[6, 0] = logits[7, 1] = 9
    [answers] = ANSWERS.decode([example], [feature], [logits])
    assert (answers[0].text, answers[0].start, answers[0].end) == ("Abcd", 4, 8)
    assert answers[0].probability > 0.99 and math.isclose(sum(answer.probability for answer in answers), 1)


def test_windows_follow_the_stride_and_answers_out_of_reach_are_told():
    """Question of 2 pieces, rows of 10: windows of 5 pieces that start every 2.

    Piece 3 (d) has its best window in the first, a b c d e: there its span may start, so "d e f" is out of
    reach although the second window holds it.
    """
    context = " ".join("abcdefabcdef"[:9])
    answers = [("d e", 6)], [("d e f", 6)], [("b c d e f a", 2)], []
    examples = [Question("1", "a b", context, answer) for answer in answers]
    features = ANSWERS.encode(examples, SPELLER, 10, 2)
    assert [SPELLER.decode(f.input_ids[4:]) for f in features[:3]] == ["a b c d e", "c d e f a", "e f a b c"]
    assert [f.labels for f in features] == [(7, 8), (5, 6), (0, 0), (0, 0), (5, 7), (0, 0), *[(0, 0)] * 6]
    assert [f.example for f in features] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert ANSWERS.describe_features(features, 10) == "12 rows of at most 10 tokens, 0 cut"
    assert findable(examples, features) == [[Answer("d e", 6, 9, 1.0)], [], [], []]


def test_windows_overlap_by_half_at_least():
    features = ANSWERS.encode([Question("1", "a b", " ".join("abcdefabc"), [])], SPELLER, 9, stride=128)
    assert [SPELLER.decode(f.input_ids[4:]) for f in features] == ["a b c d", "c d e f", "e f a b", "a b c"]


def test_a_question_is_cut_to_64_pieces():
    [feature] = ANSWERS.encode([Question("1", "ab " * 40, "c", [])], SPELLER, 128)
    assert feature.first_length == 66 and len(feature.input_ids) == 68


def test_a_long_question_leaves_room_for_its_passage():
    """In rows of 16 tokens a question of 40 pieces keeps 9, and 4 are left for the passage."""
    first, *_ = features = ANSWERS.encode([Question("q7", "ab " * 40, "c d e f a b", [])], SPELLER, 16)
    assert (first.first_length, first.is_cut, len(first.input_ids), len(features)) == (11, True, 16, 2)


def test_labels_are_read_by_their_numbers_wherever_they_stand(pretrained, tmp_path, capsys):
    """jq -S sorts the keys of config.json as texts: "10" before "2"."""
    assert run("demo-ner", pretrained, tmp_path / "out") == 0
    path = tmp_path / "out" / "model" / "config.json"
    before = read(tmp_path / "out", "Jorganux slowed fever.\n", tmp_path, capsys)
    content = json.loads(path.read_text())
    content["id2label"] = dict(reversed(content["id2label"].items()))
    path.write_text(json.dumps(content))
    assert read(tmp_path / "out", "Jorganux slowed fever.\n", tmp_path, capsys) == before
    content["id2label"].pop("3")
    path.write_text(json.dumps(content))
    ask = ["--out", str(tmp_path / "out"), "--predict", str(tmp_path / "input.txt")]
    assert train_finetune.main(ask) == 2
    assert "config.json: id2label is" in capsys.readouterr().err


def test_a_vocabulary_of_another_size_than_the_model_is_refused_before_training(pretrained, tmp_path, capsys):
    """transformers' add_tokens makes such a folder: its tokenizer.json holds the added ones elsewhere."""
    folder = tmp_path / "model"
    shutil.copytree(pretrained, folder)
    pieces = (folder / "vocab.txt").read_text().splitlines()
    (folder / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "WordPiece", "vocab": {piece: number for number, piece in enumerate(pieces[:-1])}},
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}}))
    (folder / "vocab.txt").unlink()
    assert run("demo-re", folder, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"vocab_size {len(pieces)} but" in said and f"has {len(pieces) - 1} pieces" in said


def test_an_answer_inside_a_word_is_completed_and_one_of_white_space_is_none():
    inside, blank = Question("1", "a", "a bcd e", [("c", 3)]), Question("2", "a", "a  b", [(" ", 2)])
    first, second = ANSWERS.encode([inside, blank], SPELLER, 16)
    assert (first.labels, second.labels) == ((4, 6), (0, 0))        # [CLS] a [SEP] a b ##c ##d e
    logits = np.zeros((9, 2))
    logits[5] = 9                                                   # the model points at ##c
    [answers] = ANSWERS.decode([inside], [first], [logits])
    assert (answers[0].text, answers[0].start, answers[0].end) == ("bcd", 2, 5)
    assert len({(answer.start, answer.end) for answer in answers}) == len(answers)


@st.composite
def questions_with_gold(draw, most_words=2):
    """A context of words of up to three pieces, and a gold answer of one or more of them, whole."""
    words = draw(st.lists(words_of_letters, min_size=1, max_size=30))
    starts, context = [], draw(st.sampled_from(["", " ", "\ufeff"]))
    for word in words:
        starts.append(len(context))
        context += draw(st.sampled_from([word, word.upper()]))
        context += draw(st.sampled_from([" ", " ", ", ", "  ", "-", "\n"]))
    first = draw(st.integers(0, len(words) - 1))
    last = min(len(words), first + draw(st.integers(1, most_words))) - 1
    text = context[starts[first]:starts[last] + len(words[last])]
    return Question("1", "a b", context, [(text, starts[first])])


def findable(examples: list[Question], features: list[Feature]) -> list[list[Answer]]:
    """The gold answers of each example that decode() is able to give.

    Such an answer begins and ends where a word does, has at most 30 pieces, and lies whole in the window to
    which a piece of its first word belongs. Of BioASQ's synonyms every place that reads like one counts.
    """
    found: list[list[Answer]] = [[] for _ in examples]
    for feature in features:
        example = examples[feature.example]
        places = [(start, start + len(text)) for text, start in example.answers]
        for synonym in [] if places else example.gold or []:
            places += [match.span() for match in re.finditer(re.escape(synonym), example.context, re.I)]
        first = {spot.start: spot.position for spot in feature.spots if spot.is_best}
        last = {spot.end: spot.position for spot in reversed(feature.spots)}
        for start, end in places:
            if start in first and end in last and last[end] - first[start] < 30:
                found[feature.example].append(Answer(example.context[start:end], start, end, 1.0))
    return found


def decode_gold(example, features) -> tuple[str, int]:
    """The text and the start of the first answer when the model is sure of what the labels say."""
    logits = [np.zeros((len(feature.input_ids), 2)) for feature in features]
    for scores, feature in zip(logits, features):
        if feature.labels != (0, 0):
            start, end = feature.labels
            scores[start, 0] = scores[end, 1] = 9
    best = ANSWERS.decode([example], features, logits, max_pieces=100)[0][0]
    assert best.text == example.context[best.start:best.end]
    return best.text, best.start


@given(questions_with_gold())
def test_a_short_gold_answer_is_recovered_from_its_labels(example):
    """Of 19 pieces a window, 6 are new in each: an answer of up to 7 pieces is whole where its start is best.

    That window has (19 - 1 - 6) / 2 = 6 pieces to the right of the start, or ends with the passage.
    """
    features = ANSWERS.encode([example], SPELLER, 24, stride=6)
    assert findable([example], features)[0]
    assert all(len(feature.input_ids) <= 24 for feature in features)
    assert decode_gold(example, features) == example.answers[0]


@given(questions_with_gold(), st.integers(26, 40))
def test_every_gold_answer_is_whole_in_some_window(example, max_length):
    """Windows of at least 21 pieces that start every 6 share 15; an answer of two words has at most 7."""
    features = ANSWERS.encode([example], SPELLER, max_length, stride=6)
    [(text, first)] = example.answers
    found = []
    for feature in features:
        start, end = feature.labels
        spots = {spot.position: spot for spot in feature.spots}
        if (start, end) != (0, 0):
            found.append(example.context[spots[start].start:spots[end].end])
    assert found and set(found) == {text}


@given(questions_with_gold(most_words=9), st.integers(9, 40), st.integers(1, 12))
def test_an_answer_is_decoded_unless_it_is_told_to_be_out_of_reach(example, max_length, stride):
    features = ANSWERS.encode([example], SPELLER, max_length, stride)
    found = findable([example], features)
    if found[0]:
        [answers] = ANSWERS.decode([example], features, gold_span_outputs(features, found))
        assert (answers[0].text, answers[0].start) == example.answers[0]
    else:
        assert decode_gold(example, features) != example.answers[0]


def test_synonyms_are_found_wherever_the_passage_reads_like_one():
    """The word borders decide: "c" stands inside the word bcd alone, and is no answer there."""
    speller = Tokenizer([*SPECIAL_TOKENS, "a", "b", "##cd"])
    example = Question("q_1", "a", "b A bcd B", [], 1, ["a", "C", "BCD b"])
    features = ANSWERS.encode([example], speller, 16)
    assert findable([example], features) == [[Answer("A", 2, 3, 1.0), Answer("bcd B", 4, 9, 1.0)]]


@given(questions_with_gold(), st.integers(1, 5), st.integers(1, 3), seeds)
def test_answers_equal_a_search_over_all_allowed_spans(example, max_pieces, stride, seed):
    """In rows of 12 to 20 tokens the 20 best starts and ends are all there are. Answers are whole words."""
    rng = np.random.default_rng(seed)
    features = ANSWERS.encode([example], SPELLER, 12 + seed % 9, stride)
    logits = [rng.normal(size=(len(feature.input_ids), 2)) for feature in features]
    for scores in logits:
        scores[:4] += 100                                           # the question is never an answer
    _, word_of, words = locate_words(example.context, SPELLER)
    offsets = [words[word] for word in word_of]
    windows = [(n * stride, n * stride + len(f.input_ids) - 5) for n, f in enumerate(features)]
    owner = best_windows(len(offsets), windows)
    spans = []
    for number, (scores, (begin, end)) in enumerate(zip(logits, windows)):
        for i in range(begin, end):
            for j in range(i, min(end, i + max_pieces)):
                if owner[i] == number:
                    score = scores[4 + i - begin, 0] + scores[4 + j - begin, 1]
                    spans.append((score, offsets[i][0], offsets[j][1]))
    distinct = {}
    for score, first, last in sorted(spans, reverse=True):
        distinct.setdefault((first, last), (score, first, last))
    spans = list(distinct.values())[:20]
    [answers] = ANSWERS.decode([example], features, logits, max_pieces=max_pieces)
    assert [(answer.start, answer.end) for answer in answers] == [(start, end) for _, start, end in spans]
    assert all(answer.text == example.context[answer.start:answer.end] for answer in answers)
    shares = np.exp([score - spans[0][0] for score, _, _ in spans])
    assert np.allclose([answer.probability for answer in answers], shares / shares.sum())


def test_only_the_best_starts_and_ends_are_considered():
    example = Question("1", "a", "b c d", [])
    [feature] = ANSWERS.encode([example], SPELLER, 16)
    # b c d stand at 3, 4, 5
    logits = np.array([[0, 0], [0, 0], [0, 0], [3, 9], [2, 1], [1, 8], [0, 0]], float)
    [answers] = ANSWERS.decode([example], [feature], [logits], best=2)
    assert [answer.text for answer in answers] == ["b", "b c d"]
    [answers] = ANSWERS.decode([example], [feature], [logits], best=1)
    assert [(answer.text, answer.probability) for answer in answers] == [("b", 1.0)]


def test_a_passage_without_text_has_no_answer():
    examples = [Question("1", "a", " \x00", []), Question("2", "a", "b", [])]
    features = ANSWERS.encode(examples, SPELLER, 16)
    answers = ANSWERS.decode(examples, features, [np.zeros((len(f.input_ids), 2)) for f in features])
    assert [[answer.text for answer in part] for part in answers] == [[], ["b"]]


# --- 6. Gold fed back as predictions ---

def gold_outputs(kind: Kind, features: list[Feature]) -> list[np.ndarray]:
    """What a model that knows the answers would put out."""
    outputs = []
    for feature in features:
        if isinstance(kind, Answers):
            start, end = feature.labels
            logits = np.zeros((len(feature.input_ids), 2), np.float32)
            logits[start, 0] = logits[end, 1] = 10
        else:
            logits = np.eye(len(kind.labels))[np.maximum(feature.labels, 0)]       # (T, C) or (C,)
        outputs.append(logits)
    return outputs


@pytest.mark.parametrize("name", ["demo-ner", "demo-re", "demo-qa"])
@pytest.mark.parametrize("max_length", [24, 128])
def test_gold_fed_back_scores_one_through_the_whole_pipeline(name, max_length, pretrained, tmp_path):
    if (name, max_length) == ("demo-qa", 24):
        pytest.skip("beside a question, rows of 24 tokens have less room than some answers need")
    kind, tokenizer, examples = kind_of(name), Tokenizer.from_file(pretrained), data.read_task(name, "test")
    features = kind.encode(examples, tokenizer, max_length)
    predictions = kind.decode(examples, features, gold_outputs(kind, features))
    assert kind.score(examples, predictions)["f1"] == 1
    kind.write(tmp_path, examples, predictions)
    if name == "demo-ner":
        lines = [line.split(" ") for line in (tmp_path / "predictions.txt").read_text().splitlines() if line]
        assert [line[0] for line in lines] == [word for example in examples for word in example.words]
        assert all(gold == predicted for _, gold, predicted in lines)
    elif name == "demo-re":
        lines = (tmp_path / "predictions.tsv").read_text().splitlines()
        assert lines == ["index\tlabel", *(f"{example.id}\t{example.label}" for example in examples)]
    else:
        answers = json.loads((tmp_path / "predictions.json").read_text())
        assert answers == {example.id: example.answers[0][0] for example in examples}


@pytest.mark.parametrize("name, scores_of_gold", [
    ("yesno", ("macro_f1", "accuracy", "no f1")), ("rerank", ("mrr",))])
def test_gold_pairs_score_one_and_their_opposite_less(name, scores_of_gold, tiny_tokenizer, tmp_path):
    rows = "".join(f"{int(i % 3 == 0)}\tthe drug {i // 6}?\tthe gene {i}\n" for i in range(18))
    (tmp_path / "test.tsv").write_text("label\tquestion\tanswer\n" + rows)
    kind, examples = kind_of(name), data.read_task(name, "test", tmp_path)
    features = kind.encode(examples, tiny_tokenizer, options_for(name).max_length)
    for is_gold in (True, False):
        outputs = [np.eye(2)[feature.labels if is_gold else 1 - feature.labels] * 9 for feature in features]
        predictions = kind.decode(examples, features, outputs)
        measured = kind.score(examples, predictions)
        assert all((measured[measure] == 1) == is_gold for measure in scores_of_gold)
    kind.write(tmp_path, examples, predictions)
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 19


@pytest.mark.parametrize("name", ["ncbi-disease", "bc5cdr", "jnlpba", "bc2gm", "chemprot", "chemprot-tsv",
                                  "ddi2013", "gad", "yesno", "rerank"])
def test_gold_of_the_published_files_fed_back_scores_one(name, real_data, tmp_path):
    """In rows of 64 tokens at most, so that many a sentence is long."""
    kind, tokenizer = kind_of(name), Tokenizer.from_file(real_data / "vocab" / "scivocab.txt")
    examples = data.read_task(name, {"gad": "train", "rerank": "dev"}.get(name, "test"), real_data)
    features = kind.encode(examples, tokenizer, 64)
    predictions = kind.decode(examples, features, gold_outputs(kind, features))
    kind.write(tmp_path, examples, predictions)
    assert kind.score(examples, predictions)[kind.task.metric] == 1
    if isinstance(kind, Tagging):       # what was written reads as CoNLL columns, and scores the same
        lines = [line.split(" ") for line in (tmp_path / "predictions.txt").read_text().split("\n")]
        gold, predicted = ([line[column] if len(line) > 1 else "O" for line in lines] for column in (1, 2))
        assert gold == predicted and len(lines) == sum(len(example.words) + 1 for example in examples)


@pytest.mark.parametrize("name, measure, answerable, right", [
    ("squad", "exact_match", 1189, 1189),
    # of BioASQ's hundred five are sentences or end in a full stop, which its own post-processing drops
    ("bioasq7b", "lenient_accuracy", 100, 95)])
def test_gold_answers_of_the_published_files_score_one_where_a_span_can_give_them(
        name, measure, answerable, right, real_data):
    kind, tokenizer = kind_of(name), Tokenizer.from_file(real_data / "vocab" / "scivocab.txt")
    examples = data.read_task(name, "dev" if name == "squad" else "test", real_data)
    features = kind.encode(examples, tokenizer, 96)
    found = findable(examples, features)
    predictions = kind.decode(examples, features, gold_span_outputs(features, found))
    identifier = bioasq_question_id if name == "bioasq7b" else str
    within_reach = {identifier(example.id) for example, answers in zip(examples, found) if answers}
    some = [number for number, example in enumerate(examples) if identifier(example.id) in within_reach]
    measured = kind.score([examples[number] for number in some], [predictions[number] for number in some])
    assert len(within_reach) == answerable and measured[measure] == right / answerable


# --- 7. Scores, tables and submission files ---

def test_bioasq_merges_snippets_and_writes_a_submission_a_batch(tmp_path):
    def question(identifier, batch, gold):
        return Question(identifier, "Which?", "alpha beta", [], batch, gold)

    def answer(text, probability):
        return Answer(text, 0, len(text), probability)

    examples = [question("q1_0", 1, ["Beta"]), question("q1_1", 1, ["Beta"]),
                question("q2_0", 2, ["gamma", "delta"])]
    predictions = [[answer("alpha", 0.6), answer("beta", 0.4)], [answer("beta", 0.9)], [answer("alpha", 1.0)]]
    kind = kind_of("bioasq7b")
    measured = kind.score(examples, predictions)
    assert (measured["mrr"], measured["batch 1 mrr"], measured["batch 2 mrr"]) == (0.5, 1.0, 0.0)
    kind.write(tmp_path, examples, predictions)
    first, = json.loads((tmp_path / "predictions-batch-1.json").read_text())["questions"]
    assert first == {"id": "q1", "type": "factoid", "exact_answer": [["beta"], ["alpha"]]}


def test_bioasq_scores_factoid_and_list_questions_also_apart_and_writes_their_type(tmp_path):
    examples = [Question("q1_0", "Which?", "alpha beta", [], 1, ["beta"]),
                Question("q2_0", "Which all?", "alpha beta", [], 1, ["gamma"], type="list")]
    predictions = [[Answer("beta", 6, 10, 1.0)], [Answer("alpha", 0, 5, 1.0)]]
    kind = kind_of("bioasq")
    measured = kind.score(examples, predictions)
    assert {part: measured[f"{part}mrr"] for part in ("", "batch 1 ", "factoid ", "list ")} == {
        "": 0.5, "batch 1 ": 0.5, "factoid ": 1, "list ": 0}
    assert "factoid mrr" not in kind.score(examples[:1], predictions[:1])
    kind.write(tmp_path, examples, predictions)
    written = json.loads((tmp_path / "predictions-batch-1.json").read_text())["questions"]
    assert [question["type"] for question in written] == ["factoid", "list"]
    kind.write(tmp_path, [examples[0]._replace(batch=None)], predictions[:1])
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"q1": "beta"}


def test_the_table_shows_mean_deviation_and_the_papers_figure():
    lines = train_finetune.score_table(options_for("ncbi-disease"), [
        {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}, {"precision": 0.7, "recall": 0.25, "f1": 1 / 3}])
    precision = next(line for line in lines.splitlines() if line.startswith("precision")).split()
    assert precision == "precision 60.00 14.14 85.87 73.47 (0.92) 75.44 (1.06) 83.40 (0.79)".split()
    assert lines.splitlines()[-1] == "f1 of each seed: 33.33, 33.33"


def test_table_10_ends_the_table_of_bioasq():
    """ELECTRAMed's own MRR of each batch gives its total of the paper; half of each gives half of it."""
    scores = train_finetune.published_scores("bioasq7b")
    result = {"mrr": 0.4}
    for batch in train_finetune.BEST_MRR:
        result[f"batch {batch} mrr"] = float(scores[f"batch {batch} mrr"]["ELECTRAMed"]) / 100
    half = {measure: value / 2 for measure, value in result.items()}
    table = train_finetune.score_table(options_for("bioasq7b"), [result])
    assert "(ELECTRAMed's Table 10): ours 4.713; ELECTRAMed 4.713, KU-DMIS-1 4.542" in table
    assert "ours 2.357" in train_finetune.score_table(options_for("bioasq7b"), [half])
    half.pop("batch 3 mrr")
    assert "sum over 4 batches" in train_finetune.score_table(options_for("bioasq7b"), [half])
    assert "Table 10" not in train_finetune.score_table(options_for("bioasq7b"), [{"mrr": 0.4}])


def test_a_type_that_only_one_seed_predicts_is_in_the_table_and_zero_for_the_others():
    table = train_finetune.score_table(options_for("demo-ner"), [{"f1": 0.5}, {"f1": 0.5, "Drug f1": 0.4}])
    row = next(line for line in table.splitlines() if line.startswith("Drug f1"))
    assert row.split() == ["Drug", "f1", "20.00", "28.28"]


def test_the_table_has_a_column_for_each_paper_that_has_the_task():
    lines = train_finetune.score_table(options_for("ncbi-disease"), [{"f1": 0.5}]).splitlines()
    assert lines[1].split() == ["mean", "ELECTRAMed", "Bio-ELECTRA", "++", "++", "tuned"]
    assert lines[3].split() == "f1 50.00 87.54 78.32 (0.52) 80.01 (0.68) 84.85 (0.65)".split()  # no deviation
    with_scores = [task for task in TASKS if train_finetune.published_scores(task)]
    assert len(with_scores) == 14 and "demo-ner" not in with_scores


@pytest.mark.parametrize("changed, settings", [
    ({}, "default"), ({"learning_rate": 1e-3}, "own"), ({"epochs": 20, "search": 3}, "searched"),
    ({"evaluate": True}, "unknown"), ({"seeds": 3, "device": "cpu"}, "default")])
def test_the_table_says_how_the_settings_of_each_column_were_found(changed, settings):
    options = dataclasses.replace(options_for("ncbi-disease"), **changed)
    line = train_finetune.score_table(options, [{"f1": 0.5}]).splitlines()[2]
    assert line.split() == ["settings", settings, "default", "default", "default", "searched"]


def test_precision_recall_and_f1_of_the_papers_belong_together():
    """F1 of the printed precision and recall is the printed F1, but for rounding and for means over seeds."""
    checked = 0
    for task in TASKS:
        scores = train_finetune.published_scores(task)
        for prefix in ("", "yes ", "no "):
            for paper, f1 in scores.get(f"{prefix}f1", {}).items():
                if precision := scores.get(f"{prefix}precision", {}).get(paper):
                    recall = scores[f"{prefix}recall"][paper]
                    p, r, f = (float(text.split()[0]) for text in (precision, recall, f1))
                    near = 5 if prefix == "no " else 0.3
                    assert 2 * p * r / (p + r) == pytest.approx(f, abs=near), (task, paper)
                    checked += 1
    assert checked == 26


# --- 8. The error report ---

def report(tmp_path, task, examples, predictions) -> str:
    """What errors.md says below its title."""
    train_finetune.write_errors(tmp_path / "errors.md", "Errors",
                                list(kind_of(task).errors(examples, predictions)))
    return (tmp_path / "errors.md").read_text().split("\n\n", 1)[1]


def test_errors_of_entities_worked_by_hand(tmp_path):
    """One drug is missed, one is too long, one is taken for a gene; and a gene stands in nothing."""
    sentences = [("jor [ 3 ] helps", "B-Drug O O O O", "O O O O O"),
                 ("kel acid for fever", "B-Drug O O B-Disease", "B-Drug I-Drug O B-Disease"),
                 ("kel acid for jor", "B-Drug I-Drug O B-Drug", "O B-Gene O B-Drug"),
                 ("so is * it", "O O O O", "O O B-Gene I-Gene")]
    examples = [TaggedSentence(words.split(), gold.split()) for words, gold, _ in sentences]
    assert report(tmp_path, "demo-ner", examples, [predicted.split() for *_, predicted in sentences]) == r"""
## 1 x jor (Drug) -> nothing

- jor \[ 3 \] helps

## 1 x kel (Drug) -> nothing

- kel acid for fever

## 1 x nothing -> kel acid (Drug)

- kel acid for fever

## 1 x kel acid (Drug) -> nothing

- kel acid for jor

## 1 x nothing -> acid (Gene)

- kel acid for jor

## 1 x nothing -> \* it (Gene)

- so is \* it
"""[1:]


def test_what_markdown_reads_and_control_characters_are_escaped(tmp_path):
    for text, expected in [
            ("# a > b_c ~~d~~ &lt;", r"\# a \> b\_c \~\~d\~\~ \&lt;"), ("- a - b", r"\- a - b"),
            ("+ a", r"\+ a"), ("1. a 2. b", r"1\. a 2. b"), ("12) a", r"12\) a"), ("1.5 g", r"1\.5 g"),
            ("a\x1b[31m\x07 b", r"a\\x1b\[31m\\x07 b"), ("\u202ea\n\nb", r"\\u202ea b")]:
        assert train_finetune.escape_markdown(text) == expected
    tagged = TaggedSentence(["jor"], ["B-Dr\x1b[2Jug"])
    assert "\x1b" not in report(tmp_path, "demo-ner", [tagged], [["O"]])


def test_control_characters_in_labels_are_shown_as_escapes(capsys):
    examples = [TaggedSentence(["a", "b"], ["B-x\x1b[2J", "B-y"])]
    assert r"x\x1b[2J f1" in TAGGING.score(examples, [["O", "O"]])
    TAGGING.announce("test", examples, [])
    assert r"*** B-x\x1b[2J, B-y: not in" in capsys.readouterr().err


TAG_PAIRS = st.lists(st.tuples(*[st.sampled_from(["O", "B-Drug", "I-Drug", "B-Gene"])] * 2), min_size=1)


@given(TAG_PAIRS)
def test_every_false_positive_and_false_negative_is_listed_once(pairs):
    gold, predicted = map(list, zip(*pairs))
    mistakes = [*TAGGING.errors([TaggedSentence(["w"] * len(gold), gold)], [predicted])]
    scores = metrics.entity_scores([gold], [predicted])
    assert len(mistakes) == scores.false_positives + scores.false_negatives


def test_errors_of_relations_worked_by_hand(tmp_path):
    rows = [("a", "false", "treats"), ("b", "treats", "treats"), ("d", "causes", "false"),
            ("f", "causes", "false")]
    examples = [LabelledText("", f"sentence {text}", gold) for text, gold, _ in rows]
    assert report(tmp_path, "demo-re", examples, [predicted for *_, predicted in rows]) == """
## 2 x causes -> false

- sentence d
- sentence f

## 1 x false -> treats

- sentence a
"""[1:]


def test_errors_of_yes_no_questions_stand_with_their_answers(tmp_path):
    examples = [LabelledText("", "is it?", "1", "because")]
    assert report(tmp_path, "yesno", examples, ["0"]).splitlines()[-1] == "- is it? because"


def test_errors_of_questions_worked_by_hand(tmp_path):
    context = "the drug treats fever"
    rows = [("q1", "fever", ["treats", "fever"]), ("q2", "drug", ["fever"]), ("q5", "fever", ["the fever"])]
    examples = [Question(name, f"what is {name} ?", context, [(gold, context.index(gold))])
                for name, gold, _ in rows]
    predictions = [[Answer(text, 0, 0, 0.5) for text in texts] for *_, texts in rows]
    assert report(tmp_path, "demo-qa", examples, predictions) == """
## 1 x fever -> treats | fever

- what is q1 ?

## 1 x drug -> fever

- what is q2 ?
"""[1:]


def test_a_bioasq_question_is_one_error_whatever_its_snippets(tmp_path):
    """q1 has the right answer second; q2 a wrong one; q3 is right."""
    rows = [("q1_0", ["fever"], ["patients", "fever"]), ("q1_1", ["fever"], ["drug"]),
            ("q2_0", ["gout", "podagra"], ["gene"]), ("q3_0", ["Gene"], ["gene"])]
    examples = [Question(name, f"which is {name[:2]} ?", "", [], 1, gold) for name, gold, _ in rows]
    predictions = [[Answer(text, 0, 0, 0.9 - 0.1 * rank) for rank, text in enumerate(texts)]
                   for *_, texts in rows]
    assert report(tmp_path, "bioasq7b", examples, predictions) == """
## 1 x fever -> patients | drug | fever

- which is q1 ?

## 1 x gout | podagra -> gene

- which is q2 ?
"""[1:]


def test_errors_of_rankings_worked_by_hand(tmp_path):
    rows = [("q2", "c", "0", 0.5), ("q2", "d", "1", 0.1), ("q2", "e", "0", 0.3),
            ("q3", "f", "1", 0.2), ("q3", "g", "0", 0.1), ("q4", "h", "0", 0.7)]
    examples = [LabelledText("", question, label, text) for question, text, label, _ in rows]
    assert report(tmp_path, "rerank", examples, [probability for *_, probability in rows]) == """
## 1 x nothing -> h

- q4

## 1 x d -> c

- q2
"""[1:]


@pytest.mark.parametrize("task", ["demo-ner", "demo-re", "demo-qa"])
def test_the_errors_of_a_run_agree_with_its_scores_and_are_named_last(task, pretrained, tmp_path, capsys):
    assert run(task, pretrained, tmp_path) == 0
    assert "errors.md" in capsys.readouterr().err.splitlines()[-1]
    text, measured = (tmp_path / "seed-0" / "errors.md").read_text(), scores(tmp_path)["test"]
    title, wrong = text.splitlines()[0].split(": ")
    assert title == f"# Errors of {task}, test set, seed 0"
    if task == "demo-qa":
        questions = data.read_task("demo-qa", "test")
        assert measured["exact_match"] == pytest.approx(1 - int(wrong) / len(questions))
    groups = [int(number) for number in re.findall(r"^## (\d+) x ", text, re.M)]
    assert groups == sorted(groups, reverse=True) and sum(groups) == text.count("\n- ") == int(wrong) > 0


# --- 9. What a span can give at most ---

def gold_span_outputs(features: list[Feature], found: list[list[Answer]]) -> list[np.ndarray]:
    """The logits (T, 2) of a model that knows the first of these spans of each example."""
    outputs = []
    for feature in features:
        logits = np.zeros((len(feature.input_ids), 2), np.float32)
        for answer in found[feature.example][:1]:
            for spot in feature.spots:
                logits[spot.position, 0] += 9 * (spot.start == answer.start and spot.is_best)
                logits[spot.position, 1] += 9 * (spot.end == answer.end)
        outputs.append(logits)
    return outputs


def test_a_test_batch_without_its_golden_answers_is_said_to_count_as_wrong(capsys):
    kind = kind_of("bioasq7b")
    questions = [Question(f"q_{n}", "a", "b A", [], 1, gold) for n, gold in enumerate((["A"], None, []))]
    kind.announce("test", questions[:1], [])
    assert capsys.readouterr().err == ""
    kind.announce("test", questions, [])
    assert "test: 2 of 3 snippets belong to questions without an answer" in capsys.readouterr().err
    kind_of("squad").announce("test", questions, [])            # SQuAD 2 has questions that nobody can answer
    assert capsys.readouterr().err == ""


def test_synonyms_fed_back_score_what_the_spans_among_them_can(pretrained):
    """BioASQ's test sets: synonyms without positions, two contexts a question, one of three unanswerable."""
    context = "in the study , jorganux slowed the fever of many patients . " * 3
    examples = []
    for i, gold in enumerate([["Jorganux"], ["the FEVER", "hyperpyrexia"], ["a paraphrase"]]):
        examples += [Question(f"q{i}_0", "what ?", "no .", [], 1, gold),
                     Question(f"q{i}_1", "what ?", context, [], 1, gold)]
    kind = kind_of("bioasq7b")
    features = kind.encode(examples, Tokenizer.from_file(pretrained), 32, 8)
    found = findable(examples, features)
    predictions = kind.decode(examples, features, gold_span_outputs(features, found))
    measured, ceiling = kind.score(examples, predictions), kind.score(examples, found)
    assert measured["mrr"] == ceiling["mrr"] == pytest.approx(2 / 3)


# --- 10. Whole runs ---

@pytest.mark.parametrize("task, written, measure", [
    ("demo-ner", "predictions.txt", "f1"), ("demo-re", "predictions.tsv", "f1"),
    ("demo-qa", "predictions.json", "exact_match")])
def test_a_run_writes_scores_predictions_a_table_and_a_model(
        task, written, measure, pretrained, tmp_path, capsys):
    assert run(task, pretrained, tmp_path, "--seeds", "2") == 0
    assert {"task", "test_set", "dev", "test"} == scores(tmp_path).keys()
    assert 0 <= scores(tmp_path)["test"][measure] <= 1
    assert (tmp_path / "seed-1" / written).is_file()
    with open(tmp_path / "seed-0" / "log.csv") as file:
        row, = csv.DictReader(file)
    assert float(row["loss"]) > 0 and 0 <= float(row["dev_f1"]) <= 1
    table = (tmp_path / "table.txt").read_text()
    assert "2 seeds" in table and measure in table and table in capsys.readouterr().out
    assert json.loads((tmp_path / "seed-1" / "dev.json").read_text()) == scores(tmp_path, 1)["dev"]
    assert electramed.read_config(tmp_path / "model").hidden_size == 16


def test_finished_seeds_are_kept_and_more_can_be_asked_for(trained, pretrained, tmp_path):
    shutil.copytree(trained("demo-re"), tmp_path, dirs_exist_ok=True)
    first = tmp_path / "seed-0" / "scores.json"
    before = first.stat().st_mtime_ns
    assert run("demo-re", pretrained, tmp_path, "--seeds", "2") == 0
    assert first.stat().st_mtime_ns == before and (tmp_path / "seed-1" / "scores.json").exists()


def test_the_binary_tag_loss_trains_another_tagger_and_is_refused_elsewhere(pretrained, tmp_path, capsys):
    for loss in ("softmax", "binary"):
        assert run("demo-ner", pretrained, tmp_path / loss, "--tag-loss", loss) == 0
    first, second = ((tmp_path / loss / "seed-0" / "log.csv").read_text() for loss in ("softmax", "binary"))
    assert first != second
    assert run("demo-ner", pretrained, tmp_path / "binary") == 2
    assert "--tag-loss binary, now softmax" in capsys.readouterr().err
    assert run("demo-re", pretrained, tmp_path / "re", "--tag-loss", "binary") == 2
    assert "--tag-loss is for Tagging, not for demo-re" in capsys.readouterr().err


def test_a_data_folder_is_refused_beside_a_demo_task_which_reads_no_files(pretrained, tmp_path, capsys):
    assert run("demo-ner", pretrained, tmp_path / "out", "--data", str(tmp_path)) == 2
    expected = f"--data: demo-ner reads no files: choose a --task of {tmp_path}"
    assert expected in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_finished_seeds_are_not_mixed_with_those_of_another_starting_model(pretrained, tmp_path, capsys):
    start, out = tmp_path / "start", tmp_path / "out"
    tokenizer = Tokenizer.from_file(pretrained)
    torch.manual_seed(1)
    model = electramed.ElectraForPretraining(electramed.read_config(pretrained))
    electramed.save_pretrained(model, start, tokenizer)
    assert run("demo-re", start, out) == 0
    electramed.save_pretrained(electramed.load_pretrained(pretrained), start, tokenizer)
    assert run("demo-re", start, out, "--seeds", "2") == 2
    assert "made from other files: model.safetensors changed" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_scores_and_weights(trained, pretrained, tmp_path):
    assert run("demo-ner", pretrained, tmp_path) == 0
    assert scores(tmp_path) == scores(trained("demo-ner"))
    a, b = (electramed.read_weights(folder / "model") for folder in (tmp_path, trained("demo-ner")))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_second_set_of_questions_starts_from_encoder_and_head_of_the_first(trained, tmp_path):
    """With learning rate 0 the model stays as it began: as another seed had left it."""
    squad, still = trained("demo-qa"), ("--learning-rate", "0", "--epochs", "1", "--seeds", "2")
    assert run("demo-qa", squad, tmp_path / "bioasq", *still) == 0
    first, *second = (electramed.read_weights(folder) for folder in (
        squad / "model", tmp_path / "bioasq/seed-0/model", tmp_path / "bioasq/seed-1/model"))
    assert all(torch.equal(first[name], weights[name]) for weights in second for name in first)
    assert run("demo-re", squad, tmp_path / "relations", *still[:4]) == 0               # labels: a new head


def test_predictions_are_float32_although_training_is_bfloat16(pretrained, tmp_path):
    """Rounded to bfloat16, probabilities of many candidates would be equal, and the file's order decide."""
    text = "".join(f"{number % 2}\twhat helps ?\tthe drug number {number} helps\n" for number in range(60))
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text(text)
    more = ("--data", str(tmp_path), "--precision", "bfloat16")
    assert run("rank", pretrained, tmp_path / "out", *more) == 0
    options = train_finetune.Options(task="rank", out=str(tmp_path / "out"), device="cpu")
    kept, again = [], []
    for precision, outputs in (("bfloat16", kept), ("float32", again)):
        trained = train_finetune.load_finetuned(tmp_path / "out")
        options = dataclasses.replace(options, precision=precision)
        prepared, options = train_finetune.as_trained(options, trained, {})
        features = prepared.kind.encode(data.read_task("rank", "test", tmp_path), trained.tokenizer, 128)
        outputs += train_finetune.predict(trained.model, features, prepared, options)
    assert np.array_equal(kept, again)


def test_options_that_a_reading_would_ignore_are_refused(trained, pretrained, tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("Vorax helps .\n")
    read = ["--out", str(trained("demo-ner")), "--predict", str(text)]
    assert train_finetune.main([*read, "--task", "demo-ner", "--device", "cpu"]) == 0
    for flag, value in (("--init", str(pretrained)), ("--max-length", "9"), ("--tag-loss", "binary")):
        assert train_finetune.main([*read, flag, value]) == 2
        assert f"use a model as it was trained: drop {flag}\n" in capsys.readouterr().err


def test_from_scratch_says_so_loudly_and_takes_the_sizes_of_the_model_but_not_its_weights(
        pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    still = ("--learning-rate", "0")
    weights = {}
    for name, more in (("scratch", ("--scratch",)), ("start", ())):
        assert run("demo-ner", pretrained, tmp_path / name, *still, *more) == 0
        assert ("FROM SCRATCH" in capsys.readouterr().err) == (name == "scratch")
        assert electramed.read_config(tmp_path / name / "model").hidden_size == 16
        weights[name] = electramed.read_weights(tmp_path / name / "model")[
            "electra.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(weights["scratch"], weights["start"])
    assert train_finetune.main(["--task", "demo-ner", "--out", "alone", *QUICK, "--cased"]) == 0
    assert "FROM SCRATCH" in capsys.readouterr().err
    assert electramed.read_config(tmp_path / "alone" / "model").hidden_size == 128
    assert not Tokenizer.from_file(tmp_path / "alone" / "model").lowercase


def test_the_training_loss_falls_below_half(pretrained, tmp_path):
    more = ("--epochs", "30", "--learning-rate", "3e-3", "--layer-decay", "1")
    assert run("demo-re", pretrained, tmp_path, *more) == 0
    with open(tmp_path / "seed-0" / "log.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.5 * losses[0]


@given(st.integers(0, 5), st.integers(0, 3), st.lists(st.integers(3, 30), min_size=1, max_size=40))
def test_the_same_seed_and_epoch_give_the_same_batches_which_hold_every_row_once(seed, epoch, lengths):
    def batches():
        rng = np.random.default_rng(data.seed_for(seed, epoch, "order"))
        plan = data.plan_batches(np.array(lengths), 4, 32, rng, keep_rest=True)
        return [(width, rows.tolist()) for width, rows in plan]

    assert batches() == batches()
    assert sorted(row for _, rows in batches() for row in rows) == list(range(len(lengths)))


def test_a_trained_model_is_scored_without_training_from_any_of_its_folders(pretrained, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("demo-re", pretrained, out, "--max-length", "24") == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shutil.copytree(out / "model", tmp_path / "mine" / "alone")
    evaluate = ["--task", "demo-re", "--evaluate"]
    places = {"out": out, "seed": out / "seed-0", "alone": tmp_path / "mine" / "alone"}
    for folder in places.values():
        assert train_finetune.main([*evaluate, "--out", str(folder)]) == 0
    assert train_finetune.main([*evaluate, "--init", str(out), "--out", str(tmp_path / "new")]) == 0
    assert "settings                     unknown" in capsys.readouterr().out
    for folder in (out, out / "seed-0", tmp_path / "mine", tmp_path / "new"):
        found = folder / "evaluation"
        assert json.loads((found / "scores.json").read_text())["test"] == scores(out)["test"]
        for name in ("predictions.tsv", "table.txt"):
            assert (found / name).is_file()
        assert (found / "predictions.tsv").read_bytes() == (out / "seed-0" / "predictions.tsv").read_bytes()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_published_model_with_the_labels_of_the_task_is_scored_and_another_is_refused(
        pretrained, tmp_path, capsys):
    """Its labels stand in another order, and it has no task.json."""
    folder, tokenizer = disease_folder(tmp_path), Tokenizer.from_file(pretrained)
    (folder / "train.txt").unlink()                             # the test file alone is enough
    config = electramed.read_config(pretrained)
    model = electramed.TokenTagger(config, 3)
    electramed.save_pretrained(model, tmp_path / "good", tokenizer, ["B-Disease", "O", "I-Disease"])
    electramed.save_pretrained(model, tmp_path / "bad", tokenizer, ["B-Drug", "O", "I-Drug"])
    classifier = electramed.SequenceClassifier(config, 3)
    electramed.save_pretrained(classifier, tmp_path / "kind", tokenizer, ["B-Disease", "O", "I-Disease"])

    def evaluate(name: str) -> int:
        return train_finetune.main(["--task", "ncbi-disease", "--evaluate", "--init", str(tmp_path / name),
                                    "--data", str(folder), "--out", str(tmp_path / "out")])

    assert evaluate("good") == 0
    table = (tmp_path / "out" / "evaluation" / "table.txt").read_text()
    assert table in capsys.readouterr().out and "87.54" in table
    assert evaluate("bad") == 2
    assert "the model is a TokenTagger with B-Drug, O, I-Drug: choose another" in capsys.readouterr().err
    assert evaluate("kind") == 2
    said = capsys.readouterr().err
    assert "asks for a TokenTagger with O, " in said and "is a SequenceClassifier with B-Disease, " in said
    more = ["--task", "demo-re", "--evaluate", "--epochs", "2", "--out", str(tmp_path / "out")]
    assert train_finetune.main(more) == 2
    assert "use a model as it was trained: drop --epochs" in capsys.readouterr().err


def test_a_seed_that_was_killed_between_training_and_testing_is_not_trained_again(
        trained, pretrained, tmp_path, monkeypatch):
    shutil.copytree(trained("demo-re"), tmp_path, dirs_exist_ok=True)
    before = scores(tmp_path)
    (tmp_path / "seed-0" / "scores.json").unlink()
    monkeypatch.setattr(train_finetune, "train", None)
    assert run("demo-re", pretrained, tmp_path) == 0 and scores(tmp_path) == before
    assert run("demo-re", pretrained, tmp_path, "--seeds", "1", "--batch-size", "7") == 2


def test_a_task_file_that_does_not_fit_is_told_in_one_line(trained, tmp_path, capsys):
    shutil.copytree(trained("demo-re"), tmp_path / "out")
    path = tmp_path / "out" / "model" / "task.json"
    written = json.loads(path.read_text())
    for content, message in [
            ({"max_length": 7}, "that of task.json, is 7: the"), ({"max_length": "a"}, "'max_length' is a"),
            ({"max_length": 9999}, "reads 8 to 384 tokens"), ({"task": "x"}, "unknown task 'x'"),
            ({"task": 5}, "'task' is 5"), ({"task": "demo-ner"}, "demo-ner asks for a TokenTagger")]:
        path.write_text(json.dumps(written | content))
        capsys.readouterr()
        assert train_finetune.main(["--out", str(tmp_path / "out"), "--predict", str(path)]) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1


def test_several_processes_are_refused_because_one_device_is_used(pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("demo-re", pretrained, tmp_path / "out") == 2
    assert "fine-tuning uses one device" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_layer_decay_above_one_is_refused(pretrained, tmp_path, capsys):
    for value in ("1e308", "1.5"):
        assert run("demo-re", pretrained, tmp_path / "out", "--layer-decay", value) == 2
        said = capsys.readouterr().err
        assert "--layer-decay must be at most 1" in said and len(said.splitlines()) == 1


def test_a_batch_is_filled_up_where_shapes_are_compiled_and_the_loss_stays(tiny_tokenizer):
    """Two rows become eight on eight devices; the six that were added have no label, in each kind's form."""
    class Eight(electramed.Device):
        count = 8

        def put(self, *tensors):
            return tensors

    texts = [LabelledText("1", "the drug", "yes"), LabelledText("2", "the gene", "no")]
    sentences = [TaggedSentence(["the", "drug"], ["O", "B-Drug"])] * 2
    questions = [Question("1", "the ?", "the drug", [("drug", 4)])] * 2
    kinds = {Relations(Task("re", labels=("no", "yes"))): texts, TAGGING: sentences, ANSWERS: questions}
    for kind, examples in kinds.items():
        features = kind.encode(examples, tiny_tokenizer, 16)
        prepared = prepared_for(kind, tiny_tokenizer)
        model = kind.new_model(electramed.PRESETS["tiny"].with_tokenizer(tiny_tokenizer)).eval()
        *inputs, labels = train_finetune.make_batch(features, 16, 5, prepared)
        plain = model.loss(model(*inputs), labels)
        on_eight = prepared._replace(device=Eight("cpu", "float32", xla=True))
        *filled, more = train_finetune.make_batch(features, 16, 5, on_eight)
        assert [len(tensor) for tensor in (*filled, more)] == [8] * 4 and (more[2:] == IGNORED_LABEL).all()
        assert torch.allclose(model.loss(model(*filled), more), plain, atol=1e-6)


# --- 11. Search and curve ---

def test_a_search_tries_the_grid_on_the_development_set_and_never_twice(
        pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_finetune, "GRID",
                        {"learning_rate": (1e-5, 1e-2), "epochs": (1, 2), "batch_size": (16, 32)})
    search = ["--task", "demo-re", "--init", str(pretrained), "--out", str(tmp_path / "out"), "--search"]
    trained = []                                                # the run folder of each training
    train = train_finetune.train

    def record(seed, prepared, options):
        trained.append(options.out)
        return train(seed, prepared, options)

    monkeypatch.setattr(train_finetune, "train", record)
    assert train_finetune.main([*search, "3"]) == 0
    assert len(trained) == len(set(trained)) == 3               # the best one's seed 0 is not trained again
    table = capsys.readouterr().out
    assert train_finetune.main([*search, "3"]) == 0
    assert len(trained) == 3 and capsys.readouterr().out == table
    assert table.splitlines()[2].split()[1] == "searched"
    with open(tmp_path / "out" / "search.csv") as file:
        rows = list(csv.DictReader(file))
    dev = [float(row["dev_f1"]) for row in rows]
    assert len(rows) == 3 and dev == sorted(dev, reverse=True)
    name = "learning-rate-{learning_rate}-epochs-{epochs}-batch-size-{batch_size}".format(**rows[0])
    best = tmp_path / "out" / name
    assert scores(best)["dev"]["f1"] == pytest.approx(dev[0], abs=1e-6)
    assert (best / "table.txt").read_text() == table
    assert train_finetune.main([*search, "4"]) == 0
    assert len(trained) == len(set(trained)) == 4               # one more trial
    assert len([*(tmp_path / "out").glob("*/seed-0/model")]) == 4
    result, = read(tmp_path / "out", "@DRUG$ slowed @DISEASE$ .\n", tmp_path, capsys)
    assert result["label"] in TASKS["demo-re"].labels           # its model is where --predict looks


def test_a_trial_of_a_search_never_sees_the_test_set(pretrained, tmp_path, monkeypatch):
    grid = {"learning_rate": (1e-3,), "epochs": (1,), "batch_size": (32,)}
    monkeypatch.setattr(train_finetune, "GRID", grid)
    seen = []
    evaluate = train_finetune.evaluate
    monkeypatch.setattr(train_finetune, "evaluate",
                        lambda model, split, *rest: seen.append(split) or evaluate(model, split, *rest))
    assert train_finetune.main(["--task", "demo-re", "--init", str(pretrained), "--out", str(tmp_path),
                                "--search", "1"]) == 0
    assert seen == ["dev", "test"]                              # the trial; then its one look


def test_a_search_says_what_it_cannot_do(pretrained, tmp_path, capsys):
    assert run("demo-re", pretrained, tmp_path, "--search", "2") == 2
    assert "--search draws --learning-rate, --epochs and --batch-size itself" in capsys.readouterr().err
    start = ["--task", "ncbi-disease", "--init", str(pretrained), "--out", str(tmp_path / "out")]
    assert train_finetune.main([*start, "--search", "2", "--curve"]) == 2
    assert "choose one" in capsys.readouterr().err
    folder = disease_folder(tmp_path)
    (folder / "dev.txt").unlink()
    assert train_finetune.main([*start, "--search", "2", "--data", str(folder)]) == 2
    assert "no development set to choose by" in capsys.readouterr().err


def test_the_curve_has_a_row_for_each_model_a_run_kept(pretrained, tmp_path, capsys):
    model, tokenizer = electramed.load_pretrained(pretrained), Tokenizer.from_file(pretrained)
    for step in (100, 20):
        electramed.save_pretrained(model, tmp_path / "run" / "models" / f"step-{step:08d}", tokenizer)
    out = tmp_path / "curve"
    assert run("demo-re", tmp_path / "run", out, "--curve", "--seeds", "2") == 0
    with open(out / "curve.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["20", "100"]
    for row in rows:
        values = [100 * scores(out / f"step-{int(row['step']):08d}", seed)["test"]["f1"] for seed in (0, 1)]
        assert float(row["f1"]) == pytest.approx(np.mean(values), abs=0.01)
        # of two values t is 12.706 and sd / sqrt(2) half their distance
        half = 12.706 * abs(values[0] - values[1]) / 2
        assert float(row["high"]) - float(row["f1"]) == pytest.approx(half, abs=0.02)
    assert run("demo-re", tmp_path / "run", tmp_path / "one", "--curve") == 0
    one = (tmp_path / "one" / "curve.csv").read_text()
    assert re.fullmatch(r"step,f1,low,high\n20,[\d.]+,,\n100,[\d.]+,,\n", one)
    assert run("demo-re", pretrained, out, "--curve") == 2
    assert "holds no models" in capsys.readouterr().err


# --- 12. Raw text ---

def read(out: Path, lines: str, tmp_path: Path, capsys) -> list[dict]:
    (tmp_path / "input.txt").write_text(lines)
    capsys.readouterr()
    assert train_finetune.main(["--out", str(out), "--predict", str(tmp_path / "input.txt")]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]


def test_entities_of_raw_text_stand_at_their_characters(pretrained, tmp_path, capsys):
    """Trained until it knows two sentences by heart, the tagger has to find their diseases in other text."""
    mentions = {"chronic kelmarin fever": 3, "ganbael": 1}
    rows = "".join("".join(f"{word} {tag}\n" for word, tag in zip(
        f"jorganux slowed {name} in adults .".split(),
        ["O", "O", "B-Disease", *["I-Disease"] * (length - 1), "O", "O", "O"])) + "\n"
        for name, length in mentions.items())
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.txt").write_text(rows * 8)
    out = tmp_path / "out"
    assert run("ncbi-disease", pretrained, out, "--data", str(tmp_path), "--epochs", "40",
               "--learning-rate", "1e-2", "--layer-decay", "1", "--dropout", "0") == 0
    assert scores(out)["test"]["f1"] == 1
    text = "Jorganux slowed  Chronic kelmarin FEVER in adults.  Jorganux slowed ganbael in adults."
    long = " ".join([text] * 20)
    first, empty, second = read(out, f"{text}\n\n{long}\n", tmp_path, capsys)
    assert [first["line"], empty, second["line"]] == [1, {"line": 2, "text": "", "entities": []}, 3]
    assert [(entity["text"], entity["type"]) for entity in first["entities"]] == [
        ("Chronic kelmarin FEVER", "Disease"), ("ganbael", "Disease")]
    assert len(second["entities"]) == 40                        # however long the text
    for result in (first, second):
        for entity in result["entities"]:
            assert result["text"][entity["start"]:entity["end"]] == entity["text"]
            assert 0.5 < entity["score"] <= 1


def test_how_words_are_cut_goes_through_task_json_to_raw_text(pretrained, tmp_path, capsys, monkeypatch):
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("IL-2 B-X\nbinds O\n\n" * 3)
    assert run("ner", pretrained, tmp_path / "out", "--data", str(tmp_path)) == 0
    cut, seen = train_finetune.cut_words, []
    monkeypatch.setattr(train_finetune, "cut_words",
                        lambda text, tokenizer, inside: seen.append(inside) or cut(text, tokenizer, inside))
    read(tmp_path / "out", "IL-2 binds\n", tmp_path, capsys)
    assert seen == [["a-1"]]


@pytest.mark.parametrize("loss, probability", [("softmax", 0.6652), ("binary", 0.8808)])
def test_scores_are_the_probabilities_the_tagger_was_trained_to_give(loss, probability):
    """Of logits 1, 2 and 0: e^2 / (e^1 + e^2 + e^0), or a sigmoid of the 2 alone."""
    example = train_finetune.RawSentence(["abc"], ["O"], [(0, 3)], "abc")
    feature = Feature(0, [0, 1, 0], 3, [], [(1, 0)])
    output = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    [result] = TAGGING.results([example], [feature], [output], train_finetune.Options(tag_loss=loss))
    [entity] = result["entities"]
    assert (entity["type"], entity["score"]) == ("Drug", probability)


def test_a_word_longer_than_a_window_is_still_one_word(pretrained, tmp_path, capsys):
    assert run("demo-ner", pretrained, tmp_path / "out", "--max-length", "16") == 0
    result, = read(tmp_path / "out", "a" + "-b" * 200 + "\n", tmp_path, capsys)
    for entity in result["entities"]:
        assert result["text"][entity["start"]:entity["end"]] == entity["text"]


def test_relations_answers_and_pairs_are_read_from_lines(trained, pretrained, tmp_path, capsys, monkeypatch):
    results = read(trained("demo-re"), "@DRUG$ slowed @DISEASE$ .\n" * 2, tmp_path, capsys)
    assert len(results) == 2 and results[0]["label"] in TASKS["demo-re"].labels
    assert 0.25 <= results[0]["score"] <= 1
    pair = json.dumps({"question": "what was slowed ?", "passage": "Jorganux slowed ganbael. " * 40})
    result, = read(trained("demo-qa"), pair + "\n", tmp_path, capsys)
    assert len(result["answers"]) == 5 and result["question"] == "what was slowed ?"
    for answer in result["answers"]:
        assert result["passage"][answer["start"]:answer["end"]] == answer["text"]
    chances = [answer["score"] for answer in result["answers"]]
    assert chances == sorted(chances, reverse=True)
    (tmp_path / "train.tsv").write_text("1\tis it?\tit is\n0\tis it?\tnot\n")
    (tmp_path / "test.tsv").write_text("1\tis it?\tit is\n0\tis it?\tnot\n")
    for kind in ("classify", "rank"):
        assert run(kind, pretrained, tmp_path / kind, "--data", str(tmp_path)) == 0
        result, = read(tmp_path / kind, pair + "\n", tmp_path, capsys)
        assert 0 < result["probability"] < 1 if kind == "rank" else result["label"] in ("0", "1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{pair}\n{pair}\n".encode())))
    assert train_finetune.main(["--out", str(trained("demo-qa")), "--predict", "-"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_raw_text_and_models_that_cannot_be_read_are_named(trained, pretrained, tmp_path, capsys):
    assert train_finetune.main(["--out", str(tmp_path / "none"), "--predict", "x"]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert train_finetune.main(["--out", str(pretrained), "--predict", "x"]) == 2
    assert "which is no fine-tuned model" in capsys.readouterr().err
    for flag in ("--predict", "--init", "--out", "--data"):     # a variable of the shell that is not set
        with pytest.raises(SystemExit) as stop:
            train_finetune.main(["--out", str(tmp_path), flag, ""])
        assert stop.value.code == 2 and f"{flag}: is empty" in capsys.readouterr().err
    ask = ["--out", str(trained("demo-qa")), "--predict", str(tmp_path / "input.txt")]
    assert train_finetune.main(ask) == 2
    assert "input.txt" in capsys.readouterr().err
    for line in ('{"question": "what ?"}', '{"question": "what ?", "passage": null}', "[1]", "what ?"):
        (tmp_path / "input.txt").write_text(f"\n{line}\n")
        assert train_finetune.main(ask) == 2
        assert "input.txt line 2: expected {\"question\"" in capsys.readouterr().err


def test_a_pipe_is_read_once_and_what_cannot_be_read_is_one_line(
        trained, tmp_path, capsys, monkeypatch):
    ask = ["--out", str(trained("demo-re")), "--predict"]
    reading, writing = os.pipe()
    os.write(writing, b"@DRUG$ slowed @DISEASE$ .\n@DRUG$ met @DISEASE$ .\n")
    os.close(writing)
    capsys.readouterr()
    assert train_finetune.main([*ask, f"/dev/fd/{reading}"]) == 0
    assert [json.loads(line)["line"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    article = "<PMID>7</PMID><Article><ArticleTitle>On gout.</ArticleTitle></Article>"
    xml = f"<MedlineCitationSet><MedlineCitation>{article}</MedlineCitation></MedlineCitationSet>\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(xml)))         # without a declaration
    assert train_finetune.main([*ask, "-"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "On gout."
    monkeypatch.setattr("sys.stdin", None)
    for source, message in (("-", "standard input is closed"), (str(tmp_path), "Is a directory")):
        assert train_finetune.main([*ask, source]) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1


def test_a_second_process_on_one_run_folder_is_refused(pretrained, tmp_path, capsys):
    with data.only_process(tmp_path / "ner"):
        assert run("demo-ner", pretrained, tmp_path / "ner") == 2
        assert "is in use by another process: wait" in capsys.readouterr().err


# --- 13. Files of one's own, and wrong input ---

def test_labels_are_found_in_the_training_set_with_the_negative_one_first():
    sentences = [TaggedSentence(["a", "b"], ["B-x", "I-x"]), TaggedSentence(["c"], ["B"])]
    assert Tagging(TASKS["ner"], sentences).labels == ("O", "B", "B-x", "I-x")
    relations = [LabelledText("", "", label) for label in ("b", "none", "a", "none")]
    found = Relations(TASKS["re"], relations)
    assert (found.labels, found.negative) == (("none", "a", "b"), "none")


def test_labels_that_a_task_names_are_not_looked_for():
    relations = [LabelledText("", "", label) for label in ("b", "none")]
    assert Relations(TASKS["gad"], relations).labels == TASKS["gad"].labels
    assert Ranking(TASKS["rank"], relations).labels == ("0", "1")
    assert Answers(TASKS["qa"], [Question("1", "", "", [])]).labels == ()


def test_a_sixth_kind_is_one_class_and_three_names(pretrained, tmp_path, monkeypatch):
    class Topics(train_finetune.Classification):
        def score(self, examples, predictions):
            return {"accuracy": np.mean([e.label == label for e, label in zip(examples, predictions)])}

    monkeypatch.setitem(KINDS, "topic", Topics)
    monkeypatch.setitem(data.READERS, "topic", data.read_labelled)
    monkeypatch.setitem(TASKS, "topic", Task("topic", metric="accuracy"))
    options = train_finetune.complete(train_finetune.Options(
        task="topic", data=str(relations_folder(tmp_path / "set")), init=str(pretrained),
        out=str(tmp_path / "out"), epochs=1))
    assert train_finetune.run(options) == 0
    measured = scores(tmp_path / "out")["test"]["accuracy"]
    wrong = (tmp_path / "out" / "seed-0" / "errors.md").read_text().count("\n- ")
    assert measured == pytest.approx(1 - wrong / 12)


def test_every_kind_of_task_has_one_class():
    assert {task.kind for task in TASKS.values()} == KINDS.keys()


def test_a_custom_set_of_each_kind_finds_its_labels(pretrained, tmp_path, capsys):
    questions = json.dumps({"data": [{"paragraphs": [{"context": "so it is", "qas": [
        {"id": "1", "question": "?", "answers": [{"text": "it", "answer_start": 3}]}]}]}]})
    texts = {"ner": ("fever B-X\n\nno O\n", "fever B-X\n\ngout B-Y\n"),
             "re": ("a\tnone\nb\tr\nc\tnone\n",) * 2, "qa": (questions,) * 2,
             "classify": ("1\tis it?\tyes\n0\tis it?\tno\n",) * 2,
             "rank": ("1\tis it?\tyes\n0\tis it?\tno\n",) * 2}
    for kind, (train, test) in texts.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / ("train.json" if kind == "qa" else "train.txt")).write_text(train)
        (folder / ("test.json" if kind == "qa" else "test.txt")).write_text(test)
        assert run(kind, pretrained, tmp_path / f"out-{kind}", "--data", str(folder)) == 0
    said = capsys.readouterr().err
    assert "labels of the training set: O, B-X\n" in said and "B-Y: not in the training set" in said
    assert 'none, r, \'none\' taken for "no relation"' in said


def test_where_there_is_no_published_split_each_seed_tests_a_part_and_the_table_says_so(
        pretrained, tmp_path, capsys):
    (tmp_path / "dev.tsv").write_text("".join(f"{i % 2}\tquestion {i // 2}\tanswer {i}\n" for i in range(20)))
    more = ("--data", str(tmp_path), "--seeds", "2", "--class-weights")
    assert run("rerank", pretrained, tmp_path / "out", *more) == 0
    assert "part 2 of 5 of its dev file: a cut of our own ***" in capsys.readouterr().err
    assert "a cut of our own" in (tmp_path / "out" / "table.txt").read_text()
    asked = [{line.split("\t")[1] for line in (tmp_path / "out" / f"seed-{seed}" / "predictions.tsv")
              .read_text().splitlines()[1:]} for seed in (0, 1)]
    assert len(asked[0]) == len(asked[1]) == 2 and not asked[0] & asked[1]
    assert run("demo-re", pretrained, tmp_path / "re", "--class-weights") == 2
    assert "--class-weights is for Ranking" in capsys.readouterr().err


def test_a_published_set_that_is_not_there_is_fetched_unless_offline(
        pretrained, tmp_path, capsys, monkeypatch):
    def fetch(name, directory):
        if "cut" in str(directory):
            raise OSError("http://address: cut off")
        for _, path, _ in data.missing_files(name, directory):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1\tis it?\tit is\n0\tis it?\tnot\n")

    monkeypatch.setattr(data, "fetch_task", fetch)
    root, offline = tmp_path / "root", ("--offline", "--data", str(tmp_path / "root"))
    assert run("yesno", pretrained, tmp_path / "out", *offline) == 2
    remedy = f"finetuning_data/yesno into {root}/qa/yesno"
    assert remedy in capsys.readouterr().err
    assert run("rerank", pretrained, tmp_path / "out", *offline) == 2 and not root.exists()
    assert "no train file" in capsys.readouterr().err
    assert run("yesno", pretrained, tmp_path / "out", "--data", str(root)) == 0
    assert run("yesno", pretrained, tmp_path / "out", "--seeds", "2", *offline) == 0
    for task in ("yesno", "rerank"):
        assert run(task, pretrained, tmp_path / task, "--data", str(tmp_path / "cut")) == 2
        said = capsys.readouterr().err
        assert "*** http://address: cut off ***" in said and f"error: {task}: no train file in" in said
    part = tmp_path / "cut" / "qa" / "reranker" / "dev.tsv"
    part.parent.mkdir(parents=True)
    part.write_text("".join(f"{i % 2}\tquestion {i // 2}\tanswer {i}\n" for i in range(20)))
    assert run("rerank", pretrained, tmp_path / "rerank", "--data", str(tmp_path / "cut")) == 0
    said = capsys.readouterr().err
    assert "*** http://address: cut off ***" in said and "so the test set is part 1 of 5" in said


def test_a_development_set_that_is_the_test_set_chooses_nothing(pretrained, tmp_path, capsys):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text("1\tis it?\tit is\n0\tis it?\tnot\n")
    assert run("yesno", pretrained, tmp_path / "out", "--data", str(tmp_path)) == 0
    assert "the last epoch counts" in capsys.readouterr().err and scores(tmp_path / "out")["dev"] == {}


def test_bioasq8b_reports_on_dev_which_then_chooses_nothing(pretrained, tmp_path, capsys):
    text = json.dumps({"questions": [{"id": "q", "type": "list", "body": "Which?", "exact_answer": [["gout"]],
                                      "snippets": [{"text": "Gout hurts."}, {"text": "It is gout."}]}]})
    for split in ("train", "dev"):
        (tmp_path / f"{split}.json").write_text(text)
    out = tmp_path / "out"
    assert run("bioasq8b", pretrained, out, "--data", str(tmp_path)) == 0
    assert "the last epoch counts" in capsys.readouterr().err and scores(out)["dev"] == {}
    assert scores(out)["test"].keys() == {"exact_match", "f1"} and "66.87" in (out / "table.txt").read_text()
    assert json.loads((out / "seed-0" / "predictions.json").read_text()).keys() == {"q_000", "q_001"}
    options = options_for("bioasq8b")
    assert (options.batch_size, options.max_length, options.learning_rate) == (12, 192, 1e-4)


def disease_folder(folder: Path) -> Path:
    """A data set in ncbi-disease's form, with a sentence far over the maximum length."""
    short = "no O\nfever B-Disease\n. O\n"
    long = "".join(f"word{i} O\n" for i in range(60)) + "gout B-Disease\n"
    for split in ("train", "dev", "test"):
        (folder / f"{split}.txt").write_text("\n" + f"{short}\n\n" * 4 + long)
    return folder


def test_long_sentences_lose_no_entity(pretrained, tmp_path, capsys):
    folder = disease_folder(tmp_path)
    assert run("ncbi-disease", pretrained, tmp_path / "out", "--data", str(folder), "--max-length", "40") == 0
    assert re.search(r"test: 5 examples, \d\d+ rows of at most 40 tokens, 0 cut", capsys.readouterr().err)
    written = (tmp_path / "out" / "seed-0" / "predictions.txt").read_text()
    assert written.count("B-Disease") >= 5 and "gout B-Disease" in written


def test_without_a_development_set_the_last_epoch_counts(pretrained, tmp_path, capsys):
    folder = disease_folder(tmp_path)
    (folder / "dev.txt").unlink()
    assert run("ncbi-disease", pretrained, tmp_path / "out", "--data", str(folder)) == 0
    assert "the last epoch counts" in capsys.readouterr().err and scores(tmp_path / "out")["dev"] == {}


def test_wrong_input_is_named_on_one_line(pretrained, tmp_path, capsys):
    def fails(*arguments: str) -> str:
        assert run(*arguments) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    folder, out = disease_folder(tmp_path), tmp_path / "out"
    (folder / "train.txt").write_text("fever B-Disease\nx B-Gene\n")
    assert "train.txt line 2: label 'B-Gene', expected one of O" in fails(
        "ncbi-disease", pretrained, out, "--data", str(folder))
    (folder / "train.txt").write_text("fever\n")
    assert "train.txt line 1: expected a word and O, B-TYPE or I-TYPE" in fails(
        "ncbi-disease", pretrained, out, "--data", str(folder))
    assert "no train file" in fails(
        "ddi2013", pretrained, out, "--data", str(tmp_path / "empty"), "--offline")
    assert "no config.json" in fails("demo-ner", tmp_path / "nowhere", out)
    assert "reads 8 to 384 tokens" in fails("demo-ner", pretrained, out, "--max-length", "1000")
    lines = (pretrained / "vocab.txt").read_text().splitlines(keepends=True)
    broken = tmp_path / "broken"
    tokenizer = Tokenizer.from_file(pretrained)
    electramed.save_pretrained(electramed.load_pretrained(pretrained), broken, tokenizer)
    (broken / "vocab.txt").write_text("".join(lines[:-1]))
    assert "vocab_size" in fails("demo-ner", broken, out) and "vocab.txt" in fails("demo-ner", broken, out)


def test_other_options_on_a_finished_run_are_refused_by_name(trained, pretrained, capsys):
    assert run("demo-re", pretrained, trained("demo-re"), "--batch-size", "4") == 2
    assert "--batch-size" in capsys.readouterr().err


# --- 14. Nothing wrong is silent ---

def relations_folder(folder: Path, labels: str = "10", rows: int = 6) -> Path:
    """Write train.tsv and test.tsv with as many rows of each label."""
    folder.mkdir(exist_ok=True)
    lines = [f"@GENE$ causes @DISEASE$ {number} .\t{label}" for number in range(rows) for label in labels]
    for split in ("train", "test"):
        (folder / f"{split}.tsv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("change", ["labels renamed", "half of the test labels blanked", "a file more"])
def test_files_that_changed_behind_the_same_path_are_refused_by_name(change, pretrained, tmp_path, capsys):
    folder, out = relations_folder(tmp_path / "set"), tmp_path / "out"
    assert run("re", pretrained, out, "--data", str(folder)) == 0
    if change == "labels renamed":
        relations_folder(folder, labels="YN")
    elif change == "a file more":
        (folder / "dev.tsv").write_bytes((folder / "train.tsv").read_bytes())
    else:
        text = (folder / "test.tsv").read_text()
        (folder / "test.tsv").write_text(text[:len(text) // 2] + text[len(text) // 2:].replace("\t1", "\t0"))
    capsys.readouterr()
    assert run("re", pretrained, out, "--data", str(folder), "--seeds", "2") == 2
    changed = {"labels renamed": "test.tsv, train.tsv", "a file more": "dev.tsv"}.get(change, "test.tsv")
    assert f"made from other files: {changed} changed: bring them back" in capsys.readouterr().err
    assert not (out / "seed-1").exists()


@pytest.mark.parametrize("task, search", [("demo-ner", ()), ("demo-re", ("--search", "1")), ("demo-qa", ()),
                                          ("classify", ()), ("rank", ())])
def test_a_loss_that_is_not_finite_ends_every_task_without_a_score(
        task, search, pretrained, tmp_path, capsys, monkeypatch):
    """From the second step on the loss is nan: the sixty demo examples have several steps in an epoch."""
    if task in ("classify", "rank"):
        for split in ("train", "dev", "test"):
            (tmp_path / f"{split}.tsv").write_text(f"1\tis it ?\t{split}\n0\tis it ?\tno\n" * 9)
    monkeypatch.setattr(train_finetune, "GRID", {"batch_size": (4,)})
    original, calls = electramed.mean_cross_entropy, []

    def loss(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) >= 2 else 1)
    monkeypatch.setattr(electramed, "mean_cross_entropy", loss)
    more = search or ("--batch-size", "4")
    if task in ("classify", "rank"):
        more += ("--data", str(tmp_path))
    assert run(task, pretrained, tmp_path / "out", *more) == 2
    assert "seed 0, epoch 1: the loss or the weights are not finite" in capsys.readouterr().err
    assert not [*tmp_path.rglob("scores.json"), *tmp_path.rglob("dev.json"), *tmp_path.rglob("table.txt")]


def test_weights_that_overflow_in_the_last_step_are_found(pretrained, tmp_path, capsys):
    assert run("demo-re", pretrained, tmp_path, "--learning-rate", "1e38", "--batch-size", "60") == 2
    assert "seed 0, epoch 1: the loss or the weights are not finite" in capsys.readouterr().err


def test_prediction_never_writes_nan(trained):
    found = train_finetune.load_finetuned(trained("demo-re"))
    with torch.no_grad():
        found.model.electra.embeddings.word_embeddings.weight.fill_(float("nan"))
    prepared = prepared_for(kind_of("demo-re"), found.tokenizer)
    with pytest.raises(ValueError, match="output is not finite"):
        train_finetune.predict(found.model, [Feature(0, [1, 2, 3], 3, 0)], prepared, options_for("demo-re"))


def test_linear_windows_equal_the_plain_ones():
    """The plain version looks at all windows for each piece, and takes the first of the best."""
    for length, capacity, stride in [(1, 1, 1), (20, 7, 3), (97, 10, 5), (50, 8, 8), (33, 9, 1)]:
        windows = split_windows(length, capacity, stride)
        plain = []
        for piece in range(length):
            context = [min(piece - start, end - 1 - piece) for start, end in windows]
            plain.append(context.index(max(context)))
        assert best_windows(length, windows).tolist() == plain


def test_a_sentence_of_20000_words_is_encoded_in_linear_memory():
    words = ["ab"] * 20_000
    tracemalloc.start()
    features = TAGGING.encode([TaggedSentence(words, ["O"] * len(words))], SPELLER, 64)
    assert tracemalloc.get_traced_memory()[1] < 100e6           # 1,290 windows by 40,000 pieces are 400 MB
    tracemalloc.stop()
    assert sum(len(feature.spots) for feature in features) == len(words)


@pytest.mark.parametrize("counts, negative, asked", [
    ({"1": 9, "0": 2}, "0", None), ({"causes": 5, "None": 1, "treats": 7}, "None", None),
    ({"yes": 5, "no": 4}, "no", None), ({"x": 5, "NA": 1}, "NA", None), ({"x": 5, "y": 6}, "y", None),
    ({"x": 5, "y": 6}, "x", "x"), ({"0": 5, "false": 6}, "false", None)])
def test_the_negative_label_is_the_one_asked_for_then_one_by_name_then_the_most_frequent(
        counts, negative, asked):
    relations = [LabelledText("", "", label) for label, count in counts.items() for _ in range(count)]
    assert Relations(Task("re", negative=asked), relations).labels[0] == negative


def test_the_table_says_which_label_means_no_relation_and_one_that_is_not_there_is_refused(
        pretrained, tmp_path, capsys):
    folder = relations_folder(tmp_path / "set", "110")
    assert run("re", pretrained, tmp_path / "a", "--data", str(folder)) == 0
    assert """re, test set, '0' taken for "no relation", 1 seed""" in capsys.readouterr().out
    assert run("re", pretrained, tmp_path / "b", "--data", str(folder), "--negative", "1") == 0
    assert """'1' taken for "no relation\"""" in (tmp_path / "b" / "table.txt").read_text()
    assert run("re", pretrained, tmp_path / "c", "--data", str(folder), "--negative", "2") == 2
    assert "--negative 2: the labels are 0, 1" in capsys.readouterr().err
    assert run("demo-ner", pretrained, tmp_path / "d", "--negative", "O") == 2
    assert "--negative is for Relations" in capsys.readouterr().err


def test_classify_takes_the_labels_of_its_training_file(pretrained, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text("".join(
            f"{label}\tis it ?\tsome say {label}\n" for label in ("yes", "no", "maybe") for _ in range(3)))
    assert run("classify", pretrained, tmp_path / "out", "--data", str(tmp_path)) == 0
    test = scores(tmp_path / "out")["test"]
    each = [test[f"{label} f1"] for label in ("yes", "no", "maybe")]
    assert test["macro_f1"] == pytest.approx(sum(each) / 3)
    examples = [LabelledText("", "", label) for label in ("yes", "no", "maybe", "maybe")]
    kind = YesNo(TASKS["classify"], examples)
    assert kind.labels == ("maybe", "no", "yes")
    measures = kind.score(examples, ["yes", "yes", "maybe", "no"])
    assert (measures["accuracy"], measures["yes f1"], measures["no f1"]) == (0.5, pytest.approx(2 / 3), 0)


def test_what_cannot_be_found_is_left_out_of_training_and_still_scored(pretrained, tmp_path, capsys):
    def paragraph(name, answer):
        return {"context": "the drug slowed the fever .", "qas": [{
            "id": name, "question": "what " + "is it " * 40,
            "answers": [{"text": answer, "answer_start": 0}]}]}
    content = {"data": [{"paragraphs": [paragraph(1, "fever"), paragraph(2, "gout")]}]}
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    questions = data.read_task("qa", "train", tmp_path)
    lost = ANSWERS.encode(questions, SPELLER, 384)
    assert [feature.labels is None for feature in lost] == [False, True]
    assert run("qa", pretrained, tmp_path / "out", "--data", str(tmp_path)) == 0
    said = capsys.readouterr().err
    assert "tokens, 2 cut" in said
    assert scores(tmp_path / "out")["test"]["exact_match"] <= 0.5
    content["data"][0]["paragraphs"].pop(0)
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert run("qa", pretrained, tmp_path / "none", "--data", str(tmp_path)) == 2
    assert "no training example has an answer that is in its passage" in capsys.readouterr().err


def test_every_line_has_a_result_with_its_number_and_offsets_into_it_as_it_is(trained, tmp_path, capsys):
    out = trained("demo-ner")
    lines = ["\ufeff   Jorganux slowed kelmarin fever.  ", "", "  \t",
             "\tJorganux\u2028slowed kelmarin fever."]
    assert [result["line"] for result in read(out, "\n\n", tmp_path, capsys)] == [1, 2]
    results = read(out, "\r\n".join(lines), tmp_path, capsys)
    assert [result["line"] for result in results] == [1, 2, 3, 4]
    assert [result["text"] for result in results] == [lines[0][1:], *lines[1:]]
    for result in results:
        for entity in result["entities"]:
            assert result["text"][entity["start"]:entity["end"]] == entity["text"]


@pytest.mark.parametrize("bad, message", [
    (b"\xe9t\xe9", "line 3 byte 0: not UTF-8"), (b"[1]", 'line 3: expected {"question"'),
    (b'{"question": "\\ud83d", "passage": "a"}', "line 3: "), (b"[" * 5000, "line 3: ")])
@pytest.mark.parametrize("from_stdin", [True, False])
def test_a_bad_line_is_told_by_number_and_the_blocks_before_it_have_their_results(
        bad, message, from_stdin, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_finetune, "READ_AT_ONCE", 2)
    pair = json.dumps({"question": "what ?", "passage": "the drug"}).encode()
    content = b"\xef\xbb\xbf" + pair + b"\n\n" + bad + b"\n" + pair
    (tmp_path / "input").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    capsys.readouterr()
    source = "-" if from_stdin else str(tmp_path / "input")
    assert train_finetune.main(["--out", str(trained("demo-qa")), "--predict", source]) == 2
    printed = capsys.readouterr()
    first, second = map(json.loads, printed.out.splitlines())
    assert (first["line"], first["passage"]) == (1, "the drug") and second["answers"] == []
    assert message in printed.err


def test_documents_of_xml_and_archives_have_a_result_each_with_their_id(trained, tmp_path, capsys):
    records = "".join(f"<MedlineCitation><PMID>{pmid}</PMID><Article><ArticleTitle>On gout {pmid}."
                      "</ArticleTitle></Article></MedlineCitation>" for pmid in (7, 8))
    pubmed = f"<MedlineCitationSet>{records}</MedlineCitationSet>"
    paper = ('<article><front><article-meta><article-id pub-id-type="doi">10.1/x</article-id>'
             '<article-id pub-id-type="pmc">9</article-id></article-meta></front>'
             "<body><p>It hurts. It passes.</p></body></article>")
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        for name, text in (("a.xml", pubmed), ("b.nxml", paper), ("c.txt", "A line.\n\nAnother.\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    capsys.readouterr()
    packed = str(tmp_path / "all.tar.gz")
    assert train_finetune.main(["--out", str(trained("demo-ner")), "--predict", packed]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["text"] for result in results] == [
        "On gout 7.", "On gout 8.", "It hurts.\n\nIt passes.", "A line.", "Another."]
    assert [result["document"] for result in results] == [1, 2, 3, 4, 5]
    assert [result.get("pmid") for result in results] == ["7", "8", None, None, None]
    assert results[2]["pmcid"] == "PMC9"


def test_a_model_folder_or_a_seed_is_enough_to_predict(pretrained, tmp_path, capsys):
    assert run("demo-re", pretrained, tmp_path / "out", "--max-length", "24") == 0
    expected = read(tmp_path / "out", "@DRUG$ slowed @DISEASE$ .\n", tmp_path, capsys)
    shutil.copytree(tmp_path / "out" / "model", tmp_path / "elsewhere")
    for folder in (tmp_path / "elsewhere", tmp_path / "out" / "seed-0", tmp_path / "out" / "model"):
        assert read(folder, "@DRUG$ slowed @DISEASE$ .\n", tmp_path, capsys) == expected


def test_help_shows_the_values_that_depend_on_the_task(capsys):
    with pytest.raises(SystemExit):
        train_finetune.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for shown in ("examples in a batch (electramed: 32; ", "bio-electra gad: 32", "passes over the train"):
        assert shown in text


# --- 15. What is easily meant otherwise ---

def test_a_line_of_cut_words_is_one_sentence_and_keeps_the_words_of_its_file(pretrained):
    tokenizer, kind = Tokenizer.from_file(pretrained), kind_of("demo-ner")

    def words(text):
        line = {"text": text}
        return [" ".join(sentence.words) for sentence in kind.raw_examples(line, tokenizer)]

    for cut in ("The S. aureus ( i.e. MRSA ) fell . It rose .", "a-b , IL-2 ( x )"):
        assert words(cut) == [cut]
    assert words("It fell (p53). It rose.") == ["It fell ( p53 ) .", "It rose ."]
    assert words("He took (xanfaol) at 25 mg .") == ["He took ( xanfaol ) at 25 mg ."]


def test_the_negative_label_is_found_by_its_name_and_kept_in_task_json(trained):
    task = TASKS["re"]._replace(labels=("treats", "False"))         # of a model that was made elsewhere
    assert KINDS["re"](task).negative == "False"
    assert KINDS["re"](task, (), {"negative": "treats"}).negative == "treats"
    assert json.loads((trained("demo-re") / "model" / "task.json").read_text())["negative"] == "false"


def test_a_negative_label_that_the_model_lacks_is_refused_when_it_is_scored(trained, capsys):
    arguments = ["--task", "demo-re", "--out", str(trained("demo-re")), "--evaluate", "--negative", "flase"]
    assert train_finetune.main(arguments) == 2
    assert "--negative flase: the labels are false, " in capsys.readouterr().err


def test_lines_of_another_form_are_mentioned_before_they_are_read(trained, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "gout ."}\n')
    ask = ["--out", str(trained("demo-re")), "--predict", str(tmp_path / "a.jsonl")]
    assert train_finetune.main(ask) == 0
    assert "seems to be JSON: each line is read as text" in capsys.readouterr().err


def test_tabs_and_line_ends_inside_a_field_leave_one_row(tmp_path):
    KINDS["rank"](TASKS["rank"]).write(tmp_path, [LabelledText("1", "Q\nx?", "1", "a\tb")], [0.5])
    assert (tmp_path / "predictions.tsv").read_text().splitlines()[1:] == ["0.5\tQ x?\ta b"]


def test_a_model_of_another_task_names_the_task_it_was_trained_for(trained, capsys):
    assert train_finetune.main(["--out", str(trained("demo-re")), "--evaluate", "--task", "demo-ner"]) == 2
    assert "(of --task demo-re): choose another --task" in capsys.readouterr().err


def test_a_training_file_whose_answers_have_another_name_is_refused():
    questions = [Question("1", "What?", "It is gout.", [], article=n) for n in range(3)]
    kind = kind_of("qa")
    with pytest.raises(ValueError, match="no training example has an answer"):
        kind.announce("train", questions, [])
    kind.announce("dev", questions, [])
    kind.announce("train", [*questions, Question("4", "What?", "Gout.", [("Gout", 0)])], [])


def test_results_are_not_printed_to_a_closed_standard_output(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_text("gout .\n")
    out = str(trained("demo-re"))
    monkeypatch.setattr("sys.stdout", None)
    assert train_finetune.main(["--out", out, "--predict", str(tmp_path / "a.txt")]) == 2
    assert "standard output is closed" in capsys.readouterr().err
