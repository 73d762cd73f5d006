"""Pre-training from end to end, on networks of a few thousand weights.

    Helpers and a finished run of twelve steps, which many tests start from
    Presets and options
    A whole run                     its files, its losses, its learning rate
    Batches, masks and seeds        properties
    Evaluation
    Stopping and resuming           signals, kill -9, damaged checkpoints, a full disk; at any step (property)
    Several devices or parts        --accumulate, torchrun, --tpu without torch_xla
    bfloat16 on a CPU
    Stages and objectives           --init, --objective mlm
    What every run has              options from a dataclass, the record of a run
    Wrong input                     one line on stderr, exit status 2
    What is read of a corpus
"""
import csv
import dataclasses
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import electramed
import train_pretrain
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--embedding-size 8 --hidden-size 16 --num-attention-heads 2 --intermediate-size 32 --max-length 48 "
         "--batch-size 8 --steps 12 --warmup-steps 4 --learning-rate 2e-3 --initializer-range 0.02 "
         "--vocab-size 200 --log-every 1 --eval-every 6 --checkpoint-every 4 --keep-every 4").split()
CPU = electramed.Device("cpu", "float32")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(data.synthetic_corpus(200))
    return path


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> Path:
    """An unbroken run of twelve steps."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert train_pretrain.main(flags(corpus, out)) == 0
    return out


def flags(corpus: Path, out: Path, *more: str) -> list[str]:
    """The options of a small run; `more` come last and win."""
    return [*SMALL, "--corpus", str(corpus), "--out", str(out), *more]


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    """The same run as a process of its own."""
    return [sys.executable, str(ROOT / "train_pretrain.py"), *flags(corpus, out, *more)]


def new_run(finished: Path, out: Path, **changes) -> train_pretrain.Run:
    """An untrained small run on the shards of the finished one, without the command line."""
    parsed = train_pretrain.parse_options(train_pretrain.Options, "", [*SMALL, "--out", str(out)])
    options = dataclasses.replace(train_pretrain.complete(parsed), **changes)
    tokenizer = Tokenizer.from_file(finished)
    torch.manual_seed(0)
    model = electramed.ElectraForPretraining(train_pretrain.network(options).with_tokenizer(tokenizer))
    optimizer = electramed.Adam(electramed.parameter_groups(model, options.weight_decay))
    shards = data.open_shards(finished / "shards")
    return train_pretrain.Run(out, options, CPU, tokenizer, shards, model, optimizer)


@pytest.fixture(scope="module")
def untrained(finished, tmp_path_factory) -> train_pretrain.Run:
    """A small run before its first step, for tests that leave its weights alone."""
    return new_run(finished, tmp_path_factory.mktemp("untrained"))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoint-00000012.pt", weights_only=True)["model"]


def assert_same_run(out: Path, finished: Path) -> None:
    """Same weights bit by bit, every row of log.csv once and with the same losses."""
    ours, theirs = weights(out), weights(finished)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    columns = ("step", "learning_rate", "mlm_loss", "discriminator_loss")
    for ours, theirs in zip(rows(out / "log.csv"), rows(finished / "log.csv"), strict=True):
        assert [ours[name] for name in columns] == [theirs[name] for name in columns]
    assert rows(out / "eval.csv") == rows(finished / "eval.csv")


def fails(arguments: list[str], capsys) -> str:
    """Run with bad input, which must end with status 2; return the last line on stderr, the error."""
    assert train_pretrain.main(arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- Presets and options ---

@pytest.mark.parametrize("preset, sizes, schedule", [
    ("tiny", (2, 128, 2, 512, 128), None),
    ("small", (12, 256, 4, 1024, 128), (5e-4, 128, 128, 1_000_000)),
    ("base", (12, 768, 12, 3072, 768), (2e-4, 256, 512, 1_000_000)),
    ("large", (24, 1024, 16, 4096, 1024), (2e-4, 2048, 512, 1_000_000)),
    ("electramed", (12, 768, 12, 3072, 768), (2e-4, 256, 512, 1_000_000)),
    ("bio-electra", (12, 256, 4, 1024, 128), (5e-4, 64, 256, 1_800_000)),
    ("bio-electra-pp", (12, 256, 4, 1024, 128), (5e-4, 64, 256, 1_800_000))])
def test_presets_have_the_published_hyper_parameters(preset, sizes, schedule):
    options = train_pretrain.complete(train_pretrain.Options(preset=preset))
    assert sizes == (options.num_hidden_layers, options.hidden_size, options.num_attention_heads,
                     options.intermediate_size, options.embedding_size)
    if schedule:
        assert schedule == (options.learning_rate, options.batch_size, options.max_length, options.steps)
        assert (options.warmup_steps, options.weight_decay, options.dropout) == (10_000, 0.01, 0.1)
    assert options.mask_prob == (0.25 if preset == "large" else 0.15)
    assert options.cased == preset.startswith("bio-electra")
    assert options.vocab_size == {"electramed": 31090, "bio-electra": 31620, "bio-electra-pp": 31620,
                                  "tiny": options.vocab_size}.get(preset, 30522)


def test_the_command_line_wins_over_the_preset():
    options = train_pretrain.complete(train_pretrain.Options(preset="base", learning_rate=1e-5, dropout=0.0))
    assert (options.learning_rate, options.dropout, options.batch_size) == (1e-5, 0.0, 256)


def test_help_shows_the_values_of_each_preset(capsys):
    with pytest.raises(SystemExit):
        train_pretrain.main(["--help"])
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")        # as if it were on one line
    tiny = train_pretrain.SCHEDULES["tiny"]["steps"]
    for part in (f"number of updates (tiny: {tiny}; small: 1000000; base: 1000000; large: 1000000; "
                 "electramed: 1000000; bio-electra: 1800000; bio-electra-pp: 1800000)", "large: 2048;"):
        assert part in text
    open_fields = [name for name in train_pretrain.preset_values("tiny") if name != "keep_every"]
    assert text.count("(tiny") == len(open_fields)


@given(preset=st.sampled_from(sorted(train_pretrain.SCHEDULES)), steps=st.none() | st.integers(1, 10**7),
       dropout=st.none() | st.floats(0, 0.9), cased=st.none() | st.booleans())
def test_completed_options_keep_what_was_given_and_leave_nothing_open(preset, steps, dropout, cased):
    given_options = train_pretrain.Options(preset=preset, steps=steps, dropout=dropout, cased=cased)
    options = train_pretrain.complete(given_options)
    for name in ("steps", "dropout", "cased"):
        assert getattr(given_options, name) in (None, getattr(options, name))
    may_be_none = {"language", "vocab", "init", "max_minutes", "precision"}
    assert all(value is not None for name, value in vars(options).items() if name not in may_be_none)
    assert train_pretrain.complete(options) == options


# --- A whole run ---

def test_a_run_leaves_log_evaluation_checkpoints_and_a_model_that_loads(finished):
    log = rows(finished / "log.csv")
    assert [int(row["step"]) for row in log] == list(range(1, 13))
    first = {name: float(value) for name, value in log[0].items()}
    assert first["learning_rate"] == 0 and all(float(row["tokens_per_second"]) > 0 for row in log)
    expected = math.log(200) + 50 * math.log(2)                 # the loss of an untrained model, V = 200
    assert first["mlm_loss"] + 50 * first["discriminator_loss"] == pytest.approx(expected, rel=0.03)
    assert [int(row["step"]) for row in rows(finished / "eval.csv")] == [6, 12]
    assert sorted(path.name for path in finished.glob("checkpoint-*")) == [
        "checkpoint-00000008.pt", "checkpoint-00000012.pt"]
    model = electramed.load_pretrained(finished)
    assert all(torch.equal(tensor, weights(finished)[name]) for name, tensor in model.state_dict().items())
    assert len(Tokenizer.from_file(finished / "model").pieces) == model.config.vocab_size


def test_the_logged_learning_rate_is_the_schedule(finished):
    for row in rows(finished / "log.csv"):
        step = int(row["step"]) - 1
        expected = 2e-3 * (1 - step / 12) * min(1, step / 4)
        assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-4)


def test_repeating_a_finished_run_changes_nothing_and_prints_the_summary_again(finished, corpus, capsys):
    before = (finished / "log.csv").read_text()
    assert train_pretrain.main([*SMALL, "--corpus", str(corpus), "--out", str(finished)]) == 0
    assert (finished / "log.csv").read_text() == before
    assert "unigram entropy" in capsys.readouterr().out


def test_training_lowers_both_losses_on_held_out_documents(corpus, tmp_path):
    wider = ("--steps 120 --hidden-size 64 --embedding-size 64 --learning-rate 2e-3 --initializer-range 0.05 "
             "--log-every 60 --eval-every 60 --checkpoint-every 120 --keep-every 120").split()
    assert train_pretrain.main(flags(corpus, tmp_path, *wider)) == 0
    first, last = rows(tmp_path / "log.csv")[0], rows(tmp_path / "eval.csv")[-1]
    assert float(last["mlm_loss"]) < float(first["mlm_loss"]) - 0.3
    assert float(last["discriminator_loss"]) < float(first["discriminator_loss"]) - 0.2


def test_an_update_clips_the_gradient_to_norm_one(finished, tmp_path):
    """After one update the first moments are a tenth of the clipped gradient: their norm is 0.1."""
    run = new_run(finished, tmp_path)
    batch = train_pretrain.BatchOrder(run.shards, run.options).batch(0, run.model.config)
    *_, norm = train_pretrain.training_step(run, 0, batch).tolist()
    moments = torch.cat([state["exp_avg"].flatten() for state in run.optimizer.state.values()])
    assert norm > 1
    assert moments.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_a_batch_passes_five_functions_on_its_way_to_its_gradient(finished, tmp_path):
    """From run_steps to loss.backward(), in two files; at loss.backward() two of the five are on the stack.

    The network's own parts, which its forward() calls, are not counted.
    """
    run, called, at_backward = new_run(finished, tmp_path, steps=1), {}, []

    def watch(frame, event, _):
        if event != "call":
            return
        stack = [frame]
        while frame := frame.f_back:
            stack.append(frame)
        ours = [each for each in stack if os.path.dirname(each.f_code.co_filename) == str(ROOT)]
        names = [each.f_code.co_name for each in ours]
        if "training_step" in names and stack[0].f_code.co_name == "backward":
            at_backward.extend(names[:names.index("run_steps") + 1])
            sys.setprofile(None)
        elif "training_step" in names and ours[0] is stack[0] and "forward" not in names[1:]:
            called[names[0]] = os.path.basename(ours[0].f_code.co_filename)

    sys.setprofile(watch)
    try:
        train_pretrain.run_steps(run, 0, StopAfter(-1), math.inf)
    finally:
        sys.setprofile(None)
    without_a_batch = {"seed", "seed_for", "autocast", "<genexpr>"}
    passed = {name: file for name, file in called.items() if name not in without_a_batch}
    assert at_backward == ["training_step", "run_steps"]
    assert set(passed) == {"training_step", "on", "put", "forward"}                     # and run_steps
    assert set(passed.values()) == {"train_pretrain.py", "electramed.py"}


# --- Batches, masks and seeds ---

@st.composite
def small_corpora(draw) -> tuple[types.SimpleNamespace, train_pretrain.Options]:
    """The lengths of some examples, of which some are for training, and options that suit them."""
    lengths = np.array(draw(st.lists(st.integers(2, 64), min_size=1, max_size=60)))
    is_train = np.array(draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    is_train[draw(st.integers(0, len(lengths) - 1))] = True
    train = np.flatnonzero(is_train)
    options = train_pretrain.Options(batch_size=draw(st.integers(1, len(train))), max_length=64,
                                     seed=draw(st.integers(0, 2**32)))
    return types.SimpleNamespace(lengths=lengths, train=train), options


@given(small_corpora(), st.integers(0, 3))
def test_in_an_epoch_no_example_comes_twice_and_fewer_than_one_batch_are_left_out(corpus, epoch):
    shards, options = corpus
    order = train_pretrain.BatchOrder(shards, options)
    steps = range(epoch * order.per_epoch, (epoch + 1) * order.per_epoch)
    drawn = np.concatenate([order.examples(step)[1] for step in steps])
    assert len(drawn) == len(set(drawn)) and set(drawn) <= set(shards.train)
    assert len(drawn) % options.batch_size == 0 and 0 <= len(shards.train) - len(drawn) < options.batch_size


@given(small_corpora(), st.integers(0, 200))
def test_a_batch_holds_batch_size_examples_that_fit_into_its_rows(corpus, step):
    shards, options = corpus
    width, numbers = train_pretrain.BatchOrder(shards, options).examples(step)
    assert len(numbers) == options.batch_size
    assert shards.lengths[numbers].max() <= width <= options.max_length


@given(small_corpora(), st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_the_examples_of_a_step_depend_on_seed_and_step_but_not_on_the_steps_before(corpus, steps):
    order = train_pretrain.BatchOrder(*corpus)
    for step in steps:                                          # in any order, also the same one twice
        width, numbers = order.examples(step)
        fresh_width, fresh_numbers = train_pretrain.BatchOrder(*corpus).examples(step)
        assert width == fresh_width and np.array_equal(numbers, fresh_numbers)


@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 2**33))
def test_seeds_are_reproducible_differ_by_purpose_and_suit_torch(seed, step):
    purposes = ("weights", "order", "mask", "dropout")
    seeds = [data.seed_for(seed, step, purpose) for purpose in purposes]
    assert seeds == [data.seed_for(seed, step, purpose) for purpose in purposes]
    assert len(set(seeds)) == len(purposes)
    assert all(0 <= each < 2**63 for each in seeds)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), step=st.integers(0, 2**33), first=st.integers(0, 500))
def test_a_mask_depends_on_seed_and_step_alone_and_the_originals_restore_the_text(
        untrained, seed, step, first):
    shards, config, numbers = untrained.shards, untrained.model.config, np.arange(first, first + 4)
    batch, again, later = (train_pretrain.read_batch(shards, numbers, 48, config, seed, number)
                           for number in (step, step, step + 1))
    assert torch.equal(batch.masked.input_ids, again.masked.input_ids)
    assert torch.equal(batch.masked.positions, again.masked.positions)
    assert not torch.equal(batch.masked.positions, later.masked.positions)
    restored = batch.masked.input_ids.scatter(1, batch.masked.positions, batch.masked.original_ids)
    rows = [shards.example(number) for number in numbers]
    input_ids, attention_mask, _ = electramed.pad_rows(rows, config.pad_token_id, 48)
    assert torch.equal(restored, input_ids)
    assert batch.slot_total == (batch.masked.weights > 0).sum()
    assert batch.token_total == attention_mask.sum()


@settings(max_examples=5)
@given(step=st.integers(0, 1000), cut=st.integers(1, 7))
def test_the_losses_of_the_parts_of_a_batch_add_up_to_those_of_the_whole(untrained, step, cut):
    """Each row has its own uniform numbers, and all parts are divided by the same totals."""
    order = train_pretrain.BatchOrder(untrained.shards, untrained.options)
    batch = order.batch(step, untrained.model.config)
    with torch.no_grad():
        whole, upper, lower = (untrained.model(*batch.on(CPU, slice(start, stop)))
                               for start, stop in ((0, 8), (0, cut), (cut, 8)))
    assert torch.equal(whole.is_replaced, torch.cat([upper.is_replaced, lower.is_replaced]))
    for name in ("loss", "mlm_loss", "discriminator_loss"):
        parts = getattr(upper, name) + getattr(lower, name)
        assert parts.item() == pytest.approx(getattr(whole, name).item(), rel=1e-5)


# --- Evaluation ---

def test_padding_counts_neither_in_the_loss_nor_in_the_auc_on_held_out_documents(untrained):
    """There is one judgement for each real token. The official code counts padding among the originals."""
    found = train_pretrain.held_out_outputs(untrained)
    lengths = untrained.shards.lengths[untrained.shards.held_out[:train_pretrain.EVALUATION_EXAMPLES]]
    assert len(found.logits) == len(found.is_replaced) == lengths.sum()
    assert len(set(lengths)) > 1                                    # so there is padding


def test_the_blind_masked_token_loss_is_the_entropy_of_the_ordinary_tokens(untrained):
    shards = untrained.shards
    ids = np.concatenate([shards.example(number)[0] for number in shards.train])
    ordinary = ids[(ids != 2) & (ids != 3)]                         # not [CLS], not [SEP]
    shares = np.array([np.mean(ordinary == i) for i in np.unique(ordinary)])
    is_replaced = np.array([True, False, False, False])
    blind_mlm, blind_replaced = train_pretrain.blind_baselines(untrained, is_replaced)
    assert blind_mlm == pytest.approx(-(shares * np.log(shares)).sum())
    assert blind_replaced == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


def held_out(ids, is_replaced, logits) -> train_pretrain.HeldOut:
    """What two networks said about tokens; the generator's part does not matter here."""
    tokens = [np.asarray(values) for values in (ids, logits, is_replaced)]
    return train_pretrain.HeldOut(np.ones(3), np.ones(3, bool), *tokens)


