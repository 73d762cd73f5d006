"""Every folder we write works in transformers as it is: no warning, the same logits, the same answers.

Each head is saved once with random weights. Its folder is opened by the Auto classes and by the pipelines of
transformers, and what these say is compared with train_finetune.py --predict, or with our own model where
there is no such command. Weights are large, so that a wrong one could not hide behind four digits.
"""
import json
import logging
import math

import pytest
import torch

import data
import electramed
import train_finetune
from tokenizer import Tokenizer, learn_vocab

transformers = pytest.importorskip("transformers",
                                   reason="transformers is not installed: pip install -e '.[parity]'")

TEXTS = ["Kelmarin slowed fever in 20 patients (IL-2), p < 0.05.", "The drug, jorganux, treats fever.",
         "Fièvre fell with 3.5 mg of β-kelmarin.", "fever"]
PAIRS = [{"question": "Does kelmarin slow fever?", "passage": text} for text in TEXTS]


@pytest.fixture(scope="module", params=[True, False], ids=["lower case", "cased"])
def vocabulary(request):
    texts = [text for text in TEXTS for _ in range(20)]
    return Tokenizer(learn_vocab(texts, 200, request.param), request.param)


def large(model, seed=0):
    """Draw all weights large, and so that they can be repeated."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(centre + 0.4 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def config_for(tokenizer):
    return electramed.ElectraConfig(
        embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, generator_size=0.5).with_tokenizer(tokenizer)


def save(model, folder, tokenizer, labels=()):
    """Save a model as a fine-tuning run or a pre-training run does."""
    electramed.save_pretrained(model, folder, tokenizer, labels)
    return folder


def open_silently(auto, folder, caplog):
    """Open a folder by an Auto class of transformers: no weight is new or left over, no warning comes."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").addHandler(caplog.handler)       # its loggers do not propagate
        try:
            model, report = auto.from_pretrained(folder, output_loading_info=True)
            transformers.AutoTokenizer.from_pretrained(folder)
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records
    assert not any(report.values()), report
    return model.eval()


def batch_of(tokenizer):
    """Two rows of both segments, one of them padded."""
    rows = [tokenizer.row(TEXTS[0], TEXTS[1]), tokenizer.row(TEXTS[1])]
    return electramed.pad_rows(rows, tokenizer.pad_id)


def their_logits(model, ids, real, types):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=real, token_type_ids=types)


