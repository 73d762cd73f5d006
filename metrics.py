"""Every score of the two papers: entities, relations, questions, ranking, and their spread over seeds.

After this file you hold the exact rule behind each number of the tables: when a span of tags is an entity,
what micro F1 leaves out, how an answer is compared, and which total stands at the end of a row.

>>> gold, predicted = ["B-Drug", "I-Drug", "O", "I-Gene"], ["B-Drug", "I-Drug", "O", "O"]
>>> spans_from_tags(gold)
[('Drug', 0, 2), ('Gene', 3, 4)]
>>> scores = entity_scores([gold], [predicted])
>>> scores.precision, scores.recall, round(scores.f1, 4)
(1.0, 0.5, 0.6667)

In the flow it comes last: tags, labels, answers -> counts -> scores -> mean and spread over seeds. It sees
lists, strings and numbers only; who produced them, and from which file, it does not know. Every score lies
in [0, 1] and 0/0 is 0; the papers print percentages. Left out: partial credit for overlapping spans and
macro averages over entity types, because neither paper reports them.

Sources: CoNLL-2000 conlleval; SQuAD v1.1 evaluation (Rajpurkar et al. 2016, section 6); BioASQ task B
measures; ELECTRAMed tables 7 to 10; Bio-ELECTRA tables 2 to 7.

1. Tags and spans                   tags -> spans -> tags
2. Counts, precision, recall, F1    two sets -> Scores
3. Entities, relations, yes/no      what goes into the sets
4. SQuAD                            text against text
5. BioASQ factoid questions         snippets -> five answers -> rank of the first right one
6. Ranking                          re-ranked candidates, score over the batches, area under the ROC curve
7. Blind baselines, mean and spread
"""

import itertools
import math
import re
import statistics
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FACTOID_ANSWERS = 5  # answers a BioASQ system may give to a factoid question, best first
FACTOID_ANSWER_LENGTH = 100  # characters; a longer answer is dropped before the five are chosen
BRACKETS = {")": "(", "]": "[", "}": "{"}
PUNCTUATION = str.maketrans("", "", string.punctuation)  # the 32 ASCII marks; a dash of Unicode stays
ARTICLE = re.compile(r"\b(a|an|the)\b")

Span = tuple[str, int, int]  # type, start, end: words start .. end - 1


# --- 1. Tags and spans ---

def spans_from_tags(tags: Iterable[str]) -> list[Span]:
    """Read the entities off the tags of one sentence.

    tags      "B-type" and "I-type"; a bare "B" or "I" has the type ""; any other string is outside
    returns   spans (type, start, end) in word indices, half-open, in order, never overlapping
    source    conlleval: a span starts at B-, at I- after an outside tag, and at I- of another type. One rule
              reads IOB2, IOB1 and BC5CDR's mixture of both. Its letters E and S (BIOES) are outside here.
    """
    spans: list[Span] = []
    open_type = None  # type of the span that the previous word belongs to
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")  # only the first hyphen: B-cell-line has the type cell-line
        if prefix not in ("B", "I"):
            open_type = None
        elif prefix == "I" and kind == open_type:
            spans[-1] = (kind, spans[-1][1], i + 1)
        else:
            spans.append((kind, i, i + 1))
            open_type = kind
    return spans


def tags_from_spans(spans: Iterable[Span], length: int) -> list[str]:
    """Write spans, in any order, as the IOB2 tags of a sentence of `length` words.

    returns   `length` tags; spans_from_tags reads the same spans back, sorted by position
    raises    ValueError when a span is empty, leaves the sentence or overlaps another
    """
    tags = ["O"] * length
    for kind, start, end in spans:
        if not 0 <= start < end <= length:
            raise ValueError(f"span {kind!r} covers words {start} to {end} of a sentence of {length} words")
        if any(tag != "O" for tag in tags[start:end]):
            raise ValueError(f"span {kind!r} of words {start} to {end} overlaps another span")
        ending = f"-{kind}" if kind else ""
        tags[start:end] = [f"B{ending}"] + [f"I{ending}"] * (end - start - 1)
    return tags


# --- 2. Counts, precision, recall, F1 ---

def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return _ratio(math.fsum(values), len(values))