def test_the_frequency_baseline_worked_by_hand():
    """Wordpiece 1 was replaced twice in three times in the first half, wordpiece 2 never; the rate is 3 / 8.

    The second half is judged by these counts: 1 gets (2 + 5 * 3 / 8) / (3 + 5) = 0.48, 2 gets 1.875 / 6,
    and 3, which was not seen, 0.375. The first half by those of the second: 0.36 for 1, 0.31 for 2.
    """
    ids, is_replaced = [1, 1, 1, 2, 1, 1, 2, 3], np.array([1, 1, 0, 0, 0, 0, 0, 1], bool)
    scores = [1.875 / 7] * 3 + [1.875 / 6] + [3.875 / 8] * 2 + [1.875 / 6, 0.375]
    expected = train_pretrain.metrics.roc_auc(is_replaced, scores)
    assert train_pretrain.frequency_auc(held_out(ids, is_replaced, scores)) == pytest.approx(expected)


@given(st.integers(0, 2 ** 32))
def test_frequencies_alone_say_all_where_they_decide_and_nothing_where_they_do_not(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, 4000)
    assert train_pretrain.frequency_auc(held_out(ids, ids > 2, ids)) == 1
    by_chance = rng.random(4000) < 0.2
    blind = train_pretrain.frequency_auc(held_out(ids, by_chance, ids))
    assert abs(blind - 0.5) < 0.075                     # over six standard errors: no seed is that unlucky


