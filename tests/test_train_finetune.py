"""Fine-tuning end to end on a net of a few thousand weights: every kind of task, seeds, tables, wrong input."""
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import electramed
import train_finetune
from metrics import bioasq_question_id
from tokenizer import Tokenizer, learn_vocab

QUICK = ["--epochs", "1", "--learning-rate", "1e-3"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A pre-training model with weights as they were drawn."""
    folder = tmp_path_factory.mktemp("pretrained")
    texts = [sentence.text for number in range(50) for sentence in data.SyntheticWorld(0).document(number).sentences]
    tokenizer = Tokenizer(learn_vocab(texts, 400))
    config = electramed.ElectraConfig(
        vocab_size=len(tokenizer.pieces), embedding_size=16, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=384, cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id, mask_token_id=tokenizer.mask_id)
    torch.manual_seed(0)
    electramed.save_pretrained(electramed.ElectraForPretraining(config), folder, tokenizer)
    return folder


@pytest.fixture(autouse=True)
def small_demo(monkeypatch):
    """Fewer demo examples, and no run folder of the user's own in sight."""
    small = {split: (first, min(size, 60)) for split, (first, size) in data.DEMO_SPLITS.items()}
    monkeypatch.setattr(data, "DEMO_SPLITS", small)


def run(task: str, init, out: Path, *more: str) -> int:
    return train_finetune.main(["--task", task, "--init", str(init), "--out", str(out), *QUICK, *more])


def scores(out: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    return json.loads((out / f"seed-{seed}" / "scores.json").read_text())


def options_for(task: str) -> train_finetune.Options:
    return train_finetune.complete(train_finetune.Options(task=task))


# --- protocol ---

def test_the_protocol_is_table_5_of_the_paper():
    expected = {"ncbi-disease": (5e-5, 32, 128), "ddi2013": (5e-5, 32, 128), "bioasq7b": (5e-6, 16, 384)}
    for task, values in expected.items():
        options = options_for(task)
        assert values == (options.learning_rate, options.batch_size, options.max_length)
        assert (options.layer_decay, options.weight_decay, options.dropout) == (0.8, 0.0, 0.1)


def test_a_task_has_the_protocol_of_its_paper_and_another_on_demand():
    expected = {"squad": (2, 16, 384, 3e-5, 0.0), "bc5cdr": (3, 32, 128, 5e-5, 0.0), "gad": (3, 32, 128, 1e-4, 0.01),
                "linnaeus": (3, 12, 192, 1e-4, 0.01), "chemprot-tsv": (3, 24, 128, 1e-4, 0.01),
                "yesno": (3, 12, 192, 1e-4, 0.01), "rerank": (3, 12, 64, 1e-4, 0.01)}
    for task, values in expected.items():
        options = options_for(task)
        assert values == (options.epochs, options.batch_size, options.max_length, options.learning_rate,
                          options.weight_decay)
    other = train_finetune.complete(train_finetune.Options(task="squad", protocol="bio-electra", batch_size=7))
    assert (other.epochs, other.batch_size, other.max_length, other.learning_rate) == (2, 7, 192, 1e-4)


# --- whole runs ---

@pytest.mark.parametrize("task, written, measure", [
    ("demo-ner", "predictions.txt", "f1"), ("demo-re", "predictions.tsv", "f1"),
    ("demo-qa", "predictions.json", "exact_match")])
def test_a_run_leaves_scores_predictions_a_table_and_a_model(task, written, measure, pretrained, tmp_path, capsys):
    assert run(task, pretrained, tmp_path, "--seeds", "2") == 0
    assert {"dev", "test"} == scores(tmp_path).keys() and 0 <= scores(tmp_path)["test"][measure] <= 1
    assert (tmp_path / "seed-1" / written).is_file()
    with open(tmp_path / "seed-0" / "log.csv") as file:
        row, = csv.DictReader(file)
    assert float(row["loss"]) > 0 and 0 <= float(row["dev_f1"]) <= 1
    table = (tmp_path / "table.txt").read_text()
    assert "2 seeds" in table and measure in table and table in capsys.readouterr().out
    assert electramed.read_config(tmp_path / "model").hidden_size == 16


def test_finished_seeds_are_kept_and_more_can_be_asked_for(pretrained, tmp_path):
    assert run("demo-re", pretrained, tmp_path) == 0
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
    assert "--tag-loss binary is for entities; demo-re is of the kind re" in capsys.readouterr().err


def test_finished_seeds_are_not_mixed_with_those_of_another_starting_model(pretrained, tmp_path, capsys):
    start, out = tmp_path / "start", tmp_path / "out"
    tokenizer = Tokenizer.from_file(pretrained)
    torch.manual_seed(1)
    electramed.save_pretrained(electramed.ElectraForPretraining(electramed.read_config(pretrained)), start, tokenizer)
    assert run("demo-re", start, out) == 0
    electramed.save_pretrained(electramed.load_pretrained(pretrained), start, tokenizer)
    assert run("demo-re", start, out, "--seeds", "2") == 2
    assert "--starting-model" in capsys.readouterr().err


def test_a_seed_decides_everything(pretrained, tmp_path):
    for name in ("a", "b"):
        assert run("demo-ner", pretrained, tmp_path / name) == 0
    assert scores(tmp_path / "a") == scores(tmp_path / "b")
    a, b = (torch.load(tmp_path / name / "model" / "pytorch_model.bin", weights_only=True) for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_fine_tuned_run_can_be_the_start_of_the_next(pretrained, tmp_path):
    assert run("demo-qa", pretrained, tmp_path / "squad") == 0
    assert run("demo-qa", tmp_path / "squad", tmp_path / "bioasq") == 0


def test_from_scratch_says_so_loudly_and_can_take_the_sizes_of_a_model(pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("demo-ner", "none", "like", "--like", str(pretrained)) == 0
    assert "FROM SCRATCH" in capsys.readouterr().err
    assert electramed.read_config(tmp_path / "like" / "model").hidden_size == 16
    assert train_finetune.main(["--task", "demo-ner", "--out", "alone", *QUICK]) == 0
    assert "FROM SCRATCH" in capsys.readouterr().err
    assert electramed.read_config(tmp_path / "alone" / "model").hidden_size == 128


def test_learning_happens(pretrained, tmp_path):
    assert run("demo-re", pretrained, tmp_path, "--epochs", "30", "--learning-rate", "3e-3", "--layer-decay", "1") == 0
    with open(tmp_path / "seed-0" / "log.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.5 * losses[0]


# --- gold fed back as predictions ---

def gold_outputs(task: data.Task, features: list[data.Feature]) -> list[np.ndarray]:
    """What a model that knows the answers would put out."""
    outputs = []
    for feature in features:
        if task.kind == "qa":
            logits = np.zeros((len(feature.input_ids), 2), np.float32)
            logits[feature.labels[0], 0] = logits[feature.labels[1], 1] = 10
            outputs.append(logits)
        else:
            labels = np.atleast_1d(feature.labels)
            outputs.append(np.eye(len(task.labels))[np.maximum(labels, 0)].squeeze(() if task.kind == "ner" else 0))
    return outputs


@pytest.mark.parametrize("name", ["demo-ner", "demo-re", "demo-qa"])
@pytest.mark.parametrize("max_length", [24, 128])
def test_gold_fed_back_scores_one_through_the_whole_pipeline(name, max_length, pretrained, tmp_path):
    if (name, max_length) == ("demo-qa", 24):
        pytest.skip("a question leaves no room for a passage in 24 tokens")
    task, tokenizer = data.TASKS[name], Tokenizer.from_file(pretrained)
    kind, examples = train_finetune.PARTS_OF[task.kind], data.read_task(name, "test")
    options = train_finetune.complete(train_finetune.Options(task=name, max_length=max_length))
    features, _ = kind.encode(examples, tokenizer, task.labels, options.max_length)
    predictions = kind.decode(examples, features, gold_outputs(task, features), task.labels)
    assert kind.score(task, examples, predictions)["f1"] == 1
    kind.write(task, tmp_path, examples, predictions)
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


def test_bioasq_merges_snippets_and_writes_a_submission_a_batch(tmp_path):
    def question(identifier, batch, gold):
        return data.Question(identifier, "Which?", "alpha beta", [], batch, gold)

    def answer(text, probability):
        return data.Answer(text, 0, len(text), probability)

    examples = [question("q1_0", 1, ["Beta"]), question("q1_1", 1, ["Beta"]), question("q2_0", 2, ["gamma", "delta"])]
    predictions = [[answer("alpha", 0.6), answer("beta", 0.4)], [answer("beta", 0.9)], [answer("alpha", 1.0)]]
    task = data.TASKS["bioasq7b"]
    measured = train_finetune.score_answers(task, examples, predictions)
    assert (measured["mrr"], measured["batch 1 mrr"], measured["batch 2 mrr"]) == (0.5, 1.0, 0.0)
    train_finetune.write_answers(task, tmp_path, examples, predictions)
    first, = json.loads((tmp_path / "predictions-batch-1.json").read_text())["questions"]
    assert first == {"id": "q1", "type": "factoid", "exact_answer": [["beta"], ["alpha"]]}


def test_the_table_stands_beside_the_papers():
    lines = train_finetune.score_table(options_for("ncbi-disease"), [
        {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}, {"precision": 0.7, "recall": 0.25, "f1": 1 / 3}])
    precision = next(line for line in lines.splitlines() if line.startswith("precision")).split()
    assert precision == ["precision", "60.00", "14.14", "85.87"]
    assert lines.splitlines()[-1] == "f1 of each seed: 33.33, 33.33"


def test_table_10_ends_the_table_of_bioasq():
    """Batches 1 and 2: ours 47.95 and 28.335 of the best 47.95 and 56.67, ELECTRAMed's 47.95 and 53.16."""
    result = {"mrr": 0.4, "batch 1 mrr": 0.4795, "batch 2 mrr": 0.28335}
    table = train_finetune.score_table(options_for("bioasq7b"), [result])
    assert table.endswith("sum over 2 batches of MRR / best MRR (ELECTRAMed's Table 10): 1.500; ELECTRAMed 1.938")


def test_a_type_that_only_one_seed_predicts_is_in_the_table_and_zero_for_the_others():
    table = train_finetune.score_table(options_for("demo-ner"), [{"f1": 0.5}, {"f1": 0.5, "Drug f1": 0.4}])
    assert next(line for line in table.splitlines() if line.startswith("Drug f1")).split()[2:] == ["20.00", "28.28"]


def test_the_table_has_a_column_for_each_paper_that_has_the_task():
    lines = train_finetune.score_table(options_for("ncbi-disease"), [{"f1": 0.5}]).splitlines()
    assert lines[1].split() == ["mean", "sd", "ELECTRAMed", "Bio-ELECTRA", "++", "++", "tuned"]
    assert lines[2].split() == ["f1", "50.00", "0.00", "87.54", "78.32", "80.01", "84.85"]
    assert train_finetune.PUBLISHED.keys() <= data.TASKS.keys()


@pytest.mark.parametrize("name, scores_of_gold", [("yesno", ("macro_f1", "accuracy", "no f1")), ("rerank", ("mrr",))])
def test_gold_pairs_score_one_and_their_opposite_less(name, scores_of_gold, tiny_tokenizer, tmp_path):
    rows = "".join(f"{int(i % 3 == 0)}\tthe drug {i // 6}?\tthe gene {i}\n" for i in range(18))
    (tmp_path / "test.tsv").write_text("label\tquestion\tanswer\n" + rows)
    task, examples = data.TASKS[name], data.read_task(name, "test", tmp_path)
    kind = train_finetune.PARTS_OF[task.kind]
    features, _ = kind.encode(examples, tiny_tokenizer, task.labels, options_for(name).max_length)
    for is_gold in (True, False):
        outputs = [np.eye(2)[feature.labels if is_gold else 1 - feature.labels] * 9 for feature in features]
        predictions = kind.decode(examples, features, outputs, task.labels)
        measured = kind.score(task, examples, predictions)
        assert all((measured[measure] == 1) == is_gold for measure in scores_of_gold)
    kind.write(task, tmp_path, examples, predictions)
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 19


@pytest.mark.parametrize("name", ["ncbi-disease", "bc5cdr", "jnlpba", "bc2gm", "chemprot", "chemprot-tsv", "ddi2013",
                                  "gad", "yesno", "rerank", "squad", "bioasq7b"])
def test_gold_of_the_published_files_fed_back_scores_one(name, real_data, tmp_path):
    """In rows of 64 tokens at most, so that many a sentence is long; of questions what no span can give is counted."""
    task, tokenizer = data.TASKS[name], Tokenizer.from_file(real_data / "vocab" / "scivocab.txt")
    split = {"gad": "train", "rerank": "dev", "squad": "dev"}.get(name, "test")
    kind, examples = train_finetune.PARTS_OF[task.kind], data.read_task(name, split, real_data)
    options = train_finetune.complete(train_finetune.Options(task=name, max_length=96 if task.kind == "qa" else 64))
    features, _ = kind.encode(examples, tokenizer, task.labels, options.max_length)
    if task.kind == "qa":
        found = data.findable_answers(examples, features)
        outputs = gold_span_outputs(features, found)
    else:
        outputs = gold_outputs(task, features)
    predictions = kind.decode(examples, features, outputs, task.labels)
    kind.write(task, tmp_path, examples, predictions)
    if task.kind == "qa":
        identifier = bioasq_question_id if name == "bioasq7b" else str
        answerable = {identifier(example.id) for example, answers in zip(examples, found) if answers}
        some = [number for number, example in enumerate(examples) if identifier(example.id) in answerable]
        part = [[rows[number] for number in some] for rows in (examples, predictions)]
        assert len(answerable) == {"squad": 1189, "bioasq7b": 100}[name]
        # of BioASQ's hundred four are sentences or end in a full stop, which its own post-processing drops
        right = {"squad": 1189, "bioasq7b": 96}[name] / len(answerable)
        assert kind.score(task, *part)["lenient_accuracy" if name == "bioasq7b" else "exact_match"] == right
        return
    assert kind.score(task, examples, predictions)[task.metric] == 1
    if task.kind == "ner":              # what was written reads as CoNLL columns, and scores the same
        lines = [line.split(" ") for line in (tmp_path / "predictions.txt").read_text().split("\n")]
        gold, predicted = ([line[column] if len(line) > 1 else "O" for line in lines] for column in (1, 2))
        assert gold == predicted and len(lines) == sum(len(example.words) + 1 for example in examples)


# --- the error report ---

def report(tmp_path, task, examples, predictions, features=()) -> str:
    """What errors.md says below its title."""
    kind = train_finetune.PARTS_OF[data.TASKS[task].kind]
    errors, note = kind.errors(data.TASKS[task], examples, list(features), predictions)
    train_finetune.write_errors(tmp_path / "errors.md", "Errors", errors, note)
    return (tmp_path / "errors.md").read_text().removeprefix("# Errors\n\n")


def test_errors_of_entities_worked_by_hand(tmp_path):
    """Two drugs missed, one of them twice; one too long, one taken for a gene; and a gene where there is nothing."""
    sentences = [("the gout drug jor and kel", "O O O B-Drug O B-Drug", "O O O O O B-Drug"),
                 ("jor [ 3 ] helps", "B-Drug O O O O", "O O O O O"),
                 ("kel acid for fever", "B-Drug O O B-Disease", "B-Drug I-Drug O O"),
                 ("kel acid for jor", "B-Drug I-Drug O B-Drug", "O B-Gene O O"),
                 ("so is * it", "O O O O", "O O B-Gene I-Gene")]
    examples = [data.TaggedSentence(words.split(), gold.split()) for words, gold, _ in sentences]
    assert report(tmp_path, "demo-ner", examples, [predicted.split() for *_, predicted in sentences]) == r"""
Of 7 entities 1 found, 4 missed, 1 with another boundary, 1 taken for another type; 1 spurious.
The gold entity stands in **bold**, the predicted one in [brackets].

## Drug: 5

### missed: 3
- 3 x jor
  - the gout drug **jor** and kel
  - **jor** \[ 3 \] helps
  - kel acid for **jor**

### boundary: 1
- kel
  - [**kel** acid] for fever

### taken for Gene: 1
- kel acid
  - **kel [acid**] for jor

## Disease: 1

### missed: 1
- fever
  - kel acid for **fever**

## Gene: 1

### spurious: 1
- \* it
  - so is [\* it]
"""[1:]


def test_errors_of_relations_worked_by_hand(tmp_path):
    rows = [("a", "false", "treats"), ("b", "treats", "treats"), ("c", "treats", "causes"), ("d", "causes", "false"),
            ("e", "treats", "false"), ("f", "causes", "false"), ("d", "causes", "false")]
    examples = [data.LabelledText(str(i), f"sentence {text}", gold) for i, (text, gold, _) in enumerate(rows)]
    assert report(tmp_path, "demo-re", examples, [predicted for *_, predicted in rows]) == """
6 of 7 texts have another label than the gold one.

## false negatives: 4

### false for causes: 3
- 2 x sentence d
- sentence f

### false for treats: 1
- sentence e

## false positives: 1

### treats for false: 1
- sentence a

## one for another: 1

### causes for treats: 1
- sentence c
"""[1:]


def test_errors_of_yes_no_questions_stand_with_their_answers(tmp_path):
    examples = [data.LabelledText(str(i), "is it?", gold, f"because {i}") for i, gold in enumerate("01111")]
    assert report(tmp_path, "yesno", examples, list("10000")).splitlines()[:9] == [
        "5 of 5 texts have another label than the gold one.",
        "Of equal errors the first 3 places are shown, 1 are left out.", "",
        "## false negatives: 4", "", "### 0 for 1: 4", "- 4 x is it?", "  - because 1", "  - because 2"]


def test_errors_of_questions_worked_by_hand(tmp_path, tiny_tokenizer):
    """An answer that is too long, two that stand elsewhere, a gold that ends inside a piece, and a right one."""
    context = "the drug treats fever in patients"
    rows = [("q1", "fever", ["fever in", "drug"]), ("q2", "drug", ["fever"]), ("q3", "patient", ["patients"]),
            ("q4", "the drug", ["fever"]), ("q5", "fever", ["the fever"])]
    examples = [data.Question(name, f"what is {name} ?", context, [(gold, context.index(gold))])
                for name, gold, _ in rows]
    features, _ = data.encode_questions(examples, tiny_tokenizer, 64)
    predictions = [[data.Answer(text, context.find(text), context.find(text) + len(text), 0.5) for text in texts]
                   for *_, texts in rows]
    assert report(tmp_path, "demo-qa", examples, predictions, features) == """
4 of 5 questions are answered wrongly.
Boundary: the best answer overlaps a gold one; out of reach: no gold answer is a span of a window.

## elsewhere: 2
- what is q2 ?
  - gold: drug
  - predicted: fever
- what is q4 ?
  - gold: the drug
  - predicted: fever

## boundary: 1
- what is q1 ?
  - gold: fever
  - predicted: fever in | drug

## out of reach: 1
- what is q3 ?
  - gold: patient
  - predicted: patients
"""[1:]


def test_a_bioasq_question_is_one_error_whatever_its_snippets(tmp_path, tiny_tokenizer):
    """q1 has the right answer second; q2 a wrong one, and no snippet that holds a synonym; q3 is right."""
    rows = [("q1_0", "fever in patients", ["fever"], ["patients", "fever"]), ("q1_1", "drug", ["fever"], ["drug"]),
            ("q2_0", "the gene", ["gout", "podagra"], ["gene"]), ("q3_0", "a gene", ["Gene"], ["gene"])]
    examples = [data.Question(name, f"which is {name[:2]} ?", context, [], 1, gold) for name, context, gold, _ in rows]
    features, _ = data.encode_questions(examples, tiny_tokenizer, 32)
    predictions = [[data.Answer(text, context.index(text), context.index(text) + len(text), 0.9 - 0.1 * rank)
                    for rank, text in enumerate(texts)] for _, context, _, texts in rows]
    assert report(tmp_path, "bioasq7b", examples, predictions, features).split("\n\n", 1)[1] == """
## right, but not first: 1
- which is q1 ?
  - gold: fever
  - predicted: patients | drug | fever

## out of reach: 1
- which is q2 ?
  - gold: gout | podagra
  - predicted: gene
"""[1:]


def test_errors_of_rankings_worked_by_hand(tmp_path):
    rows = [("q1", "a", "0", 0.9), ("q1", "b", "1", 0.8), ("q2", "c", "0", 0.5), ("q2", "d", "1", 0.1),
            ("q2", "e", "0", 0.3), ("q3", "f", "1", 0.2), ("q3", "g", "0", 0.1), ("q4", "h", "0", 0.7)]
    examples = [data.Candidate(question, question, text, label) for question, text, label, _ in rows]
    assert report(tmp_path, "rerank", examples, [probability for *_, probability in rows]) == """
3 of 4 questions have no right candidate in the first place.

## not ranked first: 2
- q2
  - right, rank 3 of 3: d
  - ranked first: c
- q1
  - right, rank 2 of 2: b
  - ranked first: a

## no right candidate: 1
- q4
  - ranked first: h
"""[1:]


@pytest.mark.parametrize("task", ["demo-ner", "demo-re", "demo-qa"])
def test_the_errors_of_a_run_agree_with_its_scores_and_are_named_last(task, pretrained, tmp_path, capsys):
    assert run(task, pretrained, tmp_path) == 0
    assert "errors.md" in capsys.readouterr().err.splitlines()[-1]
    text, measured = (tmp_path / "seed-0" / "errors.md").read_text(), scores(tmp_path)["test"]
    title, note = text.splitlines()[0], text.splitlines()[2]
    assert title == f"# Errors of {task}, test set, seed 0"
    numbers = [int(number) for number in re.findall(r"\d+", note)]
    if task == "demo-ner":
        gold, hits, missed, boundary, other_type, spurious = numbers
        assert gold == hits + missed + boundary + other_type
        assert measured["recall"] == pytest.approx(hits / gold)
        assert hits == 0 or measured["precision"] == pytest.approx(hits / (hits + boundary + other_type + spurious))
    elif task == "demo-qa":
        assert measured["exact_match"] == pytest.approx(1 - numbers[0] / numbers[1])
    wrong = gold - hits + spurious if task == "demo-ner" else numbers[0]
    groups = [int(number) for number in re.findall(r"^## .*: (\d+)$", text, re.M)]
    assert groups == sorted(groups, reverse=True) and sum(groups) == wrong > 0
    assert sum(int(number or 1) for number in re.findall(r"^- (?:(\d+) x )?", text, re.M)) == wrong


# --- what a span can give at most ---

def gold_span_outputs(features: list[data.Feature], found: list[list[data.Answer]]) -> list[np.ndarray]:
    """The logits (T, 2) of a model that knows the first of these spans of each example."""
    outputs = []
    for feature in features:
        logits = np.zeros((len(feature.input_ids), 2), np.float32)
        for answer in found[feature.example][:1]:
            for position, start, end, is_best in feature.spots:
                logits[position, 0] += 9 * (start == answer.start and is_best)
                logits[position, 1] += 9 * (end == answer.end)
        outputs.append(logits)
    return outputs


def test_the_ceiling_counts_what_no_span_can_answer(pretrained, tmp_path, capsys):
    """Of four questions two can be answered: one answer ends inside a wordpiece, one is longer than 30 pieces."""
    context = "the patients took jorganux twice daily . " + "and then " * 30
    golds = ["jorganux", "twice daily", "jorganu", ("and then " * 30).strip()]
    paragraphs = [{"context": context, "qas": [{"id": str(i), "question": "what ?", "answers": [
        {"text": gold, "answer_start": context.index(gold)}]}]} for i, gold in enumerate(golds)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert run("qa", pretrained, tmp_path / "out", "--data", str(tmp_path), "--max-length", "64") == 0
    assert ("test: 2 of 4 questions have no gold answer that is a span of a window; gold fed back scores f1 50.00"
            in capsys.readouterr().err)


def test_gold_that_is_a_span_scores_one_after_decoding_and_only_that(pretrained):
    """BioASQ's test sets: synonyms, no positions, several contexts a question, one question without its answer."""
    context = "in the study , jorganux slowed the fever of many patients . " * 3
    examples = [data.Question(f"q{i}_{part}", "what ?", text, [], 1, gold) for i, gold in enumerate(
        [["Jorganux"], ["the FEVER", "hyperpyrexia"], ["a paraphrase"]]) for part, text in enumerate(["no .", context])]
    tokenizer, task = Tokenizer.from_file(pretrained), data.TASKS["bioasq7b"]
    features, _ = data.encode_questions(examples, tokenizer, 32, 8)
    found = data.findable_answers(examples, features)
    predictions = data.decode_answers(examples, features, gold_span_outputs(features, found))
    measured = train_finetune.score_answers(task, examples, predictions)
    ceiling = train_finetune.score_answers(task, examples, found)
    assert measured["mrr"] == ceiling["mrr"] == pytest.approx(2 / 3)


# --- search and curve ---

def test_a_search_tries_the_grid_on_the_development_set_and_never_twice(pretrained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_finetune, "GRID",
                        {"learning_rate": (1e-5, 1e-2), "epochs": (1, 2), "batch_size": (16, 32)})
    search = ["--task", "demo-re", "--init", str(pretrained), "--out", str(tmp_path / "out"), "--search"]
    trained = []
    train = train_finetune.train
    monkeypatch.setattr(train_finetune, "train", lambda *arguments: trained.append(arguments) or train(*arguments))
    assert train_finetune.main([*search, "3"]) == 0
    assert len(trained) == 3 + 1                                # three trials, and the best one's seed 0
    table = capsys.readouterr().out
    assert train_finetune.main([*search, "3"]) == 0
    assert len(trained) == 4 and capsys.readouterr().out == table
    with open(tmp_path / "out" / "search.csv") as file:
        rows = list(csv.DictReader(file))
    dev = [float(row["dev_f1"]) for row in rows]
    assert len(rows) == 3 and dev == sorted(dev, reverse=True)
    best = tmp_path / "out" / "learning-rate-{learning_rate}-epochs-{epochs}-batch-size-{batch_size}".format(**rows[0])
    assert scores(best)["dev"]["f1"] == pytest.approx(dev[0], abs=1e-6) and (best / "table.txt").read_text() == table
    assert train_finetune.main([*search, "4"]) == 0
    assert [arguments[2].out for arguments in trained[4:5]] != [arguments[2].out for arguments in trained[:1]]
    assert 5 <= len(trained) <= 6                               # one more trial, and its seed 0 if it won


def test_a_trial_of_a_search_never_sees_the_test_set(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(train_finetune, "GRID", {"learning_rate": (1e-3,), "epochs": (1,), "batch_size": (32,)})
    seen = []
    evaluate = train_finetune.evaluate
    monkeypatch.setattr(train_finetune, "evaluate",
                        lambda model, split, *rest: seen.append(split) or evaluate(model, split, *rest))
    assert train_finetune.main(["--task", "demo-re", "--init", str(pretrained), "--out", str(tmp_path),
                                "--search", "1"]) == 0
    assert seen == ["dev", "dev", "test"]                       # the trial; then the seed and its one look


def test_a_search_says_what_it_cannot_do(pretrained, tmp_path, capsys):
    assert run("demo-re", pretrained, tmp_path, "--search", "2") == 2
    assert "--search draws --learning-rate itself" in capsys.readouterr().err
    start = ["--task", "ncbi-disease", "--init", str(pretrained), "--out", str(tmp_path / "out")]
    assert train_finetune.main([*start, "--search", "65"]) == 2
    assert "the grid has 64 points" in capsys.readouterr().err
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
        assert float(row["high"]) - float(row["f1"]) == pytest.approx(12.706 * abs(values[0] - values[1]) / 2, abs=0.02)
    assert run("demo-re", pretrained, out, "--curve") == 2
    assert "holds no models" in capsys.readouterr().err


def test_the_curve_is_drawn_where_matplotlib_is(pretrained, tmp_path):
    pytest.importorskip("matplotlib")
    electramed.save_pretrained(electramed.load_pretrained(pretrained), tmp_path / "run" / "models" / "step-00000001",
                               Tokenizer.from_file(pretrained))
    assert run("demo-re", tmp_path / "run", tmp_path / "out", "--curve", "--seeds", "2") == 0
    assert "<svg" in (tmp_path / "out" / "curve.svg").read_text()


# --- raw text ---

def read(out: Path, lines: str, tmp_path: Path, capsys) -> list[dict]:
    (tmp_path / "input.txt").write_text(lines)
    capsys.readouterr()
    assert train_finetune.main(["--out", str(out), "--predict", str(tmp_path / "input.txt")]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_entities_of_raw_text_stand_at_their_characters(pretrained, tmp_path, capsys):
    """Trained until it knows a few sentences by heart, the tagger has to find their diseases in running text."""
    mentions = {"chronic kelmarin fever": 3, "ganbael": 1}
    rows = "".join("".join(f"{word} {tag}\n" for word, tag in zip(
        f"jorganux slowed {name} in adults .".split(),
        ["O", "O", "B-Disease", *["I-Disease"] * (length - 1), "O", "O", "O"])) + "\n"
        for name, length in mentions.items())
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.txt").write_text(rows * 8)
    out = tmp_path / "out"
    assert run("ncbi-disease", pretrained, out, "--data", str(tmp_path), "--epochs", "40", "--learning-rate", "1e-2",
               "--layer-decay", "1", "--dropout", "0") == 0
    assert scores(out)["test"]["f1"] == 1
    text = "Jorganux slowed  Chronic kelmarin FEVER in adults.  Jorganux slowed ganbael in adults."
    long = " ".join([text] * 20)
    first, second = read(out, f"{text}\n\n{long}\n", tmp_path, capsys)
    assert [(entity["text"], entity["type"]) for entity in first["entities"]] == [
        ("Chronic kelmarin FEVER", "Disease"), ("ganbael", "Disease")]
    assert len(second["entities"]) == 40                        # however long the text
    for result in (first, second):
        for entity in result["entities"]:
            assert result["text"][entity["start"]:entity["end"]] == entity["text"] and 0.5 < entity["score"] <= 1
    marked = train_finetune.mark(first)
    assert "slowed  \x1b[1mChronic kelmarin FEVER\x1b[0m [Disease] in adults." in marked


@pytest.mark.parametrize("loss, chances", [("softmax", [0.1192, 0.8808]), ("binary", [0.5, 0.8808])])
def test_scores_are_the_probabilities_the_tagger_was_trained_to_give(loss, chances, tiny_tokenizer, monkeypatch):
    """Of logits 0 and 2: e^0 / (e^0 + e^2) and the rest, or a sigmoid of each."""
    monkeypatch.setattr(train_finetune, "predict", lambda *arguments: [np.array([[0.0, 2.0]])])
    reader = train_finetune.Reader(None, tiny_tokenizer, ["O", "B"], train_finetune.Options(tag_loss=loss), None)
    assert reader.outputs([])[0][0] == pytest.approx(chances, abs=1e-4)


def test_a_word_longer_than_a_window_is_still_one_word(pretrained, tmp_path, capsys):
    assert run("demo-ner", pretrained, tmp_path / "out", "--max-length", "16") == 0
    result, = read(tmp_path / "out", "a" + "-b" * 200 + "\n", tmp_path, capsys)
    assert all(result["text"][entity["start"]:entity["end"]] == entity["text"] for entity in result["entities"])


def test_relations_answers_and_pairs_are_read_from_lines(pretrained, tmp_path, capsys, monkeypatch):
    assert run("demo-re", pretrained, tmp_path / "re") == 0
    results = read(tmp_path / "re", "@DRUG$ slowed @DISEASE$ .\n" * 2, tmp_path, capsys)
    assert len(results) == 2 and results[0]["label"] in data.TASKS["demo-re"].labels
    assert 0.25 <= results[0]["score"] <= 1
    assert train_finetune.mark(results[0]).endswith("@DRUG$ slowed @DISEASE$ .")
    pair = json.dumps({"question": "what was slowed ?", "passage": "Jorganux slowed ganbael. " * 40})
    assert run("demo-qa", pretrained, tmp_path / "qa", "--max-length", "64") == 0
    result, = read(tmp_path / "qa", pair + "\n", tmp_path, capsys)
    assert len(result["answers"]) == 5 and result["question"] == "what was slowed ?"
    assert all(result["passage"][answer["start"]:answer["end"]] == answer["text"] for answer in result["answers"])
    chances = [answer["score"] for answer in result["answers"]]
    assert chances == sorted(chances, reverse=True)
    best = result["answers"][0]
    assert f"\x1b[1m{best['text']}\x1b[0m" in train_finetune.mark(result)
    (tmp_path / "train.tsv").write_text("1\tis it?\tit is\n0\tis it?\tnot\n")
    (tmp_path / "test.tsv").write_text("1\tis it?\tit is\n0\tis it?\tnot\n")
    for kind in ("classify", "rank"):
        assert run(kind, pretrained, tmp_path / kind, "--data", str(tmp_path)) == 0
        result, = read(tmp_path / kind, pair + "\n", tmp_path, capsys)
        assert result["label"] == "1" or kind == "classify" and result["label"] == "0"
    monkeypatch.setattr("sys.stdin", io.StringIO(pair + "\n" + pair + "\n"))
    assert train_finetune.main(["--out", str(tmp_path / "qa"), "--predict", "-"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_cannot_be_read_is_named(pretrained, tmp_path, capsys):
    assert train_finetune.main(["--out", str(tmp_path / "none"), "--predict", "x"]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert train_finetune.main(["--out", str(pretrained), "--predict", "x"]) == 2
    assert "not a run of train_finetune.py" in capsys.readouterr().err
    assert run("demo-qa", pretrained, tmp_path / "qa") == 0
    assert train_finetune.main(["--out", str(tmp_path / "qa"), "--predict", ""]) == 2       # an empty shell variable
    assert "No such file" in capsys.readouterr().err
    ask = ["--out", str(tmp_path / "qa"), "--predict", str(tmp_path / "input.txt")]
    assert train_finetune.main(ask) == 2
    assert "input.txt" in capsys.readouterr().err
    for line in ('{"question": "what ?"}', '{"question": "what ?", "passage": null}', "[1]", "what ?"):
        (tmp_path / "input.txt").write_text(f"\n{line}\n")
        assert train_finetune.main(ask) == 2
        assert "input.txt line 2: expected {\"question\"" in capsys.readouterr().err


# --- files of one's own, and wrong input ---

def test_a_custom_set_of_each_kind_finds_its_labels(pretrained, tmp_path, capsys):
    texts = {"ner": ("fever B-X\n\nno O\n", "fever B-X\n\ngout B-Y\n"), "re": ("a\tnone\nb\tr\nc\tnone\n",) * 2,
             "qa": (json.dumps({"data": [{"paragraphs": [{"context": "so it is", "qas": [
                 {"id": "1", "question": "?", "answers": [{"text": "it", "answer_start": 3}]}]}]}]}),) * 2,
             "classify": ("1\tis it?\tyes\n0\tis it?\tno\n",) * 2, "rank": ("1\tis it?\tyes\n0\tis it?\tno\n",) * 2}
    for kind, (train, test) in texts.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / ("train.json" if kind == "qa" else "train.txt")).write_text(train)
        (folder / ("test.json" if kind == "qa" else "test.txt")).write_text(test)
        assert run(kind, pretrained, tmp_path / f"out-{kind}", "--data", str(folder)) == 0
    said = capsys.readouterr().err
    assert "labels of the training set: O, B-X\n" in said and "B-Y: not in the training set" in said
    assert 'none, r; none is taken for "no relation"' in said


def test_where_there_is_no_published_split_each_seed_tests_a_part_and_the_table_says_so(pretrained, tmp_path, capsys):
    (tmp_path / "dev.tsv").write_text("".join(f"{i % 2}\tquestion {i // 2}\tanswer {i}\n" for i in range(20)))
    more = ("--data", str(tmp_path), "--seeds", "2", "--class-weights")
    assert run("rerank", pretrained, tmp_path / "out", *more) == 0
    assert "part 2 of 5 of its dev file: not the published split ***" in capsys.readouterr().err
    assert "not the published split" in (tmp_path / "out" / "table.txt").read_text()
    asked = [{line.split("\t")[1] for line in (tmp_path / "out" / f"seed-{seed}" / "predictions.tsv")
              .read_text().splitlines()[1:]} for seed in (0, 1)]
    assert len(asked[0]) == len(asked[1]) == 2 and not asked[0] & asked[1]
    assert run("demo-re", pretrained, tmp_path / "re", "--class-weights") == 2
    assert "--class-weights are for ranking" in capsys.readouterr().err


def test_a_published_set_that_is_not_there_is_fetched_unless_offline(pretrained, tmp_path, capsys, monkeypatch):
    def fetch(name, directory):
        if "cut" in str(directory):
            raise OSError("http://address: cut off")
        for _, path, _ in data.missing_files(name, directory):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1\tis it?\tit is\n0\tis it?\tnot\n")

    monkeypatch.setattr(data, "fetch_task", fetch)
    root, offline = tmp_path / "root", ("--offline", "--data", str(tmp_path / "root"))
    assert run("yesno", pretrained, tmp_path / "out", *offline) == 2
    assert f"finetuning_data/yesno/{{dev.tsv,test.tsv,train.tsv}} into {root}/qa/yesno" in capsys.readouterr().err
    assert run("rerank", pretrained, tmp_path / "out", *offline) == 2 and not root.exists()
    assert "no train file" in capsys.readouterr().err
    assert run("yesno", pretrained, tmp_path / "out", "--data", str(root)) == 0
    assert run("yesno", pretrained, tmp_path / "out", "--seeds", "2", *offline) == 0
    for task in ("yesno", "rerank"):
        assert run(task, pretrained, tmp_path / task, "--data", str(tmp_path / "cut")) == 2
        assert capsys.readouterr().err.endswith("error: http://address: cut off\n")
    part = tmp_path / "cut" / "qa" / "reranker" / "dev.tsv"
    part.parent.mkdir(parents=True)
    part.write_text("".join(f"{i % 2}\tquestion {i // 2}\tanswer {i}\n" for i in range(20)))
    assert run("rerank", pretrained, tmp_path / "rerank", "--data", str(tmp_path / "cut")) == 0
    assert "*** http://address: cut off; so the test set is part 1 of 5" in capsys.readouterr().err


def test_a_development_set_that_is_the_test_set_chooses_nothing(pretrained, tmp_path, capsys):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text("1\tis it?\tit is\n0\tis it?\tnot\n")
    assert run("yesno", pretrained, tmp_path / "out", "--data", str(tmp_path)) == 0
    assert "must choose nothing" in capsys.readouterr().err and scores(tmp_path / "out")["dev"] == {}


def test_bioasq8b_reports_on_dev_which_then_chooses_nothing(pretrained, tmp_path, capsys):
    text = json.dumps({"questions": [{"id": "q", "type": "list", "body": "Which?", "exact_answer": [["gout"]],
                                      "snippets": [{"text": "Gout hurts."}, {"text": "It is gout."}]}]})
    for split in ("train", "dev"):
        (tmp_path / f"{split}.json").write_text(text)
    out = tmp_path / "out"
    assert run("bioasq8b", pretrained, out, "--data", str(tmp_path)) == 0
    assert "must choose nothing" in capsys.readouterr().err and scores(out)["dev"] == {}
    assert scores(out)["test"].keys() == {"exact_match", "f1"} and "66.87" in (out / "table.txt").read_text()
    assert json.loads((out / "seed-0" / "predictions.json").read_text()).keys() == {"q_000", "q_001"}
    options = options_for("bioasq8b")
    assert (options.batch_size, options.max_length, options.learning_rate) == (12, 192, 1e-4)


def disease_folder(folder: Path) -> Path:
    """A data set in ncbi-disease's form, with a sentence far over the maximum length."""
    short, long = "no O\nfever B-Disease\n. O\n", "".join(f"word{i} O\n" for i in range(60)) + "gout B-Disease\n"
    for split in ("train", "dev", "test"):
        (folder / f"{split}.txt").write_text("\n" + f"{short}\n\n" * 4 + long)
    return folder


def test_long_sentences_lose_no_entity(pretrained, tmp_path, capsys):
    folder = disease_folder(tmp_path)
    assert run("ncbi-disease", pretrained, tmp_path / "out", "--data", str(folder), "--max-length", "40") == 0
    assert "1 sentences longer than 40 tokens" in capsys.readouterr().err
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
    assert "train.txt line 2: label 'B-Gene' is not in the task's set" in fails(
        "ncbi-disease", pretrained, out, "--data", str(folder))
    (folder / "train.txt").write_text("fever\n")
    assert "train.txt line 1: expected a word and its tag" in fails(
        "ncbi-disease", pretrained, out, "--data", str(folder))
    assert "no train file" in fails("ddi2013", pretrained, out, "--data", str(tmp_path / "empty"), "--offline")
    assert "no config.json" in fails("demo-ner", tmp_path / "nowhere", out)
    assert "positions" in fails("demo-ner", pretrained, out, "--max-length", "1000")
    lines = (pretrained / "vocab.txt").read_text().splitlines(keepends=True)
    broken = tmp_path / "broken"
    electramed.save_pretrained(electramed.load_pretrained(pretrained), broken, Tokenizer.from_file(pretrained))
    (broken / "vocab.txt").write_text("".join(lines[:-1]))
    assert "vocab_size" in fails("demo-ner", broken, out) and "vocab.txt" in fails("demo-ner", broken, out)


def test_other_options_on_a_finished_run_are_refused_by_name(pretrained, tmp_path, capsys):
    assert run("demo-re", pretrained, tmp_path) == 0
    assert run("demo-re", pretrained, tmp_path, "--batch-size", "4") == 2
    assert "--batch-size" in capsys.readouterr().err
