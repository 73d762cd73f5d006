"""The same step and the same loop on XLA: eight virtual devices on the CPU stand for the cores of a TPU v3-8.

torch_xla needs a torch of its own version, so these tests run in an environment of their own, which .ci/run
makes.
"""
import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import train_finetune
import train_pretrain
from electramed import (
    Adam, Device, ElectraConfig, ElectraForPretraining, load_pretrained, parameter_groups, save_pretrained)
from tokenizer import Tokenizer, learn_vocab

SIZES = ("--embedding-size 16 --hidden-size 32 --num-attention-heads 2 --intermediate-size 64 "
         "--num-hidden-layers 1 --max-length 48 --batch-size 16 --steps 20 --warmup-steps 4 "
         "--learning-rate 2e-3 --vocab-size 300 --log-every 1 --eval-every 10 --checkpoint-every 5 "
         "--keep-every 10 --seed 3").split()
HOST = Device.choose("cpu")


@pytest.fixture(scope="module", autouse=True)
def xla() -> Device:
    pytest.importorskip("torch_xla", reason="torch_xla is not installed: pip install -e '.[tpu]'",
                        exc_type=ImportError)
    os.environ.update(PJRT_DEVICE="CPU", CPU_NUM_DEVICES="8")
    device = Device.choose(tpu=True)
    assert device.mesh.size() == 8 and device.precision == "bfloat16"
    return device


@pytest.fixture(autouse=True)
def two_row_lengths(monkeypatch):
    """Each length is compiled, and a compiler for eight devices takes its time."""
    monkeypatch.setattr(data, "bucket_widths", lambda max_length: np.array([32, 48]))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(data.synthetic_corpus(200))
    return [*SIZES, "--corpus", str(path), "--out"]


@pytest.fixture(scope="module")
def prepared(arguments, tmp_path_factory):
    """Options, tokenizer and shards of a small run."""
    out = str(tmp_path_factory.mktemp("run"))
    given = train_pretrain.parse_options(train_pretrain.Options, "", [*arguments, out])
    options = train_pretrain.complete(given)
    return options, *train_pretrain.prepare_data(options)


def compilations() -> int:
    import torch_xla.debug.metrics
    return (torch_xla.debug.metrics.metric_data("CompileTime") or [0])[0]


def new_model(options, tokenizer, device, dropout) -> ElectraForPretraining:
    config = train_pretrain.network(options).with_tokenizer(tokenizer)
    torch.manual_seed(0)
    return ElectraForPretraining(dataclasses.replace(
        config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)).to(device.kind)


def run(prepared, device, dropout=0.0):
    """Make twenty steps; return the two losses, the row length and the compilations so far of each."""
    options, tokenizer, shards = prepared
    model = new_model(options, tokenizer, device, dropout)
    optimizer, order = Adam(parameter_groups(model, 0.01)), train_pretrain.BatchOrder(shards, options)
    run = train_pretrain.Run(Path(options.out), options, device, tokenizer, shards, model, optimizer)
    losses, widths, counts = [], [], []
    for step in range(options.steps):
        batch = order.batch(step, model.config)
        _, mlm_loss, discriminator_loss, _ = train_pretrain.training_step(run, step, batch).tolist()
        losses.append([mlm_loss, discriminator_loss])
        widths.append(batch.attention_mask.shape[1])
        counts.append(compilations())
    return torch.tensor(losses), widths, counts


def test_weights_that_are_tied_stay_tied(prepared, xla):
    model = new_model(*prepared[:2], xla, 0.0)
    embeddings = model.discriminator.electra.embeddings
    assert model.generator.generator_lm_head.weight is embeddings.word_embeddings.weight
    assert embeddings.word_embeddings.weight.device.type == "xla"


def test_losses_equal_the_cpus_within_1e_4_over_20_steps(prepared, xla):
    """In float32, without dropout, with the sampling as it is by default."""
    ours, _, _ = run(prepared, dataclasses.replace(xla, precision="float32"))
    theirs, _, _ = run(prepared, HOST)
    assert (ours - theirs).abs().max() < 1e-4


def test_by_default_losses_stay_near_the_cpus_and_each_row_length_is_compiled_only_at_first(
        prepared, xla, monkeypatch):
    """With bfloat16 and dropout: the first step within 0.05, all within 0.3 nats.

    Nothing is compiled any more after each row length was seen twice. Of these two both come often.
    """
    monkeypatch.setattr(data, "bucket_widths", lambda max_length: np.array([16, 48]))
    ours, widths, counts = run(prepared, xla, dropout=0.1)
    theirs, _, _ = run(prepared, HOST, dropout=0.1)
    gaps = (ours - theirs).abs().amax(1)
    assert gaps[0] < 0.05 and gaps.max() < 0.3
    warm = max([step for step, width in enumerate(widths) if width == length][1] for length in (16, 48))
    assert 0 < counts[warm] == counts[-1] and warm < 15, (widths, counts)