def described(ids, is_replaced, logits) -> str:
    outputs = held_out(ids, is_replaced, logits)
    return train_pretrain.describe_discriminator(train_pretrain.evaluate(1, outputs), outputs)


def test_the_state_of_a_discriminator_is_named():
    """Wordpiece 1 is suspicious: who knows that alone is on the plateau, who sees more is learning."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2, 4000)
    is_replaced = rng.random(4000) < np.where(ids, 0.3, 0.1)
    assert "has collapsed: its logits do not depend" in described(ids, is_replaced, np.full(4000, -2.0))
    assert "is on a blind plateau: AUC 0.6" in described(ids, is_replaced, ids - 2.0)
    assert "is learning: AUC 0.7" in described(ids, is_replaced, is_replaced + rng.normal(size=4000))


def test_a_discriminator_that_collapses_while_it_trains_is_named(corpus, tmp_path, capsys):
    """At fifty times the right learning rate its last layers forget the text within a few steps."""
    arguments = flags(corpus, tmp_path, "--learning-rate", "0.1", "--warmup-steps", "1", "--steps", "120",
                      "--num-hidden-layers", "4", "--eval-every", "120")
    assert train_pretrain.main(arguments) == 0
    assert "step 120: the discriminator has collapsed" in capsys.readouterr().err
    [row] = rows(tmp_path / "eval.csv")
    assert float(row["discriminator_logit_sd"]) < 0.01 and float(row["mlm_loss"]) < 10


@pytest.mark.parametrize("objective, network", [("electra", "discriminator"), ("electra", "generator"),
                                                ("mlm", "")])
def test_an_evaluation_that_is_not_finite_ends_the_run_as_a_loss_does(
        objective, network, corpus, tmp_path, capsys):
    """A finished run whose weights have become nan: repeating its command would praise its model."""
    arguments = flags(corpus, tmp_path, "--objective", objective, "--steps", "1")
    assert train_pretrain.main(arguments) == 0
    path = tmp_path / "checkpoint-00000001.pt"
    checkpoint = torch.load(path, weights_only=True)
    for name, tensor in checkpoint["model"].items():
        if name.startswith(network) and "encoder" in name:
            tensor.fill_(math.nan)
    torch.save(checkpoint, path)
    capsys.readouterr()
    assert train_pretrain.main(arguments) == 2
    said = capsys.readouterr()
    assert "step 1: the losses on held-out documents are not finite: start again" in said.err
    assert "next:" not in said.out


# --- Stopping and resuming ---

@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stopped_run_continues_to_the_same_weights(number, status, corpus, finished, tmp_path):
    process = subprocess.Popen(command(corpus, tmp_path), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "log.csv").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    if "stopped after step" in said:                        # on a fast machine the run may be over
        assert process.returncode == status
    assert train_pretrain.main(flags(corpus, tmp_path)) == 0
    assert_same_run(tmp_path, finished)


class StopAfter:
    """Stand in for Stop: report SIGTERM when the loop asks for the nth time. It asks once after each step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @property
    def signal(self) -> int | None:
        self.left -= 1
        return signal.SIGTERM if self.left == 0 else None


@settings(max_examples=4)
@given(stops=st.lists(st.integers(1, 3), min_size=1, max_size=3), seed=st.integers(0, 2**32),
       dropout=st.sampled_from([0, 0.1]))
def test_resuming_at_any_step_equals_an_unbroken_run(finished, tmp_path_factory, stops, seed, dropout):
    """Six steps, stopped after each of `stops` more; each time a new model continues from the checkpoint."""
    ends = []
    for pauses in ([], stops):
        out, step = tmp_path_factory.mktemp("paused"), 0
        for steps in (*pauses, -1):                                 # -1: not stopped
            run = new_run(finished, out, steps=6, seed=seed, dropout=dropout, keep_every=100)
            assert electramed.load_checkpoint(out, run.model, run.optimizer) == step
            expected = min(6, step + steps) if steps > 0 else 6
            step = train_pretrain.run_steps(run, step, StopAfter(steps), math.inf)
            assert step == expected
        log = [(row["step"], row["mlm_loss"], row["discriminator_loss"]) for row in rows(out / "log.csv")]
        ends.append((log, rows(out / "eval.csv"), run.model.state_dict()))
    (unbroken_log, unbroken_scores, unbroken), (log, scores, resumed) = ends
    assert log == unbroken_log and scores == unbroken_scores
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


def kill_and_repeat(corpus: Path, out: Path, kills: int, seconds: tuple[float, float]) -> int:
    """Start the run and kill -9 it at a random moment, again and again; then let it end.

    returns   how many times it was still running when it was killed
    """
    generator, landed = random.Random(0), 0
    for _ in range(kills):
        process = subprocess.Popen(command(corpus, out, "--checkpoint-every", "1"), stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(*seconds))
        landed += process.poll() is None
        process.kill()
        process.wait()
    assert train_pretrain.main(flags(corpus, out)) == 0
    return landed


