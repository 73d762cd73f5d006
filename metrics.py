"""Compute every score of the two papers, and its mean and spread over several seeds.

>>> from metrics import entity_scores, mean_and_sd, spans_from_tags
>>> gold      = ["B-Drug", "I-Drug", "O", "B-Gene"]
>>> predicted = ["B-Drug", "I-Drug", "O", "O"]
>>> spans_from_tags(gold)
[Span(type='Drug', start=0, end=2), Span(type='Gene', start=3, end=4)]
>>> scores = entity_scores([gold], [predicted])    # lists of sentences
>>> scores.precision, scores.recall, round(scores.f1, 4)
(1.0, 0.5, 0.6667)
>>> mean_and_sd([scores.f1] * 3) == (scores.f1, 0.0)
True

After reading this file you hold the exact rule behind each number of the result tables: where an entity
begins and ends, what micro F1 leaves out, when two answers count as equal, and how the scores of several
batches or seeds become one figure.

This file comes last in the flow: tags, labels and answers -> counts -> scores -> mean and spread. It sees
only lists, strings and numbers; which model or which file they come from makes no difference to a score.

Three conventions hold everywhere. A score lies in [0, 1], while the papers print percentages. A division by
zero gives 0: a system that finds nothing has a precision of 0. Every function takes first what is true
(gold), then what a system says (predicted).
There is no partial credit for overlapping entities and no average over entity types, because neither paper
reports these.

Sources: CoNLL-2000 conlleval (entities); SQuAD v1.1 evaluation (Rajpurkar et al. 2016, section 6); the
measures of BioASQ task B; ELECTRAMed tables 7 to 10; Bio-ELECTRA tables 2 to 7.

Contents
    1. Tags and spans                       5. SQuAD answers
    2. Counts, precision, recall, F1        6. BioASQ factoid answers
    3. Entities                             7. Ranking: candidates, batches, ROC AUC
    4. Relations and yes/no questions       8. Blind baselines, mean and spread over seeds
"""

import math
import re
import statistics
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


# --- 1. Tags and spans ---

class Span(NamedTuple):
    """Hold one entity of a sentence: Span("Drug", 0, 2) covers the words 0 and 1."""

    type: str
    start: int  # its first word
    end: int  # the word after its last one


def spans_from_tags(tags: Iterable[str]) -> list[Span]:
    """Read the entities from the tags of one sentence.

    tags      one per word: "B-type" begins an entity, "I-type" continues one, any other string is outside.
              A bare "B" or "I" has the type "".
    returns   spans in the order of the sentence, which never overlap
    raises    ValueError where one tag is given in place of a list
    source    conlleval. A span starts (1) at every B-, (2) at an I- that follows an outside tag, and (3) at
              an I- of another type than the word before. This one rule reads IOB2 (all entities start with
              B-), IOB1 (B- only between two neighbours of one type) and the mixture of both in BC5CDR.
              conlleval also knows the letters E and S of the BIOES scheme; here they are outside.

    >>> for span in spans_from_tags(["I-Drug", "I-Drug", "B-Drug", "O", "I-Gene", "I-Drug"]):
    ...     print(*span)
    Drug 0 2
    Drug 2 3
    Gene 4 5
    Drug 5 6

    They start by the rules (2), (1), (2) and (3).
    """
    if isinstance(tags, str):  # its letters would pass for tags
        raise ValueError(f"expected a list of tags, found the text {tags!r}")
    spans: list[Span] = []
    open_type = None  # type of the span that the previous word belongs to; None after an outside tag
    for position, tag in enumerate(tags):
        # Only the first hyphen separates: B-cell-line has the type cell-line.
        prefix, _, kind = tag.partition("-")
        if prefix not in ("B", "I"):
            open_type = None
        elif prefix == "I" and kind == open_type:
            spans[-1] = spans[-1]._replace(end=position + 1)
        else:
            spans.append(Span(kind, position, position + 1))
            open_type = kind
    return spans


# --- 2. Counts, precision, recall, F1 ---

def _ratio(part: float, whole: float) -> float:
    """Return part / whole, or 0 where `whole` is 0."""
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    """Return the mean, or 0 without values. fsum rounds only once, so the order of values has no effect."""
    return _ratio(math.fsum(values), len(values))


