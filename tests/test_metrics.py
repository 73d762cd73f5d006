"""Test each score first on an example worked out on paper, then for what must hold on any input.

The hypothesis tests compare with a second implementation that is slow and plain (a search over all stretches
of words, a count of all pairs), or state a law: precision and recall swap when gold and prediction do.

    1. Tags and spans                       5. SQuAD answers
    2. Precision, recall, F1                6. BioASQ factoid answers
    3. Entities                             7. Ranking: candidates, batches, ROC AUC
    4. Relations and yes/no questions       8. Blind baselines, mean and spread over seeds

Tests of real files need the folder of published data sets in the environment variable ELECTRAMED_DATA.
"""

import math
import os
import random
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from metrics import (
    STUDENT_T, FactoidScores, Scores, SquadScores, batch_score_total, binary_entropy,
    bioasq_factoid_scores, bioasq_question_id, bioasq_yesno_scores, clean_bioasq_answer, confidence_interval,
    entity_scores, mean_and_sd, merge_bioasq_snippets, normalise_squad_answer, relation_scores, reranking_mrr,
    roc_auc, spans_from_tags, squad_f1, squad_scores, unigram_entropy)

DATA = os.environ.get("ELECTRAMED_DATA")


def counts(scores):
    """The three counts of a Scores: found and right, found but wrong, missed."""
    return scores.true_positives, scores.false_positives, scores.false_negatives


# --- 1. Tags and spans ---

@pytest.mark.parametrize("tags, spans", [
    ("O B-X I-X O", [("X", 1, 3)]),
    ("I-X I-X O", [("X", 0, 2)]),  # I- at the start opens
    ("O I-X I-Y", [("X", 1, 2), ("Y", 2, 3)]),  # I- of another type opens
    ("B-X I-Y", [("X", 0, 1), ("Y", 1, 2)]),
    ("I-X B-X I-X", [("X", 0, 1), ("X", 1, 3)]),  # B- always opens
    ("I-X I-X", [("X", 0, 2)]),  # two adjacent single words of BC5CDR cannot be told from one pair
    ("B I O I B", [("", 0, 2), ("", 3, 4), ("", 4, 5)]),  # no type
    ("B I-X", [("", 0, 1), ("X", 1, 2)]),
    ("B-cell-line I-cell-line I-cell", [("cell-line", 0, 2), ("cell", 2, 3)]),  # only the first hyphen counts
    ("S-X E-X -DOCSTART- BX o b-X", []),  # anything else is outside
    ("", []),
])
def test_spans_start_by_the_conlleval_rules(tags, spans):
    assert spans_from_tags(tags.split()) == spans


def write_iob2(spans, length):
    """The tags of a sentence of `length` words: B- on the first word of each span, I- on its others."""
    tags = ["O"] * length
    for kind, start, end in spans:
        ending = f"-{kind}" if kind else ""
        tags[start:end] = [f"B{ending}"] + [f"I{ending}"] * (end - start - 1)
    return tags


TYPES = ["", "X", "Y", "cell-line"]
TAGS = ["O"] + [prefix + (kind and "-" + kind) for prefix in "BI" for kind in TYPES]
tag_lists = st.lists(st.sampled_from(TAGS), max_size=12)
tag_pairs = st.lists(st.lists(st.tuples(*[st.sampled_from(TAGS)] * 2), max_size=8), max_size=5)


@st.composite
def span_lists(draw):
    """Spans that do not overlap, sorted, and the length of their sentence."""
    borders = sorted(draw(st.sets(st.integers(0, 20), max_size=12)))
    spans = [(draw(st.sampled_from(TYPES)), start, end) for start, end in zip(borders, borders[1:])]
    return [span for span in spans if draw(st.booleans())], 20


@given(span_lists())
def test_spans_written_as_iob2_are_read_back(spans_and_length):
    spans, length = spans_and_length
    assert spans_from_tags(write_iob2(spans, length)) == spans


@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from(TAGS)), max_size=12))
def test_any_strings_are_accepted_as_tags_and_their_spans_do_not_overlap(tags):
    spans = spans_from_tags(tags)
    assert spans_from_tags(write_iob2(spans, len(tags))) == spans
    borders = [border for span in spans for border in (span.start, span.end)]
    assert borders == sorted(borders) and all(span.start < span.end <= len(tags) for span in spans)


def brute_force_spans(tags):
    """Try every stretch of words: it is a span if it opens, continues and ends like one."""
    def read(i):
        match = re.fullmatch("([BI])(?:-(.*))?", tags[i], re.DOTALL) if 0 <= i < len(tags) else None
        return (match[1], match[2] or "") if match else ("O", None)

    found = []
    for start in range(len(tags)):
        for end in range(start + 1, len(tags) + 1):
            prefix, kind = read(start)
            opens = prefix == "B" or (prefix == "I" and read(start - 1)[1] != kind)
            inside = all(read(i) == ("I", kind) for i in range(start + 1, end))
            if opens and inside and read(end) != ("I", kind):
                found.append((kind, start, end))
    return found