def test_a_killed_run_continues_to_the_same_weights(corpus, finished, tmp_path):
    assert kill_and_repeat(corpus, tmp_path, 2, (0.3, 3.0)) > 0
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
def test_a_run_killed_twenty_times_continues_to_the_same_weights(corpus, finished, tmp_path):
    assert kill_and_repeat(corpus, tmp_path, 20, (0.5, 6.0)) > 5
    assert_same_run(tmp_path, finished)


def test_a_checkpoint_follows_each_model_that_stays(corpus, finished, tmp_path, capsys):
    """Killed after it, a run cannot go on with other options, whose models would stand beside this one."""
    more = ("--steps", "7", "--keep-every", "5", "--checkpoint-every", "100", "--vocab", str(finished))
    assert train_pretrain.main(flags(corpus, tmp_path, *more)) == 0
    assert [path.name for path in sorted(tmp_path.glob("*.pt"))] == [
        "checkpoint-00000005.pt", "checkpoint-00000007.pt"]
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "checkpoint-00000007.pt").unlink()                  # as if it had been killed after step 5
    assert "now 0.01" in fails(flags(corpus, tmp_path, *more, "--learning-rate", "0.01"), capsys)


def test_copies_of_checkpoints_that_the_user_made_are_left_alone(corpus, tmp_path, capsys):
    assert train_pretrain.main(flags(corpus, tmp_path)) == 0
    content = (tmp_path / "checkpoint-00000008.pt").read_bytes()
    for name in ("checkpoint-00000008-good.pt", "checkpoint-backup.pt"):
        (tmp_path / name).write_bytes(content)
    assert train_pretrain.main(flags(corpus, tmp_path)) == 0
    assert "continuing after step 12" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.pt")} == {
        f"checkpoint-{name}.pt" for name in ("00000008-good", "00000008", "00000012", "backup")}


def test_max_minutes_stops_and_the_same_command_continues(corpus, finished, tmp_path, capsys):
    arguments = flags(corpus, tmp_path)
    assert train_pretrain.main([*arguments, "--max-minutes", "0"]) == 0
    assert "stopped after step 0 of 12" in capsys.readouterr().err
    assert train_pretrain.main(arguments) == 0
    assert_same_run(tmp_path, finished)


def test_opening_a_log_drops_the_rows_that_will_be_run_again_and_a_torn_one(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,0.4\n3,0.3\n4,0")
    log = train_pretrain.CsvLog(path, 2, ("step", "loss"))
    log.write(3, 0.25)
    assert path.read_text() == "step,loss\n1,0.5\n2,0.4\n3,0.25\n"


@given(losses=st.lists(st.floats(0, 100), max_size=8), step=st.integers(0, 8), cut=st.integers(0, 40))
def test_a_log_keeps_the_rows_up_to_the_checkpoint_wherever_it_was_torn_after_them(
        tmp_path_factory, losses, step, cut):
    path = tmp_path_factory.mktemp("log") / "log.csv"
    log = train_pretrain.CsvLog(path, 0, ("step", "loss"))
    for number, loss in enumerate(losses, start=1):
        log.write(number, loss)
    kept = "".join(path.read_text().splitlines(keepends=True)[:1 + step])       # the header and `step` rows
    path.write_text(path.read_text()[:len(kept) + cut])
    train_pretrain.CsvLog(path, step, ("step", "loss"))
    assert path.read_text() == kept


def without_the_last_checkpoint(finished: Path, out: Path) -> Path:
    """Copy the finished run as it was between steps 8 and 12; return its checkpoint."""
    shutil.copytree(finished, out, dirs_exist_ok=True)
    (out / "checkpoint-00000012.pt").unlink()
    return out / "checkpoint-00000008.pt"


def other_tensors(content: bytes) -> bytes:
    """The checkpoint with the weights of another model."""
    buffer, checkpoint = io.BytesIO(), torch.load(io.BytesIO(content), weights_only=True)
    torch.save({**checkpoint, "model": {"weight": torch.zeros(3)}}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:-2000], lambda content: bytes(len(content)),
    lambda content: content[:60_000] + bytes(1000) + content[61_000:], other_tensors],
    ids=["empty", "cut off", "zeros", "a block of zeros", "another model"])
def test_after_a_damaged_checkpoint_the_run_continues_from_the_one_before_it(
        damage, corpus, finished, tmp_path, capsys):
    good = without_the_last_checkpoint(finished, tmp_path)
    newest = tmp_path / "checkpoint-00000010.pt"
    newest.write_bytes(damage(good.read_bytes()))
    assert train_pretrain.main(flags(corpus, tmp_path)) == 0
    said = capsys.readouterr().err
    assert f"{newest} is damaged" in said and "continuing after step 8" in said
    assert_same_run(tmp_path, finished)


def test_a_checkpoint_of_another_run_is_refused_by_name(corpus, finished, tmp_path, capsys):
    """Copied into a run with another learning rate, it used to be continued from."""
    arguments = flags(corpus, tmp_path, "--vocab", str(finished))
    assert train_pretrain.main([*arguments, "--max-minutes", "0"]) == 0
    shutil.copy(finished / "checkpoint-00000008.pt", tmp_path)
    assert train_pretrain.main(arguments) == 2
    said = capsys.readouterr().err
    assert "checkpoint-00000008.pt" in said and "belongs to another run, with other options or files" in said


def test_when_all_checkpoints_are_damaged_nothing_is_renamed(corpus, finished, tmp_path, capsys):
    without_the_last_checkpoint(finished, tmp_path).write_bytes(b"")
    assert "no checkpoint is readable" in fails(flags(corpus, tmp_path), capsys)
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-00000008.pt"]


def test_a_full_disk_is_reported_and_leaves_the_earlier_checkpoint_whole(corpus, finished, tmp_path, capsys):
    good = without_the_last_checkpoint(finished, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may become larger than 100,000 bytes; a checkpoint would be.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        message = fails(flags(corpus, tmp_path), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "checkpoint-00000012.pt could not be written" in message and "make room" in message
    assert list(tmp_path.glob("checkpoint*")) == [good] and not list(tmp_path.rglob("*.unfinished"))
    assert train_pretrain.main(flags(corpus, tmp_path)) == 0
    assert_same_run(tmp_path, finished)


def test_checkpoints_are_also_made_by_the_clock(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(train_pretrain, "CHECKPOINT_SECONDS", 0)
    arguments = flags(corpus, tmp_path, "--checkpoint-every", "1000", "--steps", "5")
    assert train_pretrain.main(arguments) == 0
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == [
        "checkpoint-00000004.pt", "checkpoint-00000005.pt"]


# --- Several devices or parts ---

def assert_equal_within_rounding(out: Path, finished: Path) -> None:
    ours, theirs = weights(out), weights(finished)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    for ours, theirs in zip(rows(out / "log.csv"), rows(finished / "log.csv"), strict=True):
        assert ours["step"] == theirs["step"]
        for name in ("learning_rate", "mlm_loss", "discriminator_loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5, abs=1e-8)


# On a GPU runs are in bfloat16, where sums in another order differ by more than rounding in float32.
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="compares float32 runs, not bfloat16 ones")


@on_a_cpu
def test_a_batch_computed_in_parts_gives_the_same_losses_and_weights(corpus, finished, tmp_path):
    """Without dropout; and a run that has begun may continue with other parts."""
    good = without_the_last_checkpoint(finished, tmp_path / "begun")
    for out in (tmp_path / "whole", good.parent):
        assert train_pretrain.main(flags(corpus, out, "--accumulate", "4")) == 0
        assert_equal_within_rounding(out, finished)


def torchrun(corpus: Path, out: Path, *more: str) -> subprocess.Popen:
    """Start two processes on the CPU, which exchange gradients by gloo."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(ROOT / "train_pretrain.py"), *flags(corpus, out, "--device", "cpu", *more)]
    return subprocess.Popen([*launcher, *program],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


@on_a_cpu
def test_two_processes_give_the_losses_and_weights_of_one(corpus, finished, tmp_path):
    """Each computes half of the rows, here in two parts. Only one of them writes."""
    process = torchrun(corpus, tmp_path, "--accumulate", "2")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("17,665 parameters") == said.count("tokenizing") == 1 and "cpu float32 x 2" in said
    assert_equal_within_rounding(tmp_path, finished)
    assert [int(row["step"]) for row in rows(tmp_path / "eval.csv")] == [6, 12]


def two_processes(corpus: Path, out: Path, differs: str) -> list[tuple[int, str]]:
    """Start the ranks of a run by hand. Rank 1 is another one: Python code says what differs there.

    returns   exit status and messages of rank 0 and rank 1
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    begin = "import sys, torch; import train_pretrain; arguments = sys.argv[1:]; "
    end = "; sys.exit(train_pretrain.main(arguments))"
    processes = []
    for rank in (0, 1):
        script = begin + (differs if rank else "pass") + end
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank),
                 "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        processes.append(subprocess.Popen(
            [sys.executable, "-c", script, *flags(corpus, out, "--device", "cpu")],
            env={**os.environ, **where}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said)]