@dataclass(frozen=True)
class Scores:
    """Three counts and the precision, recall and F1 that follow from them."""

    true_positives: int  # found and right
    false_positives: int  # found, but wrong
    false_negatives: int  # missed
    per_type: dict[str, "Scores"] = field(default_factory=dict)  # the same for each type or label, by name

    @property
    def precision(self) -> float:
        """Share of what was found that is right."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of what there is to find that was found."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """2 P R / (P + R), written in the counts: one rounding, so that it stays between P and R."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def compare(gold: set[tuple], predicted: set[tuple]) -> Scores:
    """Compare two sets of decisions, tuples that begin with their type.

    returns   micro Scores over all types, with per_type for each type that occurs on either side
    """
    true, false, missed = gold & predicted, predicted - gold, gold - predicted
    found, wrong, lost = (Counter(decision[0] for decision in part) for part in (true, false, missed))
    kinds = sorted({*found, *wrong, *lost})
    per_type = {kind: Scores(found[kind], wrong[kind], lost[kind]) for kind in kinds}
    return Scores(len(true), len(false), len(missed), per_type)


def _check_lengths(what: str, gold: Sized, predicted: Sized) -> None:
    if len(gold) != len(predicted):
        raise ValueError(f"{what}: expected {len(gold)}, found {len(predicted)}")


def _check_questions(gold: Mapping[str, Sequence[str]], predicted: Mapping) -> None:
    """Refuse what a wrong file or swapped arguments would bring.

    raises    ValueError naming the question for a prediction that nobody asked for, and for gold answers in
              one string, whose letters would pass for answers
    """
    for question in predicted:
        if question not in gold:
            raise ValueError(f"prediction for question {question!r}, which is not among the "
                             f"{len(gold)} gold questions")
    for question, answers in gold.items():
        if isinstance(answers, str):
            raise ValueError(f"question {question!r}: expected a list of gold answers, found {answers!r}")


# --- 3. Entities, relations, yes/no ---

def _entities(sentences: Sequence[Sequence[str]]) -> set[tuple]:
    return {(kind, number, start, end)
            for number, tags in enumerate(sentences) for kind, start, end in spans_from_tags(tags)}


def entity_scores(gold_tags: Sequence[Sequence[str]], predicted_tags: Sequence[Sequence[str]]) -> Scores:
    """Score entities: one is right when its type and both of its borders are.

    gold_tags, predicted_tags   one list of tags per sentence
    returns   micro Scores over all entities, per_type by entity type
    raises    ValueError when the sentences, or the words of a sentence, are not equally many
    """
    _check_lengths("sentences", gold_tags, predicted_tags)
    for number, (gold, predicted) in enumerate(zip(gold_tags, predicted_tags), start=1):
        _check_lengths(f"tags of sentence {number}", gold, predicted)
    return compare(_entities(gold_tags), _entities(predicted_tags))


class EntityMatch(NamedTuple):
    """A gold entity, a predicted one, or one of each that overlap, and what that means."""

    verdict: str  # "hit"; "boundary": one type, other borders; "type": another type; "missed"; "spurious"
    gold: Span | None  # None where spurious
    predicted: Span | None  # None where missed


def match_entities(gold: Sequence[Span], predicted: Sequence[Span]) -> list[EntityMatch]:
    """Tell what is wrong with the predicted entities of a sentence: a finer split of what entity_scores counts.

    gold, predicted   spans as spans_from_tags returns them: in order, none overlapping another of its own side
    returns   every span exactly once. Of the pairs that overlap those of one type go before those of two, then
              those that share most words, then those furthest left; a span whose partners are all taken is
              missed or spurious. Equal spans overlap no others, so hits are entity_scores' true positives.
    """
    def shared_words(pair: tuple[Span, Span]) -> int:
        return min(pair[0][2], pair[1][2]) - max(pair[0][1], pair[1][1])

    overlaps = [pair for pair in itertools.product(gold, predicted) if shared_words(pair) > 0]
    overlaps.sort(key=lambda pair: (pair[0][0] != pair[1][0], -shared_words(pair)))
    matches, missed, spurious = [], list(gold), list(predicted)
    for goal, found in overlaps:
        if goal in missed and found in spurious:
            verdict = "hit" if goal == found else "boundary" if goal[0] == found[0] else "type"
            matches.append(EntityMatch(verdict, goal, found))
            missed.remove(goal)
            spurious.remove(found)
    return [*matches, *(EntityMatch("missed", span, None) for span in missed),
            *(EntityMatch("spurious", None, span) for span in spurious)]