@given(st.one_of(tag_lists, st.lists(st.text("BIO-X", max_size=4), max_size=12)))
def test_spans_equal_those_of_a_brute_force_search(tags):
    assert spans_from_tags(tags) == brute_force_spans(tags)


# --- 2. Precision, recall, F1 ---

@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(right, wrong, missed):
    scores = Scores(right, wrong, missed)
    assert scores.f1 == pytest.approx(statistics.harmonic_mean([scores.precision, scores.recall]))
    assert min(scores.precision, scores.recall) <= scores.f1 <= max(scores.precision, scores.recall)


def test_no_counts_score_0():
    assert (Scores(0, 0, 0).precision, Scores(0, 0, 0).recall, Scores(0, 0, 0).f1) == (0, 0, 0)


# --- 3. Entities ---

def test_entity_scores_worked_by_hand():
    gold = [["B-X", "I-X", "O", "B-Y"], ["I-X", "O"]]
    predicted = [["B-X", "O", "O", "I-Y"], ["B-X", "B-X"]]
    scores = entity_scores(gold, predicted)  # right: Y and the second X; a shorter X is no X
    assert counts(scores) == (2, 2, 1)
    assert (scores.precision, scores.recall) == (2 / 4, 2 / 3)
    assert scores.f1 == pytest.approx(4 / 7)
    assert {kind: counts(part) for kind, part in scores.per_type.items()} == {"X": (1, 2, 1), "Y": (1, 0, 0)}


def test_the_right_words_with_the_wrong_type_are_wrong_and_missed():
    assert counts(entity_scores([["B-X"]], [["B-Y"]])) == (0, 1, 1)


def test_gold_and_prediction_may_use_different_tagging_schemes():
    assert entity_scores([["I-X", "O", "B-X", "I-X"]], [["B-X", "O", "I-X", "I-X"]]).f1 == 1


def test_nothing_to_find_and_nothing_found_scores_0():
    for scores in (entity_scores([], []), entity_scores([["O"]], [["O"]])):
        assert (scores.precision, scores.recall, scores.f1, scores.per_type) == (0, 0, 0, {})