def test_processes_with_other_options_and_another_torch_are_refused_by_name(corpus, tmp_path):
    differs = "arguments += ['--learning-rate', '0.5']; torch.__version__ = '1.0'"
    for status, said in two_processes(corpus, tmp_path / "out", differs):
        assert status == 2 and "error: process 1 and process 0 differ in --learning-rate, torch:" in said
    assert not (tmp_path / "out").exists()


@on_a_cpu
def test_the_weights_of_the_first_process_count(corpus, finished, tmp_path):
    """Rank 1 draws others, as another version of torch would."""
    other = "draw = torch.manual_seed; torch.manual_seed = lambda seed: draw(seed + 1)"
    ended = two_processes(corpus, tmp_path, other)
    assert [status for status, _ in ended] == [0, 0], ended
    assert_equal_within_rounding(tmp_path, finished)


def wait_for_rows(process: subprocess.Popen, path: Path, count: int) -> None:
    """Wait until the log of a running process has this many rows."""
    while not path.exists() or len(path.read_text().splitlines()) <= count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_torchrun_saves_on_sigterm_and_ends_with_an_error_when_a_process_dies(corpus, tmp_path):
    long = ("--steps", "100000", "--checkpoint-every", "10")
    process = torchrun(corpus, tmp_path, *long)
    wait_for_rows(process, tmp_path / "log.csv", 3)
    process.terminate()
    process.communicate(timeout=300)
    step = int(rows(tmp_path / "log.csv")[-1]["step"])
    # The very last step is saved, although --checkpoint-every does not ask for it.
    assert (tmp_path / f"checkpoint-{step:08d}.pt").exists()
    process = torchrun(corpus, tmp_path, *long)
    wait_for_rows(process, tmp_path / "log.csv", step + 20)
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="],
                              capture_output=True, text=True)
    os.kill(int(children.stdout.split()[1]), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0 and "error: process 0 lost one of 2, which says why above" in said
    steps = [int(row["step"]) for row in rows(tmp_path / "log.csv")]
    assert steps == list(range(1, len(steps) + 1))                      # none lost, none twice


def test_a_second_process_is_refused_at_once(corpus, tmp_path, capsys):
    long = command(corpus, tmp_path, "--steps", "100000")
    first = subprocess.Popen(long, stderr=subprocess.PIPE, text=True)
    wait_for_rows(first, tmp_path / "log.csv", 2)
    assert "is in use by another process: wait until it ends" in fails(flags(corpus, tmp_path), capsys)
    first.kill()                                    # the lock goes with its holder
    first.communicate()
    (tmp_path / "models").mkdir(exist_ok=True)
    for name in ("checkpoint-00000004.pt", "models/config.json"):
        (tmp_path / f"{name}.{first.pid}.unfinished").write_text("half")
    assert train_pretrain.main(flags(corpus, tmp_path)) == 0
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_run_saves_when_its_terminal_closes_and_goes_on_when_nobody_reads(corpus, finished, tmp_path):
    # Where the tests run under nohup, their children would ignore SIGHUP, too.
    closed = subprocess.Popen(command(corpus, tmp_path / "a", "--steps", "100000"), stderr=subprocess.PIPE,
                              text=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    wait_for_rows(closed, tmp_path / "a" / "log.csv", 2)
    closed.stderr.close()
    closed.send_signal(signal.SIGHUP)
    closed.send_signal(signal.SIGHUP)
    assert closed.wait(timeout=300) == 0
    last = int(rows(tmp_path / "a" / "log.csv")[-1]["step"])
    assert (tmp_path / "a" / f"checkpoint-{last:08d}.pt").exists()
    without = subprocess.Popen(command(corpus, tmp_path / "b"), stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)
    without.stderr.close()
    assert without.wait(timeout=300) == 0
    assert_same_run(tmp_path / "b", finished)


def test_a_batch_that_does_not_divide_is_refused(corpus, tmp_path, capsys):
    message = fails(flags(corpus, tmp_path, "--accumulate", "3"), capsys)
    assert "--batch-size 8 does not divide by 3" in message


def test_without_torch_xla_the_tpu_option_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    message = fails(["--tpu", "--out", str(tmp_path)], capsys)
    assert "an environment of its own for the pair: pip install torch==2.9.0 torch_xla==2.9.0" in message
    assert torch.__version__ in message


@pytest.mark.slow
def test_a_compiled_model_trains_the_same(corpus, finished, tmp_path):
    assert train_pretrain.main(flags(corpus, tmp_path, "--compile")) == 0
    assert_equal_within_rounding(tmp_path, finished)


# --- bfloat16 on a CPU ---

BFLOAT16 = ("--precision bfloat16 --dropout 0.1 --hidden-size 32 --intermediate-size 64 "
            "--num-hidden-layers 1").split()


def test_a_run_in_bfloat16_with_dropout_resumes_to_the_same_weights(corpus, tmp_path):
    whole = tmp_path / "whole"
    assert train_pretrain.main(flags(corpus, whole, *BFLOAT16)) == 0
    begun = without_the_last_checkpoint(whole, tmp_path / "begun").parent
    assert train_pretrain.main(flags(corpus, begun, *BFLOAT16)) == 0
    assert_same_run(begun, whole)


def test_losses_in_bfloat16_stay_beside_those_in_float32(corpus, tmp_path):
    """The mean losses of steps 31 to 60 differ by less than 0.1 nats per masked token and 0.01 per token.

    Data and masks are the same. The generator's samples differ where rounding decides, so single steps lie
    further apart.
    """
    sizes = ("--steps 60 --hidden-size 64 --embedding-size 64 --learning-rate 2e-3 --initializer-range 0.05 "
             "--eval-every 60 --checkpoint-every 60 --keep-every 60").split()
    means = []
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        assert train_pretrain.main(flags(corpus, out, *sizes, "--precision", precision)) == 0
        last = rows(out / "log.csv")[30:]
        means.append({name: np.mean([float(row[name]) for row in last])
                      for name in ("mlm_loss", "discriminator_loss")})
    exact, rounded = means
    assert exact != rounded
    assert abs(exact["mlm_loss"] - rounded["mlm_loss"]) < 0.1
    assert abs(exact["discriminator_loss"] - rounded["discriminator_loss"]) < 0.01


# --- Stages and objectives ---

def test_init_takes_weights_and_vocabulary_and_starts_a_fresh_schedule(corpus, finished, tmp_path):
    """The first update has learning rate 0, so after it both networks still have the weights of --init."""
    arguments = flags(corpus, tmp_path, "--init", str(finished), "--steps", "1", "--vocab-size", "77")
    assert train_pretrain.main(arguments) == 0
    ours, theirs = (electramed.load_pretrained(path).state_dict() for path in (tmp_path, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["step"] for row in rows(tmp_path / "log.csv")] == ["1"]
    assert (tmp_path / "model/vocab.txt").read_text() == (finished / "model/vocab.txt").read_text()
    state = torch.load(tmp_path / "checkpoint-00000001.pt", weights_only=True)["optimizer"]
    assert {group["updates"] for group in state["param_groups"]} == {1}


def test_the_position_table_is_reused_where_the_new_one_is_longer(tiny_config, tmp_path):
    short_config = dataclasses.replace(tiny_config, max_position_embeddings=128)
    short = electramed.ElectraForPretraining(short_config)
    long = electramed.ElectraForPretraining(dataclasses.replace(short_config, max_position_embeddings=512))
    electramed.save_pretrained(short, tmp_path)
    initial = {name: tensor.clone() for name, tensor in long.state_dict().items()}
    electramed.load_initial(long, tmp_path)
    for name, tensor in long.state_dict().items():
        before = short.state_dict()[name]
        assert torch.equal(tensor[:len(before)], before)
        assert torch.equal(tensor[len(before):], initial[name][len(before):])
    assert len(long.discriminator.electra.embeddings.position_embeddings.weight) == 512


def test_electra_starts_from_the_encoder_of_a_masked_language_model(tiny_config, tmp_path):
    """Nothing else is taken, and such a folder is no ELECTRA that load_pretrained could read."""
    masked = electramed.MaskedLanguageModel(tiny_config)
    electramed.save_pretrained(masked, tmp_path)
    weights = electramed.read_weights(tmp_path)
    del weights["generator_lm_head.weight"]                 # published files leave the tied matrix out
    electramed.write_safetensors(tmp_path / "model.safetensors", weights)
    model = electramed.ElectraForPretraining(tiny_config)
    drawn = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    note = electramed.load_initial(model, tmp_path)
    assert note == f"{tmp_path} is a masked language model: the discriminator starts from its encoder"
    theirs = masked.electra.state_dict()
    assert all(torch.equal(tensor, theirs[name])
               for name, tensor in model.discriminator.electra.state_dict().items())
    kept = [name for name in drawn if not name.startswith("discriminator.electra.")
            and "embeddings." not in name and "generator_lm_head.weight" not in name]
    assert any(name.startswith("generator.electra.encoder") for name in kept)
    assert all(torch.equal(model.state_dict()[name], drawn[name]) for name in kept)
    with pytest.raises(ValueError, match="discriminator_predictions"):
        electramed.load_pretrained(tmp_path)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_model_without_its_generator_begins_with_a_new_one_of_any_size(tiny_config, tmp_path, share):
    """Published models of the base size have no generator/, and their config.json may not name its size."""
    published = electramed.ElectraForPretraining(tiny_config)
    electramed.save_pretrained(published, tmp_path)
    shutil.rmtree(tmp_path / "generator")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "generator_size": "1/3"}))
    model = electramed.ElectraForPretraining(dataclasses.replace(tiny_config, generator_size=share))
    drawn = {name: tensor.clone() for name, tensor in model.generator.electra.encoder.state_dict().items()}
    electramed.load_initial(model, tmp_path)
    ours, theirs = model.discriminator.state_dict(), published.discriminator.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(tensor, drawn[name])
               for name, tensor in model.generator.electra.encoder.state_dict().items())
    shared = model.generator.electra.embeddings.word_embeddings.weight
    assert shared is model.discriminator.electra.embeddings.word_embeddings.weight
    assert model.generator.generator_lm_head.weight is shared