def relation_scores(gold: Sequence[str], predicted: Sequence[str], negative: str) -> Scores:
    """Score relations over every label but the negative one, which is never a true positive.

    gold, predicted   one label per row of the file; a pair with two labels stands on two rows and is counted on each
    negative          the label for "no relation", spelt as in the file: false, False, DDI-false, 0
    returns   micro Scores over the positive labels, per_type by label; one positive label in place of
              another is wrong (for the predicted label) and missed (for the gold one)
    raises    ValueError when the rows are not equally many
    """
    _check_lengths("rows", gold, predicted)
    return compare({(label, row) for row, label in enumerate(gold) if label != negative},
                   {(label, row) for row, label in enumerate(predicted) if label != negative})


class YesNoScores(NamedTuple):
    """Scores of each answer taken as the positive one, and two summaries of both."""

    yes: Scores
    no: Scores
    macro_f1: float
    accuracy: float


def bioasq_yesno_scores(gold: Sequence[str], predicted: Sequence[str]) -> YesNoScores:
    """Score yes/no questions, each answer by itself: most golds are yes, so that accuracy flatters.

    gold, predicted   "yes" or "no", one per question
    raises    ValueError when the questions are not equally many or an answer is neither
    """
    _check_lengths("questions", gold, predicted)
    for answers in (gold, predicted):
        for number, answer in enumerate(answers, start=1):
            if answer not in ("yes", "no"):
                raise ValueError(f"question {number}: expected 'yes' or 'no', found {answer!r}")
    both = compare({(answer, i) for i, answer in enumerate(gold)},
                   {(answer, i) for i, answer in enumerate(predicted)})
    yes, no = (both.per_type.get(answer, Scores(0, 0, 0)) for answer in ("yes", "no"))
    return YesNoScores(yes, no, (yes.f1 + no.f1) / 2, _ratio(both.true_positives, len(gold)))


# --- 4. SQuAD ---

def normalise_squad_answer(text: str) -> str:
    """Lower-case, drop ASCII punctuation, then the articles, then surplus white space: in this order.

    Punctuation goes without leaving a space, so "A-level" becomes "alevel" and its article is safe, while
    "(a)" becomes an article and vanishes.
    """
    return " ".join(ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split())


def squad_f1(predicted: str, gold: str) -> float:
    """Compute F1 of two answers as bags of normalised words; an empty bag scores 0, even against another."""
    bag, gold_bag = (Counter(normalise_squad_answer(text).split()) for text in (predicted, gold))
    shared = (bag & gold_bag).total()  # the minimum of the two counts of each word
    return _ratio(2 * shared, bag.total() + gold_bag.total())  # 2 P R / (P + R), P = shared / bag


class SquadScores(NamedTuple):
    """Means over all gold questions."""

    exact_match: float
    f1: float


def squad_scores(predicted: Mapping[str, str], gold: Mapping[str, Sequence[str]]) -> SquadScores:
    """Score one answer per question against the most favourable of its gold answers.

    predicted   {question id: text}; a question that is missing here scores 0
    gold        {question id: [answer, ...]}; no answer at all scores 0 too
    raises      ValueError for a prediction that belongs to no gold question
    source      SQuAD v1.1 evaluation
    """
    _check_questions(gold, predicted)
    exact, f1 = [], []  # of the questions answered; the others add nothing, but are divided by
    for question, text in predicted.items():
        answer = normalise_squad_answer(text)
        exact.append(any(answer == normalise_squad_answer(goal) for goal in gold[question]))
        f1.append(max((squad_f1(text, goal) for goal in gold[question]), default=0.0))
    return SquadScores(_ratio(sum(exact), len(gold)), _ratio(math.fsum(f1), len(gold)))


# --- 5. BioASQ factoid questions ---

def bioasq_question_id(snippet_id: str) -> str:
    """Return the part before the first "_" or ":": all snippets of a question share it."""
    return snippet_id.replace(":", "_").partition("_")[0]


def _is_balanced(text: str) -> bool:
    """Tell whether each round, square or curly bracket closes the one opened last."""
    still_open = []
    for character in text:
        if character in BRACKETS.values():
            still_open.append(character)
        elif character in BRACKETS and (not still_open or still_open.pop() != BRACKETS[character]):
            return False
    return not still_open