def test_sides_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="sentences: expected 1, found 2"):
        entity_scores([["O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="tags of sentence 2: expected 3, found 1"):
        entity_scores([["O"], ["O"] * 3], [["O"], ["O"]])


def test_flat_lists_and_single_tags_are_refused():
    """Read letter by letter, "B-A" would be a span without a type: these two lists would score 0.8."""
    for gold, predicted in ((["B-A", "I-A"], ["B-B", "I-A"]), ([["B-A"]], ["B-A"]), (["B-A"], [["B-A"]])):
        with pytest.raises(ValueError, match="tags of sentence 1: expected two lists, found .*'B-A'"):
            entity_scores(gold, predicted)
    with pytest.raises(ValueError, match="expected a list of tags, found the text 'B-A'"):
        spans_from_tags("B-A")
    with pytest.raises(ValueError, match="rows: expected two lists"):
        relation_scores("yes", "yes", "no")
    with pytest.raises(ValueError, match="rows: expected two lists"):
        bioasq_yesno_scores("yes", "yes")


def sides(rows):
    """The first and the second of each pair; two lists, also where there are no pairs."""
    return [first for first, _ in rows], [second for _, second in rows]


def gold_and_predicted(sentences):
    """Sentences of (gold tag, predicted tag) pairs as two lists of tag lists."""
    return [sides(sentence)[0] for sentence in sentences], [sides(sentence)[1] for sentence in sentences]


def check_scores(scores):
    """F1 lies between precision and recall, and the counts of the types add up to those of the whole."""
    assert 0 <= min(scores.precision, scores.recall) <= scores.f1 <= max(scores.precision, scores.recall) <= 1
    assert counts(scores) == tuple(map(sum, zip((0, 0, 0), *map(counts, scores.per_type.values()))))


@given(tag_pairs)
def test_entity_precision_and_recall_swap_when_gold_and_prediction_do(pairs):
    gold, predicted = gold_and_predicted(pairs)
    scores, swapped = entity_scores(gold, predicted), entity_scores(predicted, gold)
    check_scores(scores)
    assert (scores.precision, scores.recall, scores.f1) == (swapped.recall, swapped.precision, swapped.f1)


@given(tag_pairs, st.randoms())
def test_the_order_of_the_sentences_does_not_change_entity_scores(pairs, shuffler):
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    assert entity_scores(*gold_and_predicted(shuffled)) == entity_scores(*gold_and_predicted(pairs))


@given(st.lists(tag_lists, max_size=5))
def test_gold_tags_as_predictions_score_1_if_there_is_an_entity(gold):
    scores = entity_scores(gold, gold)
    assert scores.f1 == (1 if any(map(spans_from_tags, gold)) else 0)


@given(tag_pairs)
def test_entity_counts_equal_a_counting_loop(pairs):
    gold, predicted = gold_and_predicted(pairs)
    right = wrong = missed = 0
    for gold_sentence, predicted_sentence in zip(gold, predicted):
        goals, found = brute_force_spans(gold_sentence), brute_force_spans(predicted_sentence)
        for span in found:
            right, wrong = (right + 1, wrong) if span in goals else (right, wrong + 1)
        for span in goals:
            missed += span not in found
    assert counts(entity_scores(gold, predicted)) == (right, wrong, missed)


@pytest.fixture(scope="module")
def seqeval():
    return pytest.importorskip("seqeval.metrics.sequence_labeling", reason="seqeval is not installed")


@given(pairs=tag_pairs)
def test_entity_scores_equal_seqeval_in_its_default_mode(seqeval, pairs):
    gold, predicted = gold_and_predicted(pairs)
    for tags in gold:  # seqeval ends a span at its last word and calls the empty type "_"
        spans = [(kind or "_", start, end - 1) for kind, start, end in spans_from_tags(tags)]
        assert seqeval.get_entities(tags) == spans
    if not pairs:
        return  # seqeval cannot score nothing
    scores = entity_scores(gold, predicted)
    theirs = seqeval.precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx(theirs[:3])


PUBLISHED_ENTITIES = {  # entities in train, dev and test, counted by the rules of conlleval
    "ncbi-disease": {"Disease": (5134, 787, 960)},
    "bc5cdr": {"Entity": (9270, 9457, 9662)},
    "jnlpba": {"protein": (27804, 2466, 5069), "DNA": (8482, 1052, 1056), "RNA": (844, 107, 118),
               "cell_type": (6193, 526, 1921), "cell_line": (3430, 400, 500)},
    "bc2gm": {"GENE": (15197, 3061, 6325)},
}


@pytest.mark.skipif(not DATA, reason="ELECTRAMED_DATA does not name a folder of published data")
@pytest.mark.parametrize("name", PUBLISHED_ENTITIES)
@pytest.mark.parametrize("column, split", [(0, "train"), (1, "dev"), (2, "test")])
def test_the_published_files_hold_as_many_entities_as_conlleval_counts(name, column, split):
    path = Path(DATA, "ner", name, f"{split}.txt")
    if not path.exists():
        pytest.skip(f"{path} is not there")
    blocks = path.read_text("utf-8").split("\n\n")
    sentences = [[line.split()[-1] for line in block.splitlines() if line.strip()] for block in blocks]
    scores = entity_scores(sentences, sentences)
    assert scores.f1 == 1
    assert {kind: part.true_positives for kind, part in scores.per_type.items()} == {
        kind: numbers[column] for kind, numbers in PUBLISHED_ENTITIES[name].items()}


# --- 4. Relations and yes/no questions ---

def test_relation_scores_worked_by_hand():
    gold = ["CPR:3", "CPR:3", "CPR:4", "false", "false", "CPR:9"]
    predicted = ["CPR:3", "CPR:4", "CPR:4", "false", "CPR:4", "false"]
    scores = relation_scores(gold, predicted, "false")
    assert counts(scores) == (2, 2, 2)  # the negative in row 4 is no success; row 2 is wrong and missed
    assert {label: counts(part) for label, part in scores.per_type.items()} == {
        "CPR:3": (1, 0, 1), "CPR:4": (1, 2, 0), "CPR:9": (0, 0, 1)}


def test_a_correct_negative_label_is_no_true_positive():
    assert relation_scores(["false"], ["false"], "false") == Scores(0, 0, 0)


def test_without_a_negative_label_every_label_counts():
    assert counts(relation_scores(["false", "a"], ["false", "b"])) == (1, 1, 1)


def test_a_pair_with_two_labels_counts_on_each_of_its_rows():
    assert counts(relation_scores(["CPR:3", "CPR:4"], ["CPR:3", "CPR:3"], "false")) == (1, 1, 1)


def test_unequal_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="rows: expected 2, found 1"):
        relation_scores(["a", "b"], ["a"], "b")


labels = st.lists(st.tuples(st.sampled_from("abcn"), st.sampled_from("abcn")), max_size=30)


@given(labels)
def test_relation_counts_equal_a_counting_loop(rows):
    right = wrong = missed = 0
    for gold, predicted in rows:
        if gold == predicted != "n":
            right += 1
        else:
            wrong, missed = wrong + (predicted != "n"), missed + (gold != "n")
    scores = relation_scores(*sides(rows), negative="n")
    check_scores(scores)
    assert counts(scores) == (right, wrong, missed)


def test_yes_and_no_have_separate_scores():
    scores = bioasq_yesno_scores(["yes", "yes", "yes", "no"], ["yes", "yes", "no", "no"])
    yes, no = scores.per_label["yes"], scores.per_label["no"]
    assert (yes.precision, yes.recall, yes.f1) == (1, 2 / 3, pytest.approx(0.8))
    assert (no.precision, no.recall, no.f1) == (1 / 2, 1, pytest.approx(2 / 3))
    assert scores.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores.accuracy == 3 / 4


def test_a_system_that_always_says_yes_has_an_f1_of_0_for_no():
    scores = bioasq_yesno_scores(["yes", "no"], ["yes", "yes"])
    assert (scores.per_label["no"].f1, scores.macro_f1, scores.accuracy) == (0, pytest.approx(1 / 3), 1 / 2)
    assert bioasq_yesno_scores(["yes"], ["yes"]).per_label["no"] == Scores(0, 0, 0)
    assert bioasq_yesno_scores([], []).accuracy == 0


def test_answers_may_have_other_names_and_be_more_than_two():
    scores = bioasq_yesno_scores(["1", "0", "maybe"], ["1", "1", "maybe"], labels=("1", "0", "maybe"))
    assert [each.f1 for each in scores.per_label.values()] == [pytest.approx(2 / 3), 0, 1]
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0 + 1) / 3) and scores.accuracy == 2 / 3