def test_init_refuses_other_sizes_another_vocabulary_and_a_folder_without_one(
        corpus, finished, tmp_path, capsys):
    start = flags(corpus, tmp_path, "--init", str(finished))
    assert "hidden_size is 16, that of this D" in fails([*start, "--hidden-size", "32"], capsys)
    said = fails([*start, "--num-attention-heads", "4"], capsys)
    assert "num_attention_heads is 2, that of this Discriminator 4" in said
    Tokenizer([*Tokenizer.from_file(finished).pieces[:-1], "zzz"]).save(tmp_path / "other")
    start[start.index("--out") + 1] = str(tmp_path / "b")
    assert "another vocabulary" in fails([*start, "--vocab", str(tmp_path / "other")], capsys)
    # The same pieces, and a file beside them that says that capitals are kept: other text would come in.
    Tokenizer(Tokenizer.from_file(finished).pieces, lowercase=False).save(tmp_path / "cased")
    assert "or casing" in fails([*start, "--vocab", str(tmp_path / "cased")], capsys)
    assert not (tmp_path / "b").exists()                                # found out before any work was done
    shutil.copytree(finished / "model", tmp_path / "bare")
    (tmp_path / "bare/vocab.txt").unlink()
    assert "bare/vocab.txt" in fails([*start, "--init", str(tmp_path / "bare")], capsys)
    assert "no config.json" in fails([*start, "--init", str(tmp_path / "nothing")], capsys)


def test_bio_electra_pp_asks_for_the_run_that_it_continues(tmp_path, capsys):
    message = fails(["--preset", "bio-electra-pp", "--out", str(tmp_path)], capsys)
    assert "pass its folder by --init" in message


def test_with_objective_mlm_fine_tuning_starts_from_the_trained_encoder(corpus, tmp_path, capsys):
    arguments = flags(corpus, tmp_path / "mlm", "--objective", "mlm", "--hidden-size", "32")
    assert train_pretrain.main(arguments) == 0
    said = capsys.readouterr().out
    assert "masked-token loss" in said and "replaced-token" not in said
    log, evaluations = rows(tmp_path / "mlm/log.csv"), rows(tmp_path / "mlm/eval.csv")
    assert float(log[0]["mlm_loss"]) == pytest.approx(math.log(200), rel=0.03)
    assert {row["discriminator_loss"] for row in (*log, *evaluations)} == {"nan"}
    assert float(evaluations[-1]["mlm_loss"]) < float(log[0]["mlm_loss"])
    head = electramed.TokenTagger(electramed.read_config(tmp_path / "mlm/model"), 3)
    electramed.load_encoder(head, tmp_path / "mlm")
    trained = torch.load(tmp_path / "mlm/checkpoint-00000012.pt", weights_only=True)["model"]
    assert head.config.hidden_size == 32            # the large network's, not a generator's
    for name, tensor in head.electra.state_dict().items():
        assert torch.equal(tensor, trained[f"electra.{name}"])
    arguments[arguments.index("--out") + 1] = str(tmp_path / "next")
    assert train_pretrain.main([*arguments, "--init", str(tmp_path / "mlm"), "--steps", "1"]) == 0


def test_with_objective_mlm_the_loss_is_the_cross_entropy_at_the_chosen_positions(tiny_config):
    model = electramed.MaskedLanguageModel(tiny_config)
    ids = torch.tensor([[2, *range(5, 45), 3]])
    ones = torch.ones_like(ids)
    masked = electramed.mask_tokens(ids, ones, tiny_config, torch.Generator().manual_seed(0))
    output = model(masked, ones, 0 * ones)
    chosen = masked.positions[0][masked.weights[0] > 0]
    logits = model.predict(model.electra(masked.input_ids, ones, 0 * ones))[0, chosen]
    expected = -logits.log_softmax(-1)[range(len(chosen)), ids[0, chosen]].mean()
    assert output.loss.item() == output.mlm_loss.item() == pytest.approx(expected.item(), rel=1e-5)


# --- What every run has ---

@dataclasses.dataclass(frozen=True)
class Flags:
    corpus: list[str] = train_pretrain.option([], "files to read")
    batch_size: int = train_pretrain.option(8, "examples of a step", at_least=1)
    learning_rate: float = train_pretrain.option(1e-3, "of the peak", at_least=0)
    max_minutes: float | None = train_pretrain.option(None, "stop after these minutes")
    device: str = train_pretrain.option("auto", "where to compute", choices=("auto", "cpu"))
    compile: bool = train_pretrain.option(False, "compile the model")