@dataclass(frozen=True)
class Scores:
    """Hold three counts, and compute precision, recall and F1 from them.

    Say a text has 4 entities. A system finds 3, of which 2 are right, so it misses 2 of the 4:

    >>> scores = Scores(true_positives=2, false_positives=1, false_negatives=2)
    >>> round(scores.precision, 4), scores.recall, round(scores.f1, 4)  # 2 / 3, 2 / 4, 4 / 7
    (0.6667, 0.5, 0.5714)
    """

    true_positives: int  # found and right
    false_positives: int  # found, but wrong
    false_negatives: int  # missed
    per_type: dict[str, "Scores"] = field(default_factory=dict)  # one Scores for each type or label

    @property
    def precision(self) -> float:
        """Return the share of what was found that is right."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Return the share of what there is to find that was found."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Return the harmonic mean of precision and recall, 2 P R / (P + R).

        It is near the smaller of the two, so neither can make up for the other. In counts, P and R cancel to
        2 TP / (2 TP + FP + FN): computed this way it is rounded once, and never leaves the range from P to R.
        """
        errors = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + errors)


class Decision(NamedTuple):
    """Hold one statement of the gold standard or of a system: something of this type is at this place.

    A system's decision is right when the gold standard holds the same type at the same place.
    """

    type: str  # entity type, relation label or answer
    place: Hashable  # where: a row, or a sentence with the first and last word


def compare(gold: set[Decision], predicted: set[Decision]) -> Scores:
    """Count the decisions that are right, wrong and missed, over all types and for each type.

    returns   micro scores: all decisions are counted together, so frequent types weigh more than rare ones.
              per_type has the scores of each type that occurs on either side.

    The drug at place 1 is found; the gene at place 2 is taken for a drug:

    >>> gold = {Decision("Drug", 1), Decision("Gene", 2)}
    >>> scores = compare(gold, predicted={Decision("Drug", 1), Decision("Drug", 2)})
    >>> scores.f1, round(scores.per_type["Drug"].f1, 4), scores.per_type["Gene"].f1
    (0.5, 0.6667, 0.0)
    """
    right = Counter(decision.type for decision in gold & predicted)
    wrong = Counter(decision.type for decision in predicted - gold)
    missed = Counter(decision.type for decision in gold - predicted)
    kinds = sorted({*right, *wrong, *missed})
    per_type = {kind: Scores(right[kind], wrong[kind], missed[kind]) for kind in kinds}
    return Scores(right.total(), wrong.total(), missed.total(), per_type)


def _check_lengths(what: str, gold: Sized, predicted: Sized) -> None:
    """Raise ValueError where a side is no list, or the two are not equally long, which zip would hide."""
    # The letters of a text, or the keys of a dictionary, would pass for items.
    if isinstance(gold, (str, Mapping, Set)) or isinstance(predicted, (str, Mapping, Set)):
        raise ValueError(f"{what}: expected two lists, found {gold!r} and {predicted!r}")
    if len(gold) != len(predicted):
        raise ValueError(f"{what}: expected {len(gold)}, found {len(predicted)}")


# --- 3. Entities ---

def _entities(sentences: Sequence[Sequence[str]]) -> set[Decision]:
    """Collect the entities of all sentences; the place begins with the number of the sentence."""
    entities: set[Decision] = set()
    for number, tags in enumerate(sentences):
        entities |= {Decision(span.type, (number, span.start, span.end)) for span in spans_from_tags(tags)}
    return entities


def entity_scores(gold_tags: Sequence[Sequence[str]], predicted_tags: Sequence[Sequence[str]]) -> Scores:
    """Score entities by exact match: an entity is right when its type, first word and last word are right.

    gold_tags, predicted_tags   one list of tags per sentence
    returns   micro scores over all entities; per_type by entity type
    raises    ValueError when the two sides differ in the number of sentences, or of words in a sentence, or
              when the tags of one sentence are given in place of a list of sentences
    source    conlleval

    An entity that is one word too short is worth nothing. It even counts twice: what was found is wrong, and
    what should have been found is missed. In this sentence the gene is right and the drug is too short:

    >>> entity_scores([["B-Drug", "I-Drug", "B-Gene"]], [["B-Drug", "O", "B-Gene"]]).f1  # 2 / (2 + 1 + 1)
    0.5
    """
    _check_lengths("sentences", gold_tags, predicted_tags)
    for number, (gold, predicted) in enumerate(zip(gold_tags, predicted_tags), start=1):
        _check_lengths(f"tags of sentence {number}", gold, predicted)
    return compare(_entities(gold_tags), _entities(predicted_tags))