def clean_bioasq_answer(text: str) -> str:
    """Strip spaces, final commas and full stops, and parentheses around the whole, until nothing changes.

    "(TP53)." becomes "TP53"; in "(a) or (b)" the outer two belong to different pairs and stay.
    """
    before = None
    while text != before:
        before, text = text, text.strip().rstrip(",.")
        if text[:1] == "(" and text[-1:] == ")" and _is_balanced(text[1:-1]):
            text = text[1:-1]
    return text


def _best_answers(answers: Sequence[tuple[str, float]]) -> list[str]:
    spelling: dict[str, str] = {}
    total: dict[str, float] = {}
    for text, probability in sorted(answers, key=lambda answer: -answer[1]):
        text = clean_bioasq_answer(text)
        if 0 < len(text) <= FACTOID_ANSWER_LENGTH and _is_balanced(text):
            spelling.setdefault(text.lower(), text)
            total[text.lower()] = total.get(text.lower(), 0.0) + probability
    return [spelling[key] for key in sorted(total, key=lambda key: -total[key])[:FACTOID_ANSWERS]]


def merge_bioasq_snippets(snippets: Mapping[str, Sequence[tuple[str, float]]]) -> dict[str, list[str]]:
    """Turn the answers found in each snippet into one list per question.

    snippets  {snippet id: [(text, probability), ...]}
    returns   {question id: at most five answers, best first}; equal ones (but for case) appear once, spelt
              as in the most probable snippet, with the sum of their probabilities. Ties keep input order.
              An answer that cleans to nothing, has unbalanced brackets or over 100 characters is dropped;
              a question all of whose answers are dropped keeps an empty list.
    source    the factoid conversion published with BioBERT's BioASQ system. It strips one character and looks
              only for brackets missing on one side; ours strips them all and matches every pair.
    """
    candidates: dict[str, list[tuple[str, float]]] = {}
    for snippet, answers in snippets.items():
        candidates.setdefault(bioasq_question_id(snippet), []).extend(answers)
    return {question: _best_answers(answers) for question, answers in candidates.items()}


def _reciprocal_rank(is_right: Iterable[bool]) -> float:
    return next((1 / rank for rank, right in enumerate(is_right, start=1) if right), 0.0)


class FactoidScores(NamedTuple):
    """Means over all gold questions; strict_accuracy <= mrr <= lenient_accuracy <= coverage."""

    strict_accuracy: float  # SACC: the first answer is right
    lenient_accuracy: float  # LACC: one of the five is
    mrr: float  # mean of 1 / rank of the first right one, 0 without
    coverage: float  # share of questions with any answer; the others score 0 above


def bioasq_factoid_scores(gold: Mapping[str, Sequence[str]], predicted: Mapping[str, Sequence[str]]) -> FactoidScores:
    """Score ranked answers: one is right when it equals any synonym but for case.

    gold       {question id: [synonym, ...]}
    predicted  {question id: [answer, ...]}, best first; those after the fifth are not looked at
    raises     ValueError for a prediction that belongs to no gold question
    source     BioASQ task B, phase B. Nothing but the case is normalised: "the BRCA1" is not "BRCA1".
    """
    _check_questions(gold, predicted)
    reciprocal_ranks = []
    for question, synonyms in gold.items():
        goals = {synonym.lower() for synonym in synonyms}
        answers = predicted.get(question, ())[:FACTOID_ANSWERS]
        reciprocal_ranks.append(_reciprocal_rank(answer.lower() in goals for answer in answers))
    return FactoidScores(
        strict_accuracy=_mean([value == 1 for value in reciprocal_ranks]),
        lenient_accuracy=_mean([value > 0 for value in reciprocal_ranks]),
        mrr=_mean(reciprocal_ranks),
        coverage=_mean([bool(predicted.get(question)) for question in gold]),
    )


# --- 6. Ranking ---

def reranking_mrr(groups: Mapping[str, Sequence[tuple[float, int]]]) -> float:
    """Average the reciprocal rank of the first relevant candidate over all groups.

    groups    {question: [(probability, label), ...]}, label 1 for a relevant candidate, else 0; equal
              probabilities keep their input order; a group without a relevant candidate scores 0
    raises    ValueError for any other label: the text "0" would pass for true
    """
    for group, candidates in groups.items():
        for _, label in candidates:
            if label not in (0, 1):
                raise ValueError(f"group {group!r}: expected the label 0 or 1, found {label!r}")
    return _mean([_reciprocal_rank(label == 1 for _, label in sorted(candidates, key=lambda pair: -pair[0]))
                  for candidates in groups.values()])