def test_a_run_goes_on_from_the_cpu_to_xla_and_back(arguments, tmp_path, capsys):
    """log.csv and eval.csv have the same rows as without any change, also with batches computed in two parts.

    On the way back to the CPU the run continues from the checkpoint of step 18, which XLA wrote.
    """
    moved, unmoved = tmp_path / "moved", tmp_path / "unmoved"
    assert train_pretrain.main([*arguments, str(moved)]) == 0
    shutil.copytree(moved, unmoved)
    (moved / "checkpoint-00000020.pt").unlink()
    on_xla = "--tpu --precision float32 --accumulate 2 --checkpoint-every 2".split()
    assert train_pretrain.main([*arguments, str(moved), *on_xla]) == 0
    assert "xla float32 x 8, continuing after step 15" in capsys.readouterr().err
    (moved / "checkpoint-00000020.pt").unlink()
    assert train_pretrain.main([*arguments, str(moved)]) == 0
    assert "cpu float32 x 1, continuing after step 18" in capsys.readouterr().err
    for name, columns in (("log.csv", slice(0, 4)), ("eval.csv", slice(None))):
        ours, theirs = ([row.split(",")[columns] for row in (folder / name).read_text().splitlines()[1:]]
                        for folder in (moved, unmoved))
        assert [row[0] for row in ours] == [row[0] for row in theirs]
        assert torch.allclose(*(torch.tensor([[float(value) for value in row] for row in rows])
                                for rows in (ours, theirs)), rtol=1e-3, atol=1e-4), name
    ours, theirs = (load_pretrained(folder).state_dict() for folder in (moved, unmoved))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)


@pytest.mark.parametrize("more, message", [
    (["--device", "cpu"], "drop --device"), (["--compile"], "drop --device and --compile"),
    (["--batch-size", "12"], "--batch-size 12 does not divide by 8")])
def test_what_xla_cannot_do_is_said(arguments, tmp_path, capsys, more, message):
    assert train_pretrain.main([*arguments, str(tmp_path), "--tpu", *more]) == 2
    assert message in capsys.readouterr().err


# Fine-tuning.

@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A small model with weights as they were drawn, and a vocabulary of the synthetic corpus."""
    tokenizer = Tokenizer(learn_vocab(data.synthetic_corpus(100).splitlines(), 300))
    config = ElectraConfig(embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=64, max_position_embeddings=48).with_tokenizer(tokenizer)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    save_pretrained(ElectraForPretraining(config), folder, tokenizer)
    return folder


@pytest.fixture
def count_epochs(monkeypatch) -> list[int]:
    """The compilations so far, whenever the batches of an epoch or an evaluation are planned.

    There is one row length, because each one is compiled, for training and for evaluation.
    """
    counts: list[int] = []
    monkeypatch.setattr(data, "bucket_widths", lambda max_length: np.array([max_length]))
    plan = data.plan_batches
    monkeypatch.setattr(data, "plan_batches", lambda *arguments, **more: counts.append(compilations())
                        or plan(*arguments, **more))
    monkeypatch.setattr(data, "DEMO_SPLITS", {split: (first, min(size, 60))
                                              for split, (first, size) in data.DEMO_SPLITS.items()})
    return counts


@pytest.mark.parametrize("task", ["demo-ner", "demo-re", "demo-qa", "classify", "rank"])
def test_finetune_losses_and_scores_equal_the_cpus_and_after_an_epoch_nothing_is_compiled(
        task, start, count_epochs, tmp_path, capsys):
    """In float32, without dropout. Batches of 12 rows do not divide by 8 devices: they are filled up."""
    more = []
    if task in ("classify", "rank"):
        for split in ("train", "dev", "test"):
            (tmp_path / f"{split}.tsv").write_text("".join(
                f"{number % 3 // 2}\tdoes {split} help {number} ?\t{'it helps ' * (number % 7)}\n"
                for number in range(60)))
        more = ["--data", str(tmp_path)]
    command = [*f"--task {task} --init {start} --epochs 3 --batch-size 12 --max-length 48 --dropout 0 "
               "--learning-rate 1e-3 --precision float32".split(), *more]
    assert train_finetune.main([*command, "--tpu", "--out", str(tmp_path / "xla")]) == 0
    # Planned: epoch 1, its evaluation, epoch 2, ..., the test set.
    assert 0 < count_epochs[2] == count_epochs[5], count_epochs
    assert train_finetune.main([*command, "--device", "cpu", "--out", str(tmp_path / "cpu")]) == 0
    ours, theirs = (np.loadtxt(tmp_path / name / "seed-0" / "log.csv", delimiter=",", skiprows=1)
                    for name in ("xla", "cpu"))
    assert ours.shape == (3, 3) and np.abs(ours - theirs).max() < 1e-4
    ours, theirs = (json.loads((tmp_path / name / "seed-0" / "scores.json").read_text())["test"]
                    for name in ("xla", "cpu"))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_finetune_finished_seeds_stay_and_more_can_be_trained_elsewhere(start, count_epochs, tmp_path):
    command = [*f"--task demo-re --init {start} --epochs 1 --max-length 48".split(), "--out", str(tmp_path)]
    assert train_finetune.main([*command, "--tpu"]) == 0
    first = (tmp_path / "seed-0" / "scores.json").read_bytes()
    assert train_finetune.main([*command, "--seeds", "2"]) == 0
    assert (tmp_path / "seed-0" / "scores.json").read_bytes() == first
    assert (tmp_path / "seed-1" / "scores.json").is_file()


def test_finetune_refuses_a_device_beside_tpu(start, tmp_path, capsys):
    command = ["--init", str(start), "--out", str(tmp_path)]
    assert train_finetune.main([*command, "--tpu", "--device", "cpu"]) == 2
    assert "--tpu computes on XLA devices: drop --device" in capsys.readouterr().err