# --- 4. Relations and yes/no questions ---

def relation_scores(gold: Sequence[str], predicted: Sequence[str], negative: str | None = None) -> Scores:
    """Score relations over every label but the negative one.

    gold, predicted   one label per row of the file; a pair with two labels has two rows, and each row counts
    negative          the label for "no relation", as the file spells it: false, False, DDI-false or 0;
                      None counts every label
    returns   micro scores over the positive labels; per_type by label
    raises    ValueError when the two sides differ in the number of rows

    In ChemProt four of five pairs have no relation. A system that says so for all of them would be right most
    of the time, so negative labels are not counted as true positives. A positive label in place of another is
    a false positive of its own label and a false negative of the gold label:

    >>> gold, predicted = ["CPR:3", "CPR:4", "false"], ["CPR:3", "CPR:9", "false"]
    >>> scores = relation_scores(gold, predicted, negative="false")
    >>> scores.true_positives, scores.false_positives, scores.false_negatives
    (1, 1, 1)
    """
    _check_lengths("rows", gold, predicted)
    return compare({Decision(label, row) for row, label in enumerate(gold) if label != negative},
                   {Decision(label, row) for row, label in enumerate(predicted) if label != negative})


class YesNoScores(NamedTuple):
    """Hold separate scores for each answer, and two summaries."""

    per_label: dict[str, Scores]  # how well the questions with each answer are found
    macro_f1: float  # mean of their F1: the rare answer weighs as much as the frequent one
    accuracy: float  # share of the questions answered right


def bioasq_yesno_scores(gold: Sequence[str], predicted: Sequence[str],
                        labels: Sequence[str] = ("yes", "no")) -> YesNoScores:
    """Score yes/no questions, with separate scores for each answer.

    gold, predicted   one of the labels per question
    raises    ValueError for another answer, or when the two sides differ in the number of questions
    source    BioASQ task B

    Most gold answers are yes, so a system that always says yes has a high accuracy. Its macro F1 is low:

    >>> scores = bioasq_yesno_scores(gold=["yes", "yes", "yes", "no"], predicted=["yes"] * 4)
    >>> round(scores.per_label["yes"].f1, 4), scores.per_label["no"].f1
    (0.8571, 0.0)
    >>> scores.accuracy, round(scores.macro_f1, 4)
    (0.75, 0.4286)
    """
    both = relation_scores(gold, predicted)
    if unknown := both.per_type.keys() - {*labels}:
        raise ValueError(f"expected {' or '.join(map(repr, labels))}, found {min(unknown)!r}")
    # An answer that occurs on neither side has no counts.
    per_label = {label: both.per_type.get(label, Scores(0, 0, 0)) for label in labels}
    return YesNoScores(per_label, _mean([scores.f1 for scores in per_label.values()]), both.recall)


# --- 5. SQuAD answers ---

PUNCTUATION = str.maketrans("", "", string.punctuation)  # deletes the 32 ASCII marks; a Unicode dash stays
ARTICLE = re.compile(r"\b(a|an|the)\b")


def _check_questions(gold: Mapping[str, Sequence[str]], predicted: Mapping[str, object],
                     one_answer: bool) -> None:
    """Refuse mistakes that would give a wrong score instead of an error: swapped sides, lists that are none.

    one_answer   whether a prediction is one text, or a list of texts as gold answers are
    raises       ValueError for an answer of the other kind, and for a prediction whose question is not in
                 `gold` (a wrong file)
    """
    for side, answers, is_text in (("gold", gold, False), ("predicted", predicted, one_answer)):
        expected = "a text" if is_text else "a list"
        for question, answer in answers.items():
            if isinstance(answer, str) != is_text or isinstance(answer, Mapping):
                raise ValueError(f"{side}, question {question!r}: expected {expected}, found {answer!r} "
                                 "(gold comes first, then predicted)")
    if unknown := predicted.keys() - gold.keys():
        raise ValueError(f"prediction for question {min(unknown)!r}, which is not among the gold questions")