def batch_scores(mrr: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Divide the MRR of each system in each batch by the best of that batch; 0 where the best is 0.

    mrr       {system: [MRR per batch]}, 0 for a batch a system left out
    raises    ValueError naming the system that has another number of batches than the first
    source    ELECTRAMed, table 10
    """
    rows = list(mrr.values())
    for system, row in mrr.items():
        _check_lengths(f"batches of system {system!r}", rows[0], row)
    best = [max(batch) for batch in zip(*rows)]
    return {system: [_ratio(value, top) for value, top in zip(row, best)] for system, row in mrr.items()}


def batch_score_total(mrr: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Sum batch_scores over the batches: a system that won all five would have 5 (ELECTRAMed, table 10)."""
    return {system: math.fsum(row) for system, row in batch_scores(mrr).items()}


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Measure the probability that a positive outscores a negative, a tie counting one half.

    labels, scores   equally many, any shape; labels 0 or 1
    returns   0.5, that of a blind guess, when one class is absent
    raises    ValueError for other labels, NaN scores or different lengths
    """
    is_positive, values = np.ravel(labels), np.ravel(np.asarray(scores, dtype=np.float64))
    _check_lengths("labels and scores", is_positive, values)
    if not np.isin(is_positive, (0, 1)).all() or np.isnan(values).any():
        raise ValueError("expected labels 0 or 1 and scores that are numbers, found others or NaN")
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if not positives or not negatives:
        return 0.5
    # Equal scores share the mean of their ranks: bfloat16 scores hold many ties, whose order would be chance.
    _, tie, size = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[tie]
    # AUC = (rank sum of the positives - its minimum P (P + 1) / 2) / (P N)
    rank_sum = float(rank[is_positive == 1].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


# --- 7. Blind baselines, mean and spread ---

def unigram_entropy(counts: ArrayLike) -> float:
    """Measure the entropy of the distribution behind token counts, in nats: the loss of who ignores the context.

    counts    occurrences per vocabulary entry; zeros are welcome, none at all gives 0.0
    raises    ValueError for a negative count
    """
    values = np.ravel(np.asarray(counts, dtype=np.float64))
    if (values < 0).any():
        raise ValueError(f"expected counts of 0 or more, found {values.min():g}")
    p = values[values > 0] / values.sum()
    return float(-(p * np.log(p)).sum()) + 0.0  # H = - sum p ln p; adding 0.0 turns -0.0 into 0.0


def binary_entropy(p: float) -> float:
    """Measure the entropy of a coin that falls 1 with probability p, in nats: the loss of always saying p.

    raises    ValueError for p outside [0, 1]
    """
    if not 0 <= p <= 1:
        raise ValueError(f"expected a probability in [0, 1], found {p!r}")
    return sum(-q * math.log(q) for q in (p, 1 - p) if q > 0)  # - p ln p - (1 - p) ln (1 - p), 0 ln 0 = 0


class MeanAndSd(NamedTuple):
    """How a score stands over the seeds."""

    mean: float
    sd: float  # of the sample, divided by n - 1; 0.0 for one value


def mean_and_sd(values: Sequence[float]) -> MeanAndSd:
    """Compute mean and sample standard deviation of the scores of several seeds.

    raises    ValueError when there is no value
    """
    if not len(values):
        raise ValueError("mean and sd of no values: expected one score per seed")
    numbers = [float(value) for value in values]
    # sd = sqrt(sum (x - mean)^2 / (n - 1)), in exact fractions: equal scores give 0, not 1e-17
    return MeanAndSd(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0)


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Give the interval that holds the mean of a normal population with probability `level`: mean +- t sd / sqrt(n).

    values    scores of several seeds; of one alone nothing is known: (nan, nan)
    source    Student's t with n - 1 degrees of freedom: P(|T| < sqrt(n - 1) tan a) is the integral of cos^(n-2)
              from 0 to a over that from 0 to pi/2, solved for a on a grid (t right to five digits)
    """
    mean, sd = mean_and_sd(values)
    freedom = len(values) - 1
    if not freedom:
        return math.nan, math.nan
    angles = np.linspace(0, math.pi / 2, 200_001)
    heights = np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1)          # at the middle of each step
    share = np.concatenate([[0.0], np.cumsum(heights) / heights.sum()])
    t = math.sqrt(freedom) * math.tan(float(np.interp(level, share, angles)))
    margin = t * sd / math.sqrt(len(values))
    return mean - margin, mean + margin