def parsed(arguments: str) -> Flags:
    return train_pretrain.parse_options(Flags, "What it does.", arguments.split())


def test_flags_are_parsed_by_the_types_of_the_dataclass():
    assert parsed("") == Flags()
    assert parsed("--corpus a.txt b --batch-size 4 --learning-rate 2e-4 --max-minutes 1.5 --device cpu "
                  "--compile") == Flags(["a.txt", "b"], 4, 2e-4, 1.5, "cpu", True)


@pytest.mark.parametrize("arguments, message", [
    ("--device tpu", "argument --device: invalid choice: 'tpu'"),
    ("--batch-size many", "argument --batch-size: invalid int value: 'many'"),
    ("--max-minutes soon", "argument --max-minutes: invalid float value: 'soon'"),
    ("--bach-size 4", "unrecognized arguments: --bach-size 4"),
    ("--corpus", "expected at least one argument")])
def test_a_wrong_option_is_reported_with_exit_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        parsed(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_number_below_its_bound_is_refused_by_its_flag():
    assert parsed("--batch-size 1").batch_size == 1
    for arguments, message in (("--batch-size 0", "--batch-size must be at least 1, not 0"),
                               ("--learning-rate -1", "--learning-rate must be at least 0"),
                               ("--learning-rate nan", "--learning-rate must be")):
        with pytest.raises(ValueError, match=message):
            parsed(arguments)


def test_a_path_that_is_not_utf8_is_refused_before_anything_is_written(corpus, tmp_path, capsys):
    """options.json could not be read again. os.fsdecode gives such text for the byte 0xff in an argument."""
    bad = str(tmp_path / os.fsdecode(b"caf\xff"))
    for arguments in (flags(corpus, Path(bad)), flags(Path(bad), tmp_path / "run")):
        said = fails(arguments, capsys)
        assert r"caf\udcff" in said and "is not UTF-8: rename it" in said
    assert not os.listdir(tmp_path)


def test_a_run_folder_refuses_other_values_of_the_options_its_content_depends_on(tmp_path):
    folder, fixed = tmp_path / "runs" / "one", ("batch_size", "corpus", "compile")
    before = dataclasses.asdict(Flags())
    train_pretrain.record_run(folder, before, fixed, {})
    assert json.loads((folder / "options.json").read_bytes()) == {**before, "made_from": {}}
    train_pretrain.record_run(folder, {**before, "device": "cpu"}, fixed, {})
    content = (folder / "options.json").read_bytes()
    assert json.loads(content)["device"] == "cpu"
    for change, message in (({"batch_size": 9}, "--batch-size 8, now 9"),
                            ({"compile": True}, "--compile False, now True"),
                            ({"corpus": ["a"]}, r"--corpus \[\], now \['a'\]")):
        with pytest.raises(ValueError, match=rf"one holds a run with {message}"):
            train_pretrain.record_run(folder, {**before, **change}, fixed, {})
    assert (folder / "options.json").read_bytes() == content


@pytest.mark.parametrize("content", ["{", "[1]", '{"batch_size": 8}', '{"batch_size": 8, "made_from": 3}',
                                     "[" * 100_000, "\xff"])
@pytest.mark.parametrize("fixed", [(), ("batch_size",)])
def test_a_damaged_or_foreign_options_file_is_named_and_kept(tmp_path, content, fixed):
    path = tmp_path / "options.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"options\.json"):
        train_pretrain.record_run(tmp_path, dataclasses.asdict(Flags()), fixed, {})
    assert path.read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize("name", train_pretrain.RUN_FILES)
def test_a_folder_with_files_that_a_run_would_replace_is_refused(tmp_path, name):
    mine = tmp_path / name.replace("*", "1")
    mine.write_text("mine")
    with pytest.raises(ValueError) as error:
        train_pretrain.record_run(tmp_path, dataclasses.asdict(Flags()), (), {})
    assert f"holds {name}, but no options.json of a run: choose another --out" in str(error.value)
    assert mine.read_text() == "mine" and len(os.listdir(tmp_path)) == 1


def test_a_run_made_from_other_files_is_refused_once_something_depends_on_them(tmp_path):
    now, before = dataclasses.asdict(Flags()), {"a": "1", "b": "2", "c": "3"}
    train_pretrain.record_run(tmp_path, now, (), before)
    train_pretrain.record_run(tmp_path, now, ("batch_size",), before)
    for made_from, changed in (({**before, "a": "0"}, "a"), ({"b": "2", "c": "0"}, "a, c"),
                               ({**before, "d": "4"}, "d")):
        with pytest.raises(ValueError, match=f"made from other files: {changed} changed: bring them back"):
            train_pretrain.record_run(tmp_path, now, ("batch_size",), made_from)
    train_pretrain.record_run(tmp_path, now, (), {"a": "0"})
    assert json.loads((tmp_path / "options.json").read_bytes())["made_from"] == {"a": "0"}


# --- Wrong input ---

def test_a_changed_option_is_refused_by_name_if_it_affects_the_result(corpus, finished, capsys):
    """How often the run logs and saves does not affect it."""
    arguments = [*SMALL, "--corpus", str(corpus), "--out", str(finished)]
    assert "--learning-rate" in fails([*arguments, "--learning-rate", "0.5"], capsys)
    assert "--seed" in fails([*arguments, "--seed", "1"], capsys)
    assert train_pretrain.main([*arguments, "--log-every", "5", "--checkpoint-every", "3"]) == 0


def test_after_a_failure_before_anything_was_made_the_options_may_change(corpus, tmp_path, capsys):
    arguments = [*SMALL, "--out", str(tmp_path), "--corpus"]
    fails([*arguments, "missing.txt"], capsys)
    fails([*arguments, str(corpus), "--batch-size", "100000"], capsys)
    assert "--vocab-size" in fails([*arguments, str(corpus), "--vocab-size", "300"], capsys)
    assert train_pretrain.main([*arguments, str(corpus)]) == 0


def test_missing_files_and_impossible_values_are_named(tmp_path, corpus, finished, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert "no/such.txt" in fails(["--corpus", "no/such.txt", *out], capsys)
    assert "no/vocab.txt" in fails(["--corpus", str(corpus), "--vocab", "no/vocab.txt", *out[:1],
                                    str(tmp_path / "b")], capsys)
    assert "--steps must be at least 1" in fails(["--steps", "0", *out], capsys)
    assert "65535 is the most" in fails(flags(corpus, tmp_path / "long", "--max-length", "65536"), capsys)
    assert "lower --batch-size" in fails([*SMALL, "--corpus", str(corpus), "--batch-size", "100000", *out[:1],
                                          str(tmp_path / "c")], capsys)
    with pytest.raises(SystemExit) as exit:
        train_pretrain.main(["--preset", "huge"])
    assert exit.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_a_shard_folder_needs_the_vocabulary_it_was_built_with(finished, tmp_path, capsys):
    shards = [*SMALL, "--corpus", str(finished / "shards"), "--out", str(tmp_path / "run")]
    assert "pass --vocab" in fails(shards, capsys)
    Tokenizer([*Tokenizer.from_file(finished).pieces, "zzz"]).save(tmp_path)
    other = [*shards[:-1], str(tmp_path / "b"), "--vocab", str(tmp_path)]
    assert "another vocabulary" in fails(other, capsys)
    assert train_pretrain.main([*shards[:-1], str(tmp_path / "c"), "--vocab", str(finished)]) == 0
    assert_same_run(tmp_path / "c", finished)


def test_a_shard_folder_rebuilt_from_other_text_is_refused(corpus, finished, tmp_path, capsys):
    shards, tokenizer = tmp_path / "shards", Tokenizer.from_file(finished)
    arguments = [*SMALL, "--corpus", str(shards), "--vocab", str(finished), "--out", str(tmp_path / "run")]
    data.build_shards([corpus], tokenizer, shards, max_length=48)
    assert train_pretrain.main(arguments) == 0
    shutil.rmtree(shards)
    data.build_shards([corpus], tokenizer, shards, max_length=48, workers=1)
    assert train_pretrain.main(arguments) == 0                     # from the same text: nothing has changed
    other = tmp_path / "corpus.txt"
    other.write_text(corpus.read_text().replace(" mg", " kg"))
    shutil.rmtree(shards)
    data.build_shards([other], tokenizer, shards, max_length=48)
    message = fails(arguments, capsys)
    assert "made from other files: index.json changed: bring them back" in message


def test_shards_that_were_removed_after_the_text_has_changed_are_missed(tmp_path, corpus, capsys):
    text = tmp_path / "text.txt"
    text.write_bytes(corpus.read_bytes())
    out = tmp_path / "out"
    assert train_pretrain.main(flags(text, out, "--max-minutes", "0")) == 0
    assert train_pretrain.main(flags(text, out)) == 0
    text.write_text(data.synthetic_corpus(150, seed=1))
    shutil.rmtree(out / "shards")
    assert "made from other files: index.json changed" in fails(flags(text, out), capsys)


def test_an_initial_model_of_other_sizes_is_refused_before_the_corpus_is_tokenized(
        corpus, finished, tmp_path, capsys):
    for more in (["--hidden-size", "32"], ["--objective", "mlm"]):
        said = fails(flags(corpus, tmp_path / "out", "--init", str(finished), *more), capsys)
        assert "hidden_size is 16" in said or "not those that config.json describes" in said
        assert not (tmp_path / "out" / "shards").exists()


def test_text_that_changes_behind_its_name_is_refused(corpus, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text())
    assert train_pretrain.main(flags(text, tmp_path / "run")) == 0
    text.write_text(corpus.read_text().replace(" mg", " kg"))
    assert "another sources (text.txt, SHA-256 " in fails(flags(text, tmp_path / "run"), capsys)


def test_a_run_folder_inside_its_corpus_is_refused_before_anything_is_written(corpus, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    shutil.copy(corpus, folder)
    message = fails(flags(folder, folder / "run"), capsys)
    assert "all files of which are corpus: choose another --out" in message
    assert [path.name for path in folder.iterdir()] == ["corpus.txt"]


@pytest.mark.parametrize("flag", ["--init", "--out", "--vocab", "--corpus"])
def test_a_variable_that_is_not_set_is_refused(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        train_pretrain.main([*SMALL, flag, ""])
    assert exit.value.code == 2 and f"{flag}: is empty" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_vocabulary_that_came_out_smaller_says_so(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("aspirin helps patients\n\n" * 120)
    assert train_pretrain.main(flags(text, tmp_path / "run")) == 0
    size = len((tmp_path / "run" / "vocab.txt").read_text().splitlines())
    assert f"the vocabulary is complete with {size} pieces: in this corpus" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_last_good_checkpoint(
        corpus, tmp_path, capsys):
    """The first update has learning rate 0, the second makes the weights huge, the third loss is infinite.

    A row of log.csv is due only after step 12; the checkpoint due after step 4 makes the loop look.
    """
    message = fails(flags(corpus, tmp_path, "--learning-rate", "1e30", "--log-every", "12",
                          "--checkpoint-every", "2"), capsys)
    assert "step 3 is not finite" in message
    assert f"last good checkpoint: {tmp_path / 'checkpoint-00000002.pt'}; start again" in message


def test_wrong_input_gives_one_line_status_2_and_no_traceback(tmp_path):
    script = [sys.executable, str(ROOT / "train_pretrain.py")]
    done = subprocess.run([*script, "--corpus", "missing.txt", "--out", str(tmp_path)],
                          capture_output=True, text=True)
    assert done.returncode == 2
    *said, error = done.stderr.splitlines()
    assert said == ["learning a vocabulary of 525 wordpieces"] and error.startswith("error: missing.txt")


def test_without_fcntl_and_sighup_a_run_trains_only_without_the_lock(corpus, finished, tmp_path):
    """As on Windows, which has neither."""
    hide = "import signal, sys; sys.modules['fcntl'] = None; del signal.SIGHUP; import train_pretrain; "
    done = subprocess.run([sys.executable, "-c", f"{hide} sys.exit(train_pretrain.main(sys.argv[1:]))",
                           *flags(corpus, tmp_path / "run")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", finished)


def test_ctrl_c_while_torch_is_imported_gives_one_line(tmp_path):
    """In place of torch stands a module that is interrupted while it is imported."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run([sys.executable, str(ROOT / "train_pretrain.py")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


# --- What is read of a corpus ---

def test_each_run_says_what_files_it_has_read_and_what_it_has_left_out(tmp_path, corpus, capsys):
    (tmp_path / "texts").mkdir()
    shutil.copy(corpus, tmp_path / "texts/a.txt")
    (tmp_path / "texts/b.json").write_text('{"title": "no prose"}\n')
    assert train_pretrain.main(flags(tmp_path / "texts", tmp_path / "run", "--steps", "1")) == 0
    assert "2 files: 1 text; 1 left out" in capsys.readouterr().err


def test_a_vocabulary_that_lowercasing_spoils_is_doubted_in_one_line(tmp_path, corpus, capsys):
    """Capitals in a third of the pieces, and no tokenizer_config.json that says how they came there."""
    words = sorted({word for word in corpus.read_text().split() if word.isalpha()})[:60]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(word.upper() for word in words)]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    more = ("--vocab", str(tmp_path / "vocab.txt"), "--steps", "1")
    assert train_pretrain.main(flags(corpus, tmp_path / "run", *more)) == 0
    said = capsys.readouterr().err
    assert said.count("vocab.txt: 120 of 120 pieces") == 1 and "--cased" in said
    assert train_pretrain.main(flags(corpus, tmp_path / "cased", "--cased", *more)) == 0
    assert "of 120 pieces" not in capsys.readouterr().err


def test_bluebert_text_is_used_for_vocabulary_and_shards_and_another_choice_is_refused(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Caf\u00e9 noir (hot).\n\n" * 200)
    arguments = ["--corpus", str(corpus), "--vocab-size", "60", "--bluebert", "--out", str(tmp_path / "run")]
    options = train_pretrain.complete(train_pretrain.parse_options(train_pretrain.Options, "", arguments))
    tokenizer, shards = train_pretrain.prepare_data(options)
    assert shards.index["text"] == {"min_pmid": 0, "language": None, "preprocess": "preprocess_bluebert"}
    # ELECTRAMed's corpus has "caf" here: all characters but ASCII were dropped.
    assert "##\u00e9" not in tokenizer.vocab and "##e" not in tokenizer.vocab
    run = str(tmp_path / "run")
    ready = dataclasses.replace(options, corpus=[f"{run}/shards"], vocab=run)
    assert train_pretrain.prepare_data(ready)[1].index == shards.index
    assert train_pretrain.prepare_data(dataclasses.replace(ready, bluebert=False))[1].index == shards.index
    with pytest.raises(ValueError, match="shards was built with {'min_pmid': 0, .*: pass these options, or"):
        train_pretrain.prepare_data(dataclasses.replace(ready, language="eng"))


def test_a_folder_of_the_other_program_is_not_written_over(corpus, finished, tmp_path, capsys):
    """--out where --init was meant would replace the model and its record."""
    shutil.copytree(finished, tmp_path / "run")
    record = (tmp_path / "run" / "options.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run of another program or version, with --"):
        train_pretrain.record_run(tmp_path / "run", {"task": "demo-ner", "out": "x"}, [])
    assert (tmp_path / "run" / "options.json").read_bytes() == record