def normalise_squad_answer(text: str) -> str:
    """Remove the differences between answers that SQuAD ignores.

    source    SQuAD v1.1 evaluation: (1) lower-case, (2) delete ASCII punctuation, (3) delete the articles a,
              an and the, (4) reduce white space to single spaces, in this order.

    The order matters. The hyphen of "A-level" is deleted before articles are looked for, so its A has become
    part of a word and stays, while "(a)" has become an article and is deleted.

    >>> normalise_squad_answer("The A-level,  (a) Test.")
    'alevel test'
    """
    return " ".join(ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split())


def squad_f1(gold: str, predicted: str) -> float:
    """Compute the F1 of one answer against one gold answer, by the normalised words that both contain.

    A word that both have twice counts twice; the order of the words does not count. An answer without words
    scores 0, even against a gold answer without words.

    >>> squad_f1("tumour protein p53", predicted="the p53 protein")  # P = 2 / 2, R = 2 / 3
    0.8
    """
    words = Counter(normalise_squad_answer(predicted).split())
    gold_words = Counter(normalise_squad_answer(gold).split())
    shared = (words & gold_words).total()  # & takes the smaller of the two counts of each word
    return _ratio(2 * shared, words.total() + gold_words.total())  # in counts, as in Scores.f1


class SquadScores(NamedTuple):
    """Hold the means over all gold questions."""

    exact_match: float  # share of the questions whose answer equals a gold answer
    f1: float  # of words, against the gold answer that suits best


def squad_scores(gold: Mapping[str, Sequence[str]], predicted: Mapping[str, str]) -> SquadScores:
    """Score one answer per question, each against the gold answer that suits it best.

    gold        {question id: [answer, ...]}, the answers of several people
    predicted   {question id: text}
    returns     means over the gold questions. A question without a prediction, or without a gold answer,
                scores 0 and counts in the mean.
    raises      ValueError for a prediction that belongs to no gold question, and for swapped sides
    source      SQuAD v1.1 evaluation

    >>> gold = {"1": ["BRCA1", "BRCA1 gene"], "2": ["genes", "both"], "3": ["insulin"]}
    >>> squad_scores(gold, {"1": "the BRCA1", "2": "two genes"})
    SquadScores(exact_match=0.3333333333333333, f1=0.5555555555555555)

    Question 1 is exact. Question 2 shares one word with "genes" (P = 1 / 2, R = 1, F1 = 2 / 3) and none with
    "both". Question 3 has no prediction. So the exact match is 1 / 3, and F1 is (1 + 2 / 3 + 0) / 3.
    """
    _check_questions(gold, predicted, one_answer=True)
    exact, f1 = [], []  # of the questions that have a prediction; all others would add 0
    for question, text in predicted.items():
        answer = normalise_squad_answer(text)
        exact.append(any(answer == normalise_squad_answer(expected) for expected in gold[question]))
        f1.append(max((squad_f1(expected, text) for expected in gold[question]), default=0.0))
    return SquadScores(_ratio(sum(exact), len(gold)), _ratio(math.fsum(f1), len(gold)))


# --- 6. BioASQ factoid answers ---
#
# A factoid question asks for one thing ("Which gene ...?") and comes with several snippets, each of which the
# model reads alone. Its answers in all the snippets are merged into one list of five, best first. The
# measures then ask how early in this list a right answer stands.

FACTOID_ANSWERS = 5  # answers that a system may give to a question
FACTOID_ANSWER_LENGTH = 100  # characters; a longer answer is dropped


def bioasq_question_id(snippet_id: str) -> str:
    """Return the part before the first "_" or ":", which all snippets of one question share.

    >>> bioasq_question_id("5c5f56501a4c55d80b00002a_003"), bioasq_question_id("58edf567:5")
    ('5c5f56501a4c55d80b00002a', '58edf567')
    """
    return snippet_id.replace(":", "_").partition("_")[0]