@given(st.lists(st.tuples(*[st.sampled_from(["yes", "no"])] * 2), min_size=1))
def test_what_is_wrong_for_yes_is_missed_for_no(rows):
    scores = bioasq_yesno_scores(*sides(rows))
    yes, no = scores.per_label["yes"], scores.per_label["no"]
    assert (yes.false_positives, yes.false_negatives) == (no.false_negatives, no.false_positives)
    assert scores.accuracy == pytest.approx(sum(gold == predicted for gold, predicted in rows) / len(rows))


def test_other_answers_than_the_labels_are_refused():
    with pytest.raises(ValueError, match="expected 'yes' or 'no', found 'Yes'"):
        bioasq_yesno_scores(["yes", "no"], ["no", "Yes"])
    with pytest.raises(ValueError, match="expected '1' or '0', found 'yes'"):
        bioasq_yesno_scores(["1"], ["yes"], labels=("1", "0"))
    with pytest.raises(ValueError, match="rows: expected 1, found 0"):
        bioasq_yesno_scores(["yes"], [])


# --- 5. SQuAD answers ---

@pytest.mark.parametrize("text, normal", [
    ("The  Wnt/beta-catenin\tpathway.", "wntbetacatenin pathway"),  # marks leave no space
    ("(a) a-b the.", "ab"),  # punctuation first: "(a)" and "the." become articles, "a-b" does not
    ("Anna's another", "annas another"),  # articles are whole words
    ("p53\u2013the\u2013gene", "p53\u2013 \u2013gene"),  # a Unicode dash stays, and borders a word
    ("A", ""), ("...", ""), ("", ""),
])
def test_squad_normalisation_worked_by_hand(text, normal):
    assert normalise_squad_answer(text) == normal


def test_squad_f1_counts_repeated_words():
    assert squad_f1("beta beta catenin", "the beta catenin") == pytest.approx(2 * 2 / (3 + 2))
    assert squad_f1("x y", "z") == 0


def test_two_answers_without_words_match_exactly_but_have_an_f1_of_0():
    assert squad_scores({"q": ["..."]}, {"q": "the"}) == SquadScores(exact_match=1, f1=0)


def test_squad_scores_take_the_best_gold_answer_and_average_over_all_questions():
    gold = {"1": ["alpha beta", "gamma"], "2": ["delta"], "3": ["zeta"], "4": []}
    scores = squad_scores(gold, {"1": "Gamma!", "2": "the delta chain", "4": "eta"})
    assert scores == SquadScores(exact_match=1 / 4, f1=pytest.approx((1 + 2 / 3 + 0 + 0) / 4))
    assert squad_scores({}, {}) == SquadScores(0, 0)


def test_a_question_without_a_prediction_scores_0_even_where_empty_text_is_right():
    assert squad_scores({"q": ["the"]}, {}).exact_match == 0


def test_a_prediction_for_an_unknown_question_is_refused():
    with pytest.raises(ValueError, match="prediction for question 'x', which is not among the gold"):
        squad_scores({"q": ["a"]}, {"x": "a"})
    with pytest.raises(ValueError, match="prediction for question 'x'"):
        bioasq_factoid_scores({}, {"x": ["a"]})