def predictions(task, run, lines, tmp_path, capsys):
    """Return what train_finetune.py --predict prints for some lines, read as JSON."""
    options = {"task": task, "max_length": 64, "tag_loss": "softmax"}
    (electramed.model_folder(run) / train_finetune.TASK_FILE).write_text(json.dumps(options))
    (tmp_path / "lines").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    capsys.readouterr()
    assert train_finetune.main(["--out", str(run), "--predict", str(tmp_path / "lines"),
                                "--device", "cpu"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def pipeline(task, folder, **settings):
    return transformers.pipeline(task, model=str(folder), device="cpu", **settings)


def test_their_tokenizer_gives_our_ids_and_cuts_at_the_models_length(vocabulary, tmp_path):
    save(electramed.ElectraForPretraining(config_for(vocabulary)), tmp_path, vocabulary)
    for folder in (tmp_path, tmp_path / "generator"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs.model_max_length == 64 and len(theirs("fever " * 99, truncation=True).input_ids) == 64
        for text in TEXTS:
            ours = [vocabulary.cls_id, *vocabulary.encode(text), vocabulary.sep_id]
            assert theirs(text).input_ids == ours


def test_pre_training_models_have_the_same_logits(vocabulary, tmp_path, caplog):
    model = large(electramed.ElectraForPretraining(config_for(vocabulary)))
    save(model, tmp_path, vocabulary)
    batch = batch_of(vocabulary)
    is_real = batch[1] == 1
    for auto, folder, logits in (
            (transformers.AutoModelForPreTraining, tmp_path, model.discriminator_logits(*batch)),
            (transformers.AutoModelForMaskedLM, tmp_path / "generator", model.generator_logits(*batch))):
        theirs = their_logits(open_silently(auto, folder, caplog), *batch).logits
        assert logits.std() > 0.1 and (theirs - logits)[is_real].abs().max() < 1e-5


def test_fill_mask_on_the_generators_folder_agrees(vocabulary, tmp_path):
    model = large(electramed.ElectraForPretraining(config_for(vocabulary)))
    save(model, tmp_path, vocabulary)
    ids = [vocabulary.cls_id, *vocabulary.encode("The drug"), vocabulary.mask_id,
           *vocabulary.encode("fever."), vocabulary.sep_id]
    row = torch.tensor([ids])
    ours = model.generator_logits(row, torch.ones_like(row), 0 * row)[0].softmax(-1)
    scores, pieces = ours[ids.index(vocabulary.mask_id)].topk(5)
    answers = pipeline("fill-mask", tmp_path / "generator")("The drug [MASK] fever.")
    assert [answer["token"] for answer in answers] == pieces.tolist()
    for answer, score, piece in zip(answers, scores.tolist(), pieces.tolist()):
        assert answer["score"] == pytest.approx(score, abs=5e-5)
        assert answer["token_str"] == vocabulary.pieces[piece]


def test_token_classification_with_aggregation_first_agrees_with_predict(
        vocabulary, tmp_path, caplog, capsys):
    tags = data.TASKS["demo-ner"].labels
    model = large(electramed.TokenTagger(config_for(vocabulary), len(tags)))
    batch = batch_of(vocabulary)
    with torch.no_grad():
        model.classifier.bias -= model(*batch).mean((0, 1))         # no tag is likelier than the others
    folder = save(model, tmp_path / "run/model", vocabulary, tags)
    opened = open_silently(transformers.AutoModelForTokenClassification, folder, caplog)
    theirs = their_logits(opened, *batch)
    assert (theirs.logits - model(*batch))[batch[1] == 1].abs().max() < 1e-5
    tag, found = pipeline("token-classification", folder, aggregation_strategy="first"), 0
    for text, result in zip(TEXTS, predictions("demo-ner", tmp_path / "run", TEXTS, tmp_path, capsys)):
        entities = tag(text)
        assert [(entity["start"], entity["end"], entity["entity_group"]) for entity in entities] == [
            (entity["start"], entity["end"], entity["type"]) for entity in result["entities"]]
        for theirs, ours in zip(entities, result["entities"]):
            assert float(theirs["score"]) == pytest.approx(ours["score"], abs=1e-4)
        found += len(entities)
    assert found > 3


@pytest.mark.parametrize("task", ["demo-re", "yesno", "rerank"])
def test_text_classification_agrees_with_predict(task, vocabulary, tmp_path, caplog, capsys):
    """Relations have one text, yes/no questions and ranking have pairs; ranking reports label 1."""
    labels = data.TASKS[task].labels
    model = large(electramed.SequenceClassifier(config_for(vocabulary), len(labels)))
    folder = save(model, tmp_path / "run/model", vocabulary, labels)
    batch = batch_of(vocabulary)
    opened = open_silently(transformers.AutoModelForSequenceClassification, folder, caplog)
    assert (their_logits(opened, *batch).logits - model(*batch)).abs().max() < 1e-5
    classify = pipeline("text-classification", folder)
    is_pair = task != "demo-re"
    lines = [json.dumps(pair, ensure_ascii=False) for pair in PAIRS] if is_pair else TEXTS
    results = predictions(task, tmp_path / "run", lines, tmp_path, capsys)
    assert len(results) == len(TEXTS)
    for pair, text, result in zip(PAIRS, TEXTS, results):
        asked = {"text": pair["question"], "text_pair": pair["passage"]} if is_pair else text
        scores = {answer["label"]: answer["score"] for answer in classify(asked, top_k=None)}
        assert scores.keys() == set(labels)
        if task == "rerank":
            assert result["probability"] == pytest.approx(scores["1"], abs=1e-4)
        else:
            assert result["label"] == max(scores, key=scores.get)
            assert result["score"] == pytest.approx(scores[result["label"]], abs=1e-4)


@pytest.mark.parametrize("head, kind", [
    ("ElectraForSequenceClassification", electramed.SequenceClassifier),
    ("ElectraForTokenClassification", electramed.TokenTagger),
    ("ElectraForQuestionAnswering", electramed.SpanExtractor)])
def test_a_head_that_transformers_wrote_is_read(vocabulary, tmp_path, head, kind):
    """Also a trained classifier: its hidden layer is ours."""
    labels = {} if kind is electramed.SpanExtractor else {0: "no", 1: "yes", 2: "maybe"}
    config = transformers.ElectraConfig(**json.loads(config_for(vocabulary).to_json()))
    if labels:
        config.id2label, config.label2id = labels, {name: number for number, name in labels.items()}
    theirs, batch = large(getattr(transformers, head)(config)), batch_of(vocabulary)
    theirs.save_pretrained(tmp_path)
    model, names = electramed.load_head(tmp_path)
    assert type(model) is kind and names == list(labels.values())
    logits, output = model.eval()(*batch), their_logits(theirs, *batch)
    if labels:
        assert (logits - output.logits)[batch[1] == 1 if logits.ndim == 3 else ...].abs().max() < 1e-5
    else:
        inside = logits[:, :, 0] > -1e3
        assert (logits[:, :, 0] - output.start_logits)[inside].abs().max() < 1e-5


def test_question_answering_has_the_same_logits_in_the_passage(vocabulary, tmp_path, caplog):
    """Ours rules out what lies outside of the passage. transformers 5 has no pipeline for this head."""
    model = large(electramed.SpanExtractor(config_for(vocabulary)))
    folder = save(model, tmp_path / "run/model", vocabulary)
    batch = batch_of(vocabulary)
    opened = open_silently(transformers.AutoModelForQuestionAnswering, folder, caplog)
    theirs, logits = their_logits(opened, *batch), model(*batch)
    is_allowed = logits[:, :, 0] > -1e3
    assert is_allowed.sum() > 5
    for ours, start_or_end in ((logits[:, :, 0], theirs.start_logits), (logits[:, :, 1], theirs.end_logits)):
        assert (ours - start_or_end)[is_allowed].abs().max() < 1e-5


def test_question_answering_agrees_with_predict(vocabulary, tmp_path, capsys):
    """The spans of transformers' logits, best first, are the answers of --predict.

    A score there is a softmax over the spans that are kept, so that the scores' quotients are compared.
    """
    model = large(electramed.SpanExtractor(config_for(vocabulary)))
    folder = save(model, tmp_path / "run/model", vocabulary)
    pair = PAIRS[0]
    result, = predictions("demo-qa", tmp_path / "run", [json.dumps(pair)], tmp_path, capsys)
    row = transformers.AutoTokenizer.from_pretrained(folder)(
        pair["question"], pair["passage"], return_tensors="pt", return_offsets_mapping=True)
    offsets = row.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        output = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()(**row)
    passage = [position for position, kind in enumerate(row["token_type_ids"][0].tolist()) if kind][:-1]
    spans = {}
    for first in passage:
        for last in passage:
            if first <= last:
                score = output.start_logits[0, first] + output.end_logits[0, last]
                spans[offsets[first][0], offsets[last][1]] = score.item()
    best = sorted(spans, key=lambda span: -spans[span])
    assert result["answers"]
    for span, answer in zip(best, result["answers"]):
        assert (answer["start"], answer["end"]) == span
        expected = result["answers"][0]["score"] * math.exp(spans[span] - spans[best[0]])
        assert answer["score"] == pytest.approx(expected, abs=1e-4)