def _is_balanced(text: str) -> bool:
    """Tell whether each closing bracket matches the one that was opened last, and none stays open."""
    brackets = re.sub(r"[^][(){}]", "", text)
    # Take out the innermost pairs, again and again: "([])" -> "()" -> "".
    while (fewer := re.sub(r"\(\)|\[\]|\{\}", "", brackets)) != brackets:
        brackets = fewer
    return not brackets


def clean_bioasq_answer(text: str) -> str:
    """Strip spaces, final commas and full stops, and parentheses around the whole answer.

    The parentheses of "(a) or (b)" stay, because the first and the last of them belong to different pairs.

    >>> clean_bioasq_answer(" (TP53)., "), clean_bioasq_answer("(a) or (b)")
    ('TP53', '(a) or (b)')
    """
    before = None
    while text != before:  # each kind may uncover another: "(TP53.)" needs two rounds
        before, text = text, text.strip().rstrip(",.")
        # The inside is balanced only if the outer two are a pair: "a) or (b" is not.
        if text[:1] == "(" and text[-1:] == ")" and _is_balanced(text[1:-1]):
            text = text[1:-1]
    return text


def _best_answers(answers: Sequence[tuple[str, float]]) -> list[str]:
    """Merge the (text, probability) answers to one question into at most five texts, best first."""
    spelling: dict[str, str] = {}  # lower-cased text -> the spelling to show
    total: dict[str, float] = {}  # lower-cased text -> sum of its probabilities
    # From the most probable to the least, so that the first spelling met is the one to keep.
    for text, probability in sorted(answers, key=lambda answer: -answer[1]):
        text = clean_bioasq_answer(text)
        if 0 < len(text) <= FACTOID_ANSWER_LENGTH and _is_balanced(text):
            spelling.setdefault(text.lower(), text)
            total[text.lower()] = total.get(text.lower(), 0.0) + probability
    # Sorting is stable: equal sums stay in the order of their best single answers.
    return [spelling[key] for key in sorted(total, key=lambda key: -total[key])[:FACTOID_ANSWERS]]


def merge_bioasq_snippets(snippets: Mapping[str, Sequence[tuple[str, float]]]) -> dict[str, list[str]]:
    """Turn the answers found in each snippet into one ranked list per question.

    snippets  {snippet id: [(text, probability), ...]}
    returns   {question id: at most five answers, best first}. Answers that differ only in case become one,
              with the sum of their probabilities, in the spelling of the most probable. An answer is dropped
              when its brackets are not balanced, when it has more than 100 characters, or when nothing is
              left of it after cleaning. A question that loses all its answers keeps an empty list.
    source    the factoid conversion published with BioBERT's BioASQ system. It strips one character and looks
              only for brackets missing on one side; this function strips them all and matches every pair.

    MDM2 is the most probable single answer, but two snippets agree on TP53 (0.3 + 0.4 = 0.7):

    >>> merge_bioasq_snippets({"q_000": [("tp53.", 0.3), ("MDM2", 0.5)], "q_001": [("(TP53)", 0.4)]})
    {'q': ['TP53', 'MDM2']}
    """
    candidates: dict[str, list[tuple[str, float]]] = {}
    for snippet, answers in snippets.items():
        candidates.setdefault(bioasq_question_id(snippet), []).extend(answers)
    return {question: _best_answers(answers) for question, answers in candidates.items()}


def _reciprocal_rank(is_right: Iterable[bool]) -> float:
    """Return 1 / rank of the first right answer, 0 if none is right: [False, True, True] gives 1 / 2."""
    return next((1 / rank for rank, right in enumerate(is_right, start=1) if right), 0.0)


class FactoidScores(NamedTuple):
    """Hold the means over all gold questions; strict_accuracy <= mrr <= lenient_accuracy <= coverage."""

    strict_accuracy: float  # SACC: the first answer is right
    lenient_accuracy: float  # LACC: one of the five answers is right
    mrr: float  # mean reciprocal rank: 1 / rank of the first right answer, 0 without one
    coverage: float  # share of the questions with any answer; those without score 0 in the other three