@pytest.mark.parametrize("score, gold, predicted", [
    (squad_scores, {"q": ["beta"]}, {"q": "beta"}),
    (bioasq_factoid_scores, {"q": ["beta"]}, {"q": ["beta"]})])
def test_swapped_sides_and_texts_in_place_of_lists_are_told_by_what_they_hold(score, gold, predicted):
    """A text in place of a list of answers would be read letter by letter."""
    score(gold, predicted)
    text = {"q": "beta"}
    with pytest.raises(ValueError, match="gold, question 'q': expected a list, found 'beta'.*gold comes"):
        score(text, predicted)
    other_kind = text if predicted == gold else gold
    with pytest.raises(ValueError, match="predicted, question 'q': expected a (text|list), found .*beta"):
        score(gold, other_kind)


def literal_squad(predicted, gold):
    """Exact match and F1 of two texts, without regular expressions: letter by letter and word by word."""
    def words(text):
        kept = [letter for letter in text.lower() if letter not in r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"""]
        runs = [""]  # alternately of letters or digits, and of anything else
        for letter in kept:
            if runs[-1] and letter.isalnum() != runs[-1][-1].isalnum():
                runs.append("")
            runs[-1] += letter
        return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()

    mine, theirs = words(predicted), words(gold)
    rest, shared = list(theirs), 0
    for word in mine:
        if word in rest:
            rest.remove(word)
            shared += 1
    if not shared:
        return mine == theirs, 0.0
    precision, recall = shared / len(mine), shared / len(theirs)
    return mine == theirs, 2 * precision * recall / (precision + recall)


WORDS = ["a", "An", "the", "THE.", "beta", "Beta", "(beta)", "-", "\u2013", "\u2013a\u2013", "a-", "\u0130",
         "e\u0301", "\u00df", "theta", "x_y", "\u00a0", "\n", "3.5", "\u0660a"]
answers = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join),
                    st.lists(st.sampled_from(WORDS), max_size=4).map("".join))


@given(answers)
def test_normalising_twice_changes_nothing(text):
    assert normalise_squad_answer(normalise_squad_answer(text)) == normalise_squad_answer(text)


@given(answers, answers)
def test_squad_f1_is_the_same_in_both_directions(text, other):
    assert squad_f1(text, other) == squad_f1(other, text)


@given(answers, st.lists(answers, min_size=1, max_size=3), answers)
def test_another_gold_answer_never_lowers_the_squad_scores(text, goals, other):
    before = squad_scores({"q": goals}, {"q": text})
    after = squad_scores({"q": [*goals, other]}, {"q": text})
    assert after.exact_match >= before.exact_match and after.f1 >= before.f1


@given(answers, st.lists(answers, min_size=1, max_size=3))
def test_squad_scores_equal_a_literal_second_implementation(text, goals):
    scores = squad_scores({"q": goals}, {"q": text})
    exact, f1 = zip(*(literal_squad(text, goal) for goal in goals))
    assert (scores.exact_match, scores.f1) == (max(exact), pytest.approx(max(f1)))


@given(answers)
def test_a_gold_answer_as_prediction_scores_1_if_it_has_words(text):
    f1 = 1 if normalise_squad_answer(text) else 0
    assert squad_scores({"q": ["z z z", text]}, {"q": text}) == (1, f1)


# --- 6. BioASQ factoid answers ---

def test_factoid_scores_worked_by_hand():
    gold = {"1": ["Oleuropein"], "2": ["TP53", "p53", "tumour protein 53"], "3": ["BRCA1"], "4": ["X"],
            "5": ["Y"]}
    predicted = {
        "1": ["oleuropein", "olive"],  # rank 1: case does not count
        "2": ["MDM2", "P53", "TP53"],  # rank 2: any synonym will do
        "3": ["the BRCA1", "BRCA1."],  # never: nothing else is normalised
        "4": ["a", "b", "c", "d", "e", "X"],  # never: the sixth is not looked at
    }
    assert bioasq_factoid_scores(gold, predicted) == FactoidScores(
        strict_accuracy=1 / 5, lenient_accuracy=2 / 5, mrr=pytest.approx((1 + 1 / 2) / 5), coverage=4 / 5)


def test_an_empty_list_counts_as_unanswered():
    assert bioasq_factoid_scores({"1": ["x"]}, {"1": []}) == FactoidScores(0, 0, 0, 0)
    assert bioasq_factoid_scores({}, {}) == FactoidScores(0, 0, 0, 0)


questions = st.dictionaries(st.integers(0, 9).map(str), st.lists(st.sampled_from("abcdABC"), max_size=7))


@given(questions, questions)
def test_mrr_lies_between_strict_and_lenient_accuracy(gold, predicted):
    predicted = {question: found for question, found in predicted.items() if question in gold}
    scores = bioasq_factoid_scores(gold, predicted)
    assert 0 <= scores.strict_accuracy <= scores.mrr <= scores.lenient_accuracy <= scores.coverage <= 1


@given(questions)
def test_gold_synonyms_as_answers_score_1(gold):
    gold = {question: synonyms for question, synonyms in gold.items() if synonyms}
    assert bioasq_factoid_scores(gold, gold) == FactoidScores(*[1 if gold else 0] * 4)


@pytest.mark.parametrize("snippet, question", [
    ("5c5f56501a4c55d80b00002a_000", "5c5f56501a4c55d80b00002a"), ("12:3", "12"), ("12:3_4", "12"),
    ("q", "q"),
])
def test_a_question_id_is_what_its_snippets_ids_begin_with(snippet, question):
    assert bioasq_question_id(snippet) == question


@pytest.mark.parametrize("text, clean", [
    ("TP53.", "TP53"), (" TP53 ,. ", "TP53"), ("(TP53).", "TP53"), ("((TP53.),)", "TP53"),
    ("(a) or (b)", "(a) or (b)"), ("CYP3A4 (liver)", "CYP3A4 (liver)"), ("(1-(2-x)).", "1-(2-x)"),
    ("()", ""), ("(", "("), (".,", ""),
])
def test_cleaning_strips_final_marks_and_outer_parentheses(text, clean):
    assert clean_bioasq_answer(text) == clean


@given(questions, st.randoms())
def test_answers_after_the_fifth_change_no_factoid_score(gold, shuffler):
    predicted = {question: shuffler.choices("abcdxyz", k=7) for question in gold}
    first_five = {question: found[:5] for question, found in predicted.items()}
    assert bioasq_factoid_scores(gold, predicted) == bioasq_factoid_scores(gold, first_five)


@given(st.text("()[]., ab", max_size=12))
def test_cleaning_twice_changes_nothing(text):
    assert clean_bioasq_answer(clean_bioasq_answer(text)) == clean_bioasq_answer(text)


def test_merging_snippets_worked_by_hand():
    merged = merge_bioasq_snippets({
        "q_000": [("tp53.", 0.3), ("MDM2", 0.5), ("BRCA1 (breast", 0.9)],  # the third is unbalanced: dropped
        "q_001": [("(TP53)", 0.4), ("x" * 101, 0.9), ("x" * 100, 0.1), (" . ", 0.9)],
        "r:1": [("]a[", 1.0)],
    })
    # TP53: 0.3 + 0.4, spelt as where it was the most probable
    assert merged == {"q": ["TP53", "MDM2", "x" * 100], "r": []}


def test_five_answers_are_kept_and_ties_stay_in_order():
    assert merge_bioasq_snippets({"q_0": [(letter, 0.1) for letter in "cabfed"]}) == {"q": list("cabfe")}


snippet_answers = st.lists(st.tuples(st.text("aB(). ", max_size=5), st.integers(0, 8).map(lambda n: n / 8)))


@given(st.dictionaries(st.sampled_from(["p_0", "p_1", "q_0"]), snippet_answers))
def test_merged_answers_are_clean_and_distinct_at_most_five_and_ranked_by_sum(snippets):
    for question, merged in merge_bioasq_snippets(snippets).items():
        assert len(merged) <= 5 and len({answer.lower() for answer in merged}) == len(merged)
        for answer in merged:
            assert answer == clean_bioasq_answer(answer) != "" and answer.count("(") == answer.count(")")
        found = [(clean_bioasq_answer(text).lower(), probability) for name, candidates in snippets.items()
                 if name.startswith(question) for text, probability in candidates]
        weight = [sum(probability for text, probability in found if text == answer.lower())
                  for answer in merged]
        assert weight == sorted(weight, reverse=True)


# --- 7. Ranking: candidates, batches, ROC AUC ---

def test_reranking_mrr_worked_by_hand():
    groups = {"first": [(0.9, 1), (0.1, 0)], "third": [(0.2, 1), (0.9, 0), (0.5, 0), (0.1, 1)],
              "tie": [(0.5, 0), (0.5, 1)], "none": [(0.5, 0)], "empty": []}
    assert reranking_mrr(groups) == pytest.approx((1 + 1 / 3 + 1 / 2 + 0 + 0) / 5)
    assert reranking_mrr({}) == 0


def test_a_label_that_is_text_and_a_probability_that_is_nan_are_refused():
    with pytest.raises(ValueError, match="group 'q': expected the label 0 or 1, found '0'"):
        reranking_mrr({"q": [(0.5, "0")]})
    with pytest.raises(ValueError, match="group 'q': expected probabilities, found nan"):
        reranking_mrr({"p": [(0.5, 1)], "q": [(math.nan, 1), (0.5, 0)]})


ranked = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0, 1])))


@given(st.dictionaries(st.integers(), ranked))
def test_reranking_mrr_equals_counting_the_candidates_ahead(groups):
    expected = []
    for candidates in groups.values():
        ranks = [1 + sum(other > p or (other == p and j < i) for j, (other, _) in enumerate(candidates))
                 for i, (p, label) in enumerate(candidates) if label]
        expected.append(1 / min(ranks) if ranks else 0)
    assert reranking_mrr(groups) == pytest.approx(sum(expected) / max(1, len(groups)))
    assert 0 <= reranking_mrr(groups) <= 1


@given(st.dictionaries(st.integers(), ranked))
def test_a_less_probable_wrong_candidate_does_not_change_the_mrr(groups):
    longer = {question: [(0.05, 0), *candidates] for question, candidates in groups.items()}
    assert reranking_mrr(longer) == reranking_mrr(groups)


TABLE_9 = {  # ELECTRAMed, MRR in per cent: ELECTRAMed, the best of each batch, and two more rows of table 10
    "ELECTRAMed": [47.95, 53.16, 46.62, 69.55, 31.42],
    "KU-DMIS-5": [0, 56.67, 0, 0, 36.38],
    "QA1": [0, 40.33, 51.15, 0, 0],
    "KU-DMIS-1": [46.37, 0, 0, 69.12, 0],
    "auth-qa-1": [27.78, 0, 0, 0, 0],
}


def test_electramed_table_10_follows_from_its_table_9():
    totals = batch_score_total(TABLE_9)
    assert round(totals["ELECTRAMed"], 3) == 4.713                  # 1 + 0.938 + 0.911 + 1 + 0.864
    assert (round(totals["KU-DMIS-1"], 3), round(totals["auth-qa-1"], 3)) == (1.961, 0.579)


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4))
def test_each_batch_adds_at_most_1_to_the_total_and_exactly_1_to_the_best(rows):
    mrr = {str(number): [value / 4 for value in row] for number, row in enumerate(rows)}
    for batch, values in enumerate(zip(*mrr.values())):
        alone = batch_score_total({system: [row[batch]] for system, row in mrr.items()})
        assert max(alone.values()) == (1 if any(values) else 0) and min(alone.values()) >= 0
    assert all(total <= 3 for total in batch_score_total(mrr).values())


def test_a_batch_that_nobody_answered_adds_0():
    assert batch_score_total({"a": [0.0, 0.5], "b": [0.0, 0.25]}) == {"a": 1.0, "b": 0.5}
    assert batch_score_total({}) == {}


def test_a_system_with_another_number_of_batches_is_refused_by_name():
    with pytest.raises(ValueError, match="batches of system 'b': expected 2, found 1"):
        batch_score_total({"a": [0.1, 0.2], "b": [0.1]})


def test_roc_auc_worked_by_hand():
    assert roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 3 / 4  # three of four pairs stand right
    assert roc_auc([1, 0], [0.5, 0.5]) == 1 / 2
    assert roc_auc([[0, 1]], [[-math.inf, math.inf]]) == 1
    assert roc_auc(np.array([True, False]), np.array([1, 2], dtype=np.float32)) == 0


@pytest.mark.parametrize("one_class", [[], [1, 1], [0]])
def test_roc_auc_of_a_single_class_is_one_half(one_class):
    assert roc_auc(one_class, [0.3] * len(one_class)) == 0.5


def test_roc_auc_refuses_other_labels_nan_and_unequal_lengths():
    with pytest.raises(ValueError, match="labels and scores: expected 2, found 3"):
        roc_auc([0, 1], [0.1, 0.2, 0.3])
    for bad_labels, bad_scores in (([0, 1, -100], [0.1, 0.2, 0.3]), ([0, 1], [0.1, math.nan])):
        with pytest.raises(ValueError, match="expected labels 0 or 1"):
            roc_auc(bad_labels, bad_scores)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), max_size=30))
def test_roc_auc_equals_counting_all_pairs(rows):
    positives = [score for label, score in rows if label]
    negatives = [score for label, score in rows if not label]
    pairs = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    auc = roc_auc(*sides(rows))
    assert auc == pytest.approx(sum(pairs) / len(pairs) if pairs else 0.5)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), max_size=30))
def test_only_the_order_of_the_scores_matters_to_roc_auc(rows):
    labels, scores = sides(rows)
    assert roc_auc(labels, [math.exp(score) for score in scores]) == roc_auc(labels, scores)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), max_size=30))
def test_roc_auc_of_the_swapped_classes_is_its_complement(rows):
    labels, scores = sides(rows)
    assert roc_auc([1 - label for label in labels], scores) == pytest.approx(1 - roc_auc(labels, scores))


def test_roc_auc_of_chance_lies_within_four_standard_errors_of_one_half():
    generator = np.random.default_rng(0)
    auc = roc_auc(generator.random(20_000) < 0.3, generator.random(20_000))
    assert abs(auc - 0.5) < 4 * math.sqrt((20_000 + 1) / (12 * 6_000 * 14_000))


# --- 8. Blind baselines, mean and spread over seeds ---

def test_entropies_worked_by_hand():
    assert unigram_entropy([5, 5, 0]) == pytest.approx(math.log(2))
    assert unigram_entropy([2, 1, 1]) == pytest.approx(1.5 * math.log(2))
    assert unigram_entropy([7]) == unigram_entropy([0, 0]) == unigram_entropy([]) == 0
    assert binary_entropy(0.5) == pytest.approx(math.log(2))
    assert binary_entropy(0) == binary_entropy(1) == 0


@given(st.lists(st.integers(0, 100), min_size=1, max_size=9))
def test_unigram_entropy_is_largest_where_all_tokens_are_equally_frequent(numbers):
    assert 0 <= unigram_entropy(numbers) <= math.log(len(numbers)) + 1e-12
    assert unigram_entropy([7] * len(numbers)) == pytest.approx(math.log(len(numbers)))


@given(st.floats(0, 1))
def test_binary_entropy_is_the_unigram_entropy_of_two_words(p):
    assert binary_entropy(p) == pytest.approx(unigram_entropy([p, 1 - p]), abs=1e-12)
    assert 0 <= binary_entropy(p) <= math.log(2) + 1e-12


def test_mean_and_sd_worked_by_hand():
    assert mean_and_sd([2, 4, 6]) == (4, 2)  # sqrt((4 + 0 + 4) / 2)
    assert mean_and_sd([0.7]) == (0.7, 0)
    assert mean_and_sd([0.1] * 3)[1] == 0
    with pytest.raises(ValueError, match="at least one"):
        mean_and_sd([])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_mean_and_sd_equal_numpy(values):
    mean, sd = mean_and_sd(np.array(values))
    assert mean == pytest.approx(np.mean(values)) and sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def t_by_integration(freedom):
    """The t with P(|T| < t) = 0.95 for Student's distribution.

    With t = sqrt(freedom) tan a, this probability is the integral of cos^(freedom - 1) from 0 to a, divided
    by that from 0 to pi / 2: sum it up on a fine grid, and look up where 95 % are reached.
    """
    angles = np.linspace(0, math.pi / 2, 200_001)
    heights = np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1)  # in the middle of each step
    share = np.concatenate([[0.0], np.cumsum(heights) / heights.sum()])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, share, angles)))


@pytest.mark.parametrize("freedom", range(1, 21))
def test_the_table_of_student_t_equals_numerical_integration_to_four_decimals(freedom):
    assert STUDENT_T[freedom] == pytest.approx(t_by_integration(freedom), abs=6e-5)


def test_beyond_the_table_the_normal_value_is_at_most_6_percent_low():
    assert STUDENT_T[21] == STUDENT_T[-1] == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=5e-5)
    assert 0.94 * t_by_integration(21) < STUDENT_T[-1] < t_by_integration(21)


@pytest.mark.parametrize("n, t", [(2, 12.7062), (3, 4.3027), (10, 2.2622), (21, 2.0860), (22, 1.96)])
def test_a_confidence_interval_reaches_t_standard_errors_to_both_sides(n, t):
    values = [0.0] * (n - 1) + [1.0]
    mean, sd = mean_and_sd(values)
    low, high = confidence_interval(values)
    assert (mean - low, high - mean) == (pytest.approx(t * sd / n ** 0.5), pytest.approx(t * sd / n ** 0.5))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10), st.floats(-1, 1))
def test_a_confidence_interval_shifts_with_its_values(values, shift):
    low, high = confidence_interval(values)
    shifted = confidence_interval([value + shift for value in values])
    assert shifted == (pytest.approx(low + shift, abs=1e-9), pytest.approx(high + shift, abs=1e-9))


def test_one_seed_has_no_confidence_interval():
    assert all(map(math.isnan, confidence_interval([0.5])))


def test_no_function_changes_its_arguments():
    generator = random.Random(0)
    snippets = {"q_0": [(generator.choice("abc"), generator.random()) for _ in range(9)], "q_1": [("a", 1.0)]}
    groups = {"q": [(generator.random(), generator.randrange(2)) for _ in range(9)]}
    before = repr((snippets, groups))
    merge_bioasq_snippets(snippets)
    reranking_mrr(groups)
    assert repr((snippets, groups)) == before


def test_dictionaries_and_sets_are_no_lists():
    """Their keys would be compared, and all answers would be right."""
    for call in (lambda: relation_scores({"a": "x"}, {"a": "y"}), lambda: relation_scores({"x"}, {"x"}),
                 lambda: squad_scores({"1": {"text": ["gout"]}}, {"1": "gout"})):
        with pytest.raises(ValueError, match="expected"):
            call()
