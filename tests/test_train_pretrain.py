"""Pre-training end to end on a net of a few thousand weights: runs, stops, resumes, refuses."""
import csv
import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import electramed
import train_pretrain
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--embedding-size 8 --hidden-size 16 --num-attention-heads 2 --intermediate-size 32 --max-length 48 "
         "--batch-size 8 --steps 12 --warmup-steps 4 --learning-rate 2e-3 --initializer-range 0.02 --vocab-size 200 "
         "--log-every 1 --eval-every 6 --checkpoint-every 4").split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(data.synthetic_corpus(200))
    return path


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> Path:
    """An unbroken run of twelve steps."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert train_pretrain.main([*SMALL, "--corpus", str(corpus), "--out", str(out)]) == 0
    return out


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_pretrain.py"), *SMALL, "--corpus", str(corpus), "--out", str(out), *more]


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
    ours, theirs = ([[row[name] for name in columns] for row in rows(path / "log.csv")] for path in (out, finished))
    assert ours == theirs
    assert rows(out / "eval.csv") == rows(finished / "eval.csv")


# --- presets ---

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


# --- a whole run ---

def test_a_run_leaves_log_evaluation_checkpoints_and_a_model_that_loads(finished):
    log = rows(finished / "log.csv")
    assert [int(row["step"]) for row in log] == list(range(1, 13))
    assert float(log[0]["learning_rate"]) == 0 and all(float(row["tokens_per_second"]) > 0 for row in log)
    expected = math.log(200) + 50 * math.log(2)                 # nothing is known yet: the blind loss
    assert float(log[0]["mlm_loss"]) + 50 * float(log[0]["discriminator_loss"]) == pytest.approx(expected, rel=0.03)
    assert [int(row["step"]) for row in rows(finished / "eval.csv")] == [6, 12]
    assert sorted(path.name for path in finished.glob("checkpoint-*")) == [
        "checkpoint-00000008.pt", "checkpoint-00000012.pt"]
    model = electramed.load_pretrained(finished)
    assert all(torch.equal(tensor, weights(finished)[name]) for name, tensor in model.state_dict().items())
    assert len(Tokenizer.from_file(finished / "model").pieces) == model.config.vocab_size


def test_the_logged_learning_rate_is_the_schedule(finished):
    for row in rows(finished / "log.csv"):
        step = int(row["step"]) - 1
        assert float(row["learning_rate"]) == pytest.approx(2e-3 * (1 - step / 12) * min(1, step / 4), rel=1e-4)


def test_repeating_a_finished_run_changes_nothing_and_sums_up_again(finished, corpus, capsys):
    before = (finished / "log.csv").read_text()
    assert train_pretrain.main([*SMALL, "--corpus", str(corpus), "--out", str(finished)]) == 0
    assert (finished / "log.csv").read_text() == before
    assert "unigram entropy" in capsys.readouterr().out


def test_training_lowers_both_losses_on_held_out_documents(corpus, tmp_path):
    wider = [*SMALL, "--steps", "300", "--hidden-size", "64", "--embedding-size", "64",
             "--learning-rate", "1e-3", "--initializer-range", "0.05", "--log-every", "100", "--eval-every", "150",
             "--checkpoint-every", "300"]
    assert train_pretrain.main([*wider, "--corpus", str(corpus), "--out", str(tmp_path)]) == 0
    first, last = rows(tmp_path / "log.csv")[0], rows(tmp_path / "eval.csv")[-1]
    assert float(last["mlm_loss"]) < float(first["mlm_loss"]) - 0.3
    assert float(last["discriminator_loss"]) < float(first["discriminator_loss"]) - 0.2


def test_every_example_is_drawn_once_an_epoch_and_step_k_is_a_function_of_k(finished, corpus):
    options = train_pretrain.complete(train_pretrain.Options(max_length=48, batch_size=8))
    order = train_pretrain.BatchOrder(data.open_shards(finished / "shards"), options)
    drawn = np.concatenate([rows for _, rows in order.plan(0)])
    assert len(drawn) == len(set(drawn)) == order.per_epoch * 8
    again = train_pretrain.BatchOrder(data.open_shards(finished / "shards"), options)
    later = [order.batch(step, 0).input_ids for step in (3, order.per_epoch + 1)]
    assert all(np.array_equal(a, again.batch(step, 0).input_ids)
               for a, step in zip(later, (3, order.per_epoch + 1)))


def test_the_blind_masked_token_loss_is_the_entropy_of_the_ordinary_tokens(finished):
    shards = data.open_shards(finished / "shards")
    ids = np.concatenate([shards.example(number)[0] for number in shards.train])
    ordinary = ids[(ids != 2) & (ids != 3)]
    shares = np.array([np.mean(ordinary == i) for i in np.unique(ordinary)])
    blind, replaced = train_pretrain.blind_baselines(shards, np.array([True, False, False, False]), [2, 3])
    assert blind == pytest.approx(-(shares * np.log(shares)).sum())
    assert replaced == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


# --- stopping and resuming ---

@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stopped_run_continues_to_the_same_weights(number, status, corpus, finished, tmp_path):
    process = subprocess.Popen(command(corpus, tmp_path), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "log.csv").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if "stopped after step" in said:                        # on a fast machine the run may be over
        assert process.returncode == status
    assert train_pretrain.main(command(corpus, tmp_path)[2:]) == 0
    assert_same_run(tmp_path, finished)


def kill_and_repeat(corpus: Path, out: Path, kills: int, seconds: tuple[float, float]) -> int:
    """Start the run, kill -9 it at a random moment, again and again; then let it end. Returns the kills landed."""
    generator, landed = random.Random(0), 0
    for _ in range(kills):
        process = subprocess.Popen(command(corpus, out, "--checkpoint-every", "1"), stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(*seconds))
        landed += process.poll() is None
        process.kill()
        process.wait()
    assert train_pretrain.main(command(corpus, out)[2:]) == 0
    return landed


def test_a_killed_run_continues_to_the_same_weights(corpus, finished, tmp_path):
    assert kill_and_repeat(corpus, tmp_path, 3, (0.3, 3.0)) > 0
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
def test_a_run_killed_twenty_times_continues_to_the_same_weights(corpus, finished, tmp_path):
    assert kill_and_repeat(corpus, tmp_path, 20, (0.5, 6.0)) > 5
    assert_same_run(tmp_path, finished)


def test_max_minutes_stops_and_the_same_command_continues(corpus, finished, tmp_path, capsys):
    arguments = command(corpus, tmp_path)[2:]
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


# --- wrong input ---

def fails(arguments: list[str], capsys) -> str:
    """Run with bad input; returns the one line on stderr after what was said of the work before."""
    assert train_pretrain.main(arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_change_that_alters_the_result_is_refused_by_name_and_cadence_may_change(corpus, finished, capsys):
    arguments = [*SMALL, "--corpus", str(corpus), "--out", str(finished)]
    assert "--learning-rate" in fails([*arguments, "--learning-rate", "0.5"], capsys)
    assert "--seed" in fails([*arguments, "--seed", "1"], capsys)
    assert train_pretrain.main([*arguments, "--log-every", "5", "--checkpoint-every", "3"]) == 0


def test_a_command_that_failed_before_anything_was_made_may_be_mended(corpus, tmp_path, capsys):
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
    assert "lower --batch-size" in fails([*SMALL, "--corpus", str(corpus), "--batch-size", "100000", *out[:1],
                                          str(tmp_path / "c")], capsys)
    with pytest.raises(SystemExit) as exit:
        train_pretrain.main(["--preset", "huge"])
    assert exit.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_a_shard_folder_needs_the_vocabulary_it_was_built_with(finished, tmp_path, capsys):
    shards = [*SMALL, "--corpus", str(finished / "shards"), "--out", str(tmp_path / "run")]
    assert "pass --vocab" in fails(shards, capsys)
    Tokenizer([*Tokenizer.from_file(finished).pieces, "zzz"]).save(tmp_path)
    assert "another vocabulary" in fails([*shards[:-1], str(tmp_path / "b"), "--vocab", str(tmp_path)], capsys)
    assert train_pretrain.main([*shards[:-1], str(tmp_path / "c"), "--vocab", str(finished)]) == 0
    assert_same_run(tmp_path / "c", finished)


def test_a_loss_that_is_not_finite_stops_the_run(corpus, tmp_path, capsys):
    assert "not finite" in fails([*SMALL, "--corpus", str(corpus), "--out", str(tmp_path), "--learning-rate",
                                  "1e30"], capsys)


def test_wrong_input_gives_one_line_status_2_and_no_traceback(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "train_pretrain.py"), "--corpus", "missing.txt", "--out",
                           str(tmp_path)], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 2 and done.stderr.startswith("error: missing.txt") and done.stderr.count("\n") == 1


# --- what is read of a corpus ---

def test_the_choice_of_text_reaches_vocabulary_and_shards_and_others_are_refused(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Caf\u00e9 noir (hot).\n\n" * 200)
    arguments = ["--corpus", str(corpus), "--vocab-size", "60", "--bluebert", "--out", str(tmp_path / "run")]
    options = train_pretrain.complete(data.parse_options(train_pretrain.Options, "", arguments))
    tokenizer, shards = train_pretrain.prepare_data(options)
    assert shards.index["text"] == {"min_pmid": 0, "language": None, "preprocess": "preprocess_bluebert"}
    assert "##\u00e9" not in tokenizer.vocab and "##e" not in tokenizer.vocab      # "caf", as in ELECTRAMed's corpus
    ready = dataclasses.replace(options, corpus=[str(tmp_path / "run" / "shards")], vocab=str(tmp_path / "run"))
    assert train_pretrain.prepare_data(ready)[1].index == shards.index
    assert train_pretrain.prepare_data(dataclasses.replace(ready, bluebert=False))[1].index == shards.index
    with pytest.raises(ValueError, match="shards was built with .*: drop --min-pmid, --language and --bluebert"):
        train_pretrain.prepare_data(dataclasses.replace(ready, language="eng"))