def bioasq_factoid_scores(gold: Mapping[str, Sequence[str]],
                          predicted: Mapping[str, Sequence[str]]) -> FactoidScores:
    """Score ranked answers: an answer is right when it equals one of the synonyms, in any case of letters.

    gold       {question id: [synonym, ...]}
    predicted  {question id: [answer, ...]}, best first; only the first five are looked at
    raises     ValueError for a prediction that belongs to no gold question, and for a text where a list of
               synonyms or answers is expected
    source     BioASQ task B, phase B. Only the case is normalised: "the BRCA1" is not "BRCA1".

    >>> bioasq_factoid_scores({"1": ["TP53", "p53"], "2": ["BRCA1"], "3": ["INS"], "4": ["X"]},
    ...                       {"1": ["tp53"], "2": ["BRCA2", "BRCA1"], "3": ["the INS"]})
    FactoidScores(strict_accuracy=0.25, lenient_accuracy=0.5, mrr=0.375, coverage=0.75)

    The first right answers have rank 1, rank 2, none and none, so the MRR is (1 + 1 / 2 + 0 + 0) / 4.
    """
    _check_questions(gold, predicted, one_answer=False)
    reciprocal_ranks = []
    for question, synonyms in gold.items():
        right = {synonym.lower() for synonym in synonyms}
        answers = predicted.get(question, ())[:FACTOID_ANSWERS]
        reciprocal_ranks.append(_reciprocal_rank(answer.lower() in right for answer in answers))
    return FactoidScores(strict_accuracy=_mean([value == 1 for value in reciprocal_ranks]),
                         lenient_accuracy=_mean([value > 0 for value in reciprocal_ranks]),
                         mrr=_mean(reciprocal_ranks),
                         coverage=_mean([bool(predicted.get(question)) for question in gold]))


# --- 7. Ranking: candidates, batches, ROC AUC ---

def reranking_mrr(groups: Mapping[str, Sequence[tuple[float, int]]]) -> float:
    """Average 1 / rank of the first right candidate over the questions; the most probable has rank 1.

    groups    {question: [(probability, label), ...]}, label 1 for a right candidate, else 0. Equal
              probabilities keep their input order; a question without a right candidate scores 0.
    raises    ValueError for any other label (the text "0" would pass for true), and for a probability that is
              nan

    >>> reranking_mrr({"a": [(0.2, 0), (0.9, 1)], "b": [(0.8, 0), (0.6, 1), (0.1, 1)]})  # (1 + 1 / 2) / 2
    0.75
    """
    reciprocal_ranks = []
    for group, candidates in groups.items():
        if unknown := {label for _, label in candidates} - {0, 1}:
            raise ValueError(f"group {group!r}: expected the label 0 or 1, found {min(unknown)!r}")
        if any(math.isnan(probability) for probability, _ in candidates):  # sorting would put it anywhere
            raise ValueError(f"group {group!r}: expected probabilities, found nan")
        best_first = sorted(candidates, key=lambda candidate: -candidate[0])
        reciprocal_ranks.append(_reciprocal_rank(label == 1 for _, label in best_first))
    return _mean(reciprocal_ranks)


def batch_score_total(mrr: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Divide each system's MRR in each batch by the best MRR of that batch, and sum over the batches.

    Batches differ in difficulty, so their MRRs cannot be compared, but shares of the best MRR can. A system
    that is best in all five batches of BioASQ has 5.

    mrr       {system: [MRR per batch]}, 0 for a batch that a system left out
    returns   {system: sum of its shares}; a share is 0 where the best is 0
    raises    ValueError naming the system that has another number of batches than the first
    source    ELECTRAMed, table 10

    >>> batch_score_total({"ours": [0.5, 0.2], "theirs": [0.25, 0.4]})
    {'ours': 1.5, 'theirs': 1.5}
    """
    rows = list(mrr.values())
    for system, row in mrr.items():
        _check_lengths(f"batches of system {system!r}", rows[0], row)
    best = [max(batch) for batch in zip(*rows)]
    return {system: math.fsum(map(_ratio, row, best)) for system, row in mrr.items()}


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Measure how well scores separate two classes: the area under the ROC curve (AUC).

    labels, scores   one of each per item, in arrays of any shape; labels are 0 or 1
    returns   the probability that a random positive has a higher score than a random negative, a tie counting
              one half; 0.5, the value of a blind guess, when one class is absent
    raises    ValueError for other labels, for scores that are NaN, or for different lengths

    Two positives and two negatives make four pairs. Here three of them are in the right order, all but 0.35
    against 0.4:

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    is_positive, values = np.ravel(labels), np.ravel(np.asarray(scores, dtype=np.float64))
    _check_lengths("labels and scores", is_positive, values)
    if not np.isin(is_positive, (0, 1)).all() or np.isnan(values).any():
        raise ValueError("expected labels 0 or 1 and scores that are numbers, found others or NaN")
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if not positives or not negatives:
        return 0.5
    # 1. Rank the scores, the lowest first. Equal scores share the mean of their ranks: of 1, 5, 5, 9 the
    #    ranks are 1, 2.5, 2.5, 4. Scores in bfloat16 have many ties, which sorting alone would put in an
    #    arbitrary order.
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[group]    # a group of equal scores ends at rank cumsum(size)
    # 2. Count the right pairs without forming them. If all P positives are below all negatives, their ranks
    #    are 1 to P, with the sum P (P + 1) / 2, and no pair is right. Each negative below a positive raises
    #    that positive's rank by 1 and makes one more right pair.
    rank_sum = float(rank[is_positive == 1].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


# --- 8. Blind baselines, mean and spread over seeds ---

def unigram_entropy(counts: ArrayLike) -> float:
    """Measure the entropy of the distribution that token counts describe, in nats.

    It is the masked-token loss of a blind model, one that knows how frequent each token is and does not look
    at the context. A loss below it shows that the context is used.

    counts    occurrences of each vocabulary entry; entries with 0 have no effect; 0.0 if all are 0

    >>> round(unigram_entropy([2, 1, 1]), 4)  # 1/2 ln 2 + 1/4 ln 4 + 1/4 ln 4 = 1.5 ln 2
    1.0397
    """
    values = np.ravel(np.asarray(counts, dtype=np.float64))
    p = values[values > 0] / values.sum()
    return float(-(p * np.log(p)).sum()) + 0.0  # H = - sum p ln p; adding 0.0 turns -0.0 into 0.0


def binary_entropy(p: float) -> float:
    """Measure the entropy of a coin that shows 1 with probability p, in nats.

    If a share p of the tokens is replaced, this is the lowest loss of a blind discriminator: one that gives
    every token the same probability of being replaced. It does best when that probability is p.

    >>> round(binary_entropy(0.1), 4)
    0.3251
    """
    return sum(-q * math.log(q) for q in (p, 1 - p) if q > 0)  # - p ln p - (1-p) ln (1-p); 0 ln 0 = 0


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Compute mean and sample standard deviation (divided by n - 1; 0.0 for one value) of several seeds.

    raises    ValueError (statistics.StatisticsError) when there is no value

    >>> mean_and_sd([2, 4, 6])  # sd = sqrt((4 + 0 + 4) / (3 - 1))
    (4.0, 2.0)
    """
    numbers = [float(value) for value in values]
    # statistics.stdev computes in exact fractions: equal scores give 0, and not 1e-17.
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0


# Entry k is Student's t for k degrees of freedom: 95 % of the distribution lies between -t and t. With 0
# degrees of freedom there is no interval, hence nan. The last entry, 21, serves all numbers above 20. It is
# the value of the normal distribution, which is at most 6 % too low.
STUDENT_T = (math.nan, 12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
             2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 1.9600)


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % confidence interval of a mean over seeds: mean +- t sd / sqrt(n).

    If the whole experiment were repeated many times, 95 % of such intervals would hold the true mean. With
    few seeds the sd itself is uncertain. Student's t makes up for that: it is 12.7 for two seeds.

    values    scores of n seeds; a single score says nothing about the spread, and gives (nan, nan)
    source    Student's t with n - 1 degrees of freedom, to four decimals: its 97.5 % quantile leaves 2.5 % of
              the distribution on each side

    >>> low, high = confidence_interval([2, 4, 6])  # 4 +- 4.3027 * 2 / sqrt(3)
    >>> round(low, 4), round(high, 4)
    (-0.9683, 8.9683)
    """
    mean, sd = mean_and_sd(values)
    freedom = min(len(values), len(STUDENT_T)) - 1
    margin = STUDENT_T[freedom] * sd / math.sqrt(len(values))
    return mean - margin, mean + margin
