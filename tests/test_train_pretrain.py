"""Pre-training end to end on a net of a few thousand weights: runs, stops, resumes, refuses."""
import csv
import dataclasses
import io
import math
import os
import random
import resource
import shutil
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


def test_an_update_clips_the_gradient_to_norm_one(finished):
    """After one update the first moments are a tenth of the gradient: their norm is 0.1, whatever its own was."""
    model = electramed.load_pretrained(finished)
    optimizer = electramed.Adam(electramed.parameter_groups(model, 0.0))
    options = train_pretrain.complete(train_pretrain.Options(max_length=48, batch_size=8))
    order = train_pretrain.BatchOrder(data.open_shards(finished / "shards"), options)
    batch = train_pretrain.mask_batch(order.batch(0, 0), model.config, 0, 0)
    result = train_pretrain.training_step(model, optimizer, batch, options, 0, electramed.Device("cpu", "float32"))
    moments = torch.cat([state["exp_avg"].flatten() for state in optimizer.state.values()])
    assert train_pretrain.StepResult(*result.tolist()).gradient_norm > 1
    assert moments.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_padding_counts_neither_in_the_loss_nor_in_the_auc_on_held_out_documents(finished):
    """One judgement for each real token: the official code counts padding among the originals."""
    shards = data.open_shards(finished / "shards")
    options = train_pretrain.complete(train_pretrain.Options(max_length=48, batch_size=8))
    found = train_pretrain.held_out_outputs(electramed.load_pretrained(finished), shards, options,
                                            electramed.Device("cpu", "float32"))
    numbers = shards.held_out[:train_pretrain.EVALUATION_EXAMPLES]
    assert len(found.logits) == len(found.is_replaced) == shards.lengths[numbers].sum()
    assert len(set(shards.lengths[numbers])) > 1                    # so there is padding


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


def without_the_last_checkpoint(finished: Path, out: Path) -> Path:
    """A copy of the finished run as it was between steps 8 and 12; returns its checkpoint."""
    shutil.copytree(finished, out, dirs_exist_ok=True)
    (out / "checkpoint-00000012.pt").unlink()
    return out / "checkpoint-00000008.pt"


def other_tensors(content: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({**torch.load(io.BytesIO(content), weights_only=True), "model": {"weight": torch.zeros(3)}}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:-2000], lambda content: bytes(len(content)),
    lambda content: content[:60_000] + bytes(1000) + content[61_000:], other_tensors],
    ids=["empty", "cut off", "zeros", "a block of zeros", "another model"])
def test_a_damaged_checkpoint_falls_back_on_the_one_before_it(damage, corpus, finished, tmp_path, capsys):
    good = without_the_last_checkpoint(finished, tmp_path)
    newest = tmp_path / "checkpoint-00000010.pt"
    newest.write_bytes(damage(good.read_bytes()))
    assert train_pretrain.main(command(corpus, tmp_path)[2:]) == 0
    said = capsys.readouterr().err
    assert f"{newest} is damaged" in said and "continuing after step 8" in said
    assert_same_run(tmp_path, finished)


def test_when_all_checkpoints_are_damaged_nothing_is_renamed(corpus, finished, tmp_path, capsys):
    without_the_last_checkpoint(finished, tmp_path).write_bytes(b"")
    assert "none of its checkpoints is readable" in fails(command(corpus, tmp_path)[2:], capsys)
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-00000008.pt"]


def test_a_full_disk_leaves_the_checkpoint_before_it_whole_and_says_so(corpus, finished, tmp_path, capsys):
    good = without_the_last_checkpoint(finished, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))         # bytes: no file of a checkpoint's size
    try:
        message = fails(command(corpus, tmp_path)[2:], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "checkpoint-00000012.pt could not be written" in message and "make room" in message
    assert list(tmp_path.glob("checkpoint*")) == [good] and not list(tmp_path.glob("*.tmp"))
    assert train_pretrain.main(command(corpus, tmp_path)[2:]) == 0
    assert_same_run(tmp_path, finished)


def test_checkpoints_are_also_made_by_the_clock(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(train_pretrain, "CHECKPOINT_SECONDS", 0)
    arguments = command(corpus, tmp_path, "--checkpoint-every", "1000", "--steps", "5")[2:]
    assert train_pretrain.main(arguments) == 0
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == [
        "checkpoint-00000004.pt", "checkpoint-00000005.pt"]


# --- one batch on several devices, or in several parts ---

def assert_equal_within_rounding(out: Path, finished: Path) -> None:
    ours, theirs = weights(out), weights(finished)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    ours, theirs = ([list(map(float, row.values()))[:4] for row in rows(path / "log.csv")] for path in (out, finished))
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    assert np.allclose(ours, theirs, rtol=1e-5)


def test_a_batch_in_parts_gives_the_whole_batchs_losses_and_weights(corpus, finished, tmp_path):
    """Without dropout; and a run that has begun may continue with other parts."""
    good = without_the_last_checkpoint(finished, tmp_path / "begun")
    for out in (tmp_path / "whole", good.parent):
        assert train_pretrain.main(command(corpus, out, "--accumulate", "4")[2:]) == 0
        assert_equal_within_rounding(out, finished)


# --- bfloat16 on a CPU ---

BFLOAT16 = "--precision bfloat16 --dropout 0.1 --hidden-size 32 --intermediate-size 64 --num-hidden-layers 1".split()


def test_a_run_in_bfloat16_with_dropout_resumes_to_the_same_weights(corpus, tmp_path):
    """Bit by bit, though several threads draw the dropout."""
    whole = tmp_path / "whole"
    assert train_pretrain.main(command(corpus, whole, *BFLOAT16)[2:]) == 0
    begun = without_the_last_checkpoint(whole, tmp_path / "begun").parent
    assert train_pretrain.main(command(corpus, begun, *BFLOAT16)[2:]) == 0
    assert_same_run(begun, whole)


def test_losses_in_bfloat16_stay_beside_those_in_float32(corpus, tmp_path):
    """Two hundred steps: the means of the last hundred differ by less than 0.1 nats per masked token, 0.01 per token.

    The same data and masks; the samples differ where rounding decides, so single steps lie further apart.
    """
    sizes = ["--steps", "200", "--hidden-size", "64", "--embedding-size", "64", "--learning-rate", "1e-3",
             "--initializer-range", "0.05", "--checkpoint-every", "200"]
    means = []
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        assert train_pretrain.main(command(corpus, out, *sizes, "--precision", precision)[2:]) == 0
        last = rows(out / "log.csv")[100:]
        means.append([np.mean([float(row[name]) for row in last]) for name in ("mlm_loss", "discriminator_loss")])
    assert means[0] != means[1]
    assert abs(means[0][0] - means[1][0]) < 0.1 and abs(means[0][1] - means[1][1]) < 0.01


def torchrun(corpus: Path, out: Path, *more: str) -> subprocess.Popen:
    """Two processes on the CPU, with gloo."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                             *command(corpus, out, *more)[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_give_the_losses_and_weights_of_one(corpus, finished, tmp_path):
    """Each takes half of the rows, here in two parts; one of them writes."""
    process = torchrun(corpus, tmp_path, "--accumulate", "2")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.count("17,665 parameters") == said.count("tokenizing") == 1 and "cpu float32 x 2" in said
    assert_equal_within_rounding(tmp_path, finished)
    assert [int(row["step"]) for row in rows(tmp_path / "eval.csv")] == [6, 12]


def wait_for_rows(process: subprocess.Popen, path: Path, count: int) -> None:
    while not path.exists() or len(path.read_text().splitlines()) <= count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_sigterm_to_torchrun_saves_and_a_process_that_dies_ends_the_others_with_an_error(corpus, tmp_path):
    long = ("--steps", "100000", "--checkpoint-every", "10")
    process = torchrun(corpus, tmp_path, *long)
    wait_for_rows(process, tmp_path / "log.csv", 3)
    process.terminate()
    process.communicate(timeout=60)
    step = int(rows(tmp_path / "log.csv")[-1]["step"])
    assert (tmp_path / f"checkpoint-{step:08d}.pt").exists()            # of the very last step, whatever the cadence
    process = torchrun(corpus, tmp_path, *long)
    wait_for_rows(process, tmp_path / "log.csv", step + 20)
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[1]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and "error: process 0 lost one of the 2" in said
    steps = [int(row["step"]) for row in rows(tmp_path / "log.csv")]
    assert steps == list(range(1, len(steps) + 1))                      # none lost, none twice


def test_a_batch_that_does_not_divide_is_refused(corpus, tmp_path, capsys):
    assert "--batch-size 8 does not divide by 3" in fails(command(corpus, tmp_path, "--accumulate", "3")[2:], capsys)


def test_without_torch_xla_the_tpu_option_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    message = fails(["--tpu", "--out", str(tmp_path)], capsys)
    assert "pip install torch==2.9.0 torch_xla==2.9.0" in message and torch.__version__ in message


@pytest.mark.slow
def test_a_compiled_model_trains_the_same(corpus, finished, tmp_path):
    assert train_pretrain.main(command(corpus, tmp_path, "--compile")[2:]) == 0
    assert_equal_within_rounding(tmp_path, finished)


# --- stages and objectives ---

def test_init_takes_weights_and_vocabulary_and_starts_a_fresh_schedule(corpus, finished, tmp_path):
    """The first update has a learning rate of 0: after it the weights are still those of --init, in both networks."""
    arguments = command(corpus, tmp_path, "--init", str(finished), "--steps", "1", "--vocab-size", "77")[2:]
    assert train_pretrain.main(arguments) == 0
    ours, theirs = (electramed.load_pretrained(path).state_dict() for path in (tmp_path, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["step"] for row in rows(tmp_path / "log.csv")] == ["1"]
    assert (tmp_path / "model/vocab.txt").read_text() == (finished / "model/vocab.txt").read_text()
    state = torch.load(tmp_path / "checkpoint-00000001.pt", weights_only=True)["optimizer"]
    assert {group["updates"] for group in state["param_groups"]} == {1}


def test_the_position_table_is_reused_where_the_new_one_is_longer(tiny_config, tmp_path):
    short, long = (electramed.ElectraForPretraining(dataclasses.replace(tiny_config, max_position_embeddings=length))
                   for length in (128, 512))
    electramed.save_pretrained(short, tmp_path)
    initial = {name: tensor.clone() for name, tensor in long.state_dict().items()}
    electramed.load_initial(long, tmp_path)
    for name, tensor in long.state_dict().items():
        before = short.state_dict()[name]
        assert torch.equal(tensor[:len(before)], before)
        assert torch.equal(tensor[len(before):], initial[name][len(before):])
    assert len(long.discriminator.electra.embeddings.position_embeddings.weight) == 512


def test_init_refuses_other_sizes_another_vocabulary_and_a_folder_without_one(corpus, finished, tmp_path, capsys):
    start = command(corpus, tmp_path, "--init", str(finished))[2:]
    assert "hidden_size is 16, this run's 32" in fails([*start, "--hidden-size", "32"], capsys)
    assert "num_attention_heads is 2, this run's 4" in fails([*start, "--num-attention-heads", "4"], capsys)
    Tokenizer([*Tokenizer.from_file(finished).pieces[:-1], "zzz"]).save(tmp_path / "other")
    start[start.index("--out") + 1] = str(tmp_path / "b")
    assert "another vocabulary" in fails([*start, "--vocab", str(tmp_path / "other")], capsys)
    assert not (tmp_path / "b").exists()                                # found out before any work was done
    shutil.copytree(finished / "model", tmp_path / "bare")
    (tmp_path / "bare/vocab.txt").unlink()
    assert "pass --vocab" in fails([*start, "--init", str(tmp_path / "bare")], capsys)
    assert "no config.json" in fails([*start, "--init", str(tmp_path / "nothing")], capsys)


def test_bio_electra_pp_asks_for_the_run_it_goes_on_from(tmp_path, capsys):
    assert "pass its folder by --init" in fails(["--preset", "bio-electra-pp", "--out", str(tmp_path)], capsys)


def test_the_bert_baseline_trains_the_encoder_that_fine_tuning_starts_from(corpus, tmp_path, capsys):
    arguments = command(corpus, tmp_path / "mlm", "--objective", "mlm", "--hidden-size", "32")[2:]
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
    assert all(torch.equal(tensor, trained[f"electra.{name}"]) for name, tensor in head.electra.state_dict().items())
    arguments[arguments.index("--out") + 1] = str(tmp_path / "next")
    assert train_pretrain.main([*arguments, "--init", str(tmp_path / "mlm"), "--steps", "1"]) == 0


def test_the_bert_baselines_loss_is_the_cross_entropy_of_the_hidden_tokens(tiny_config):
    model = electramed.MaskedLanguageModel(tiny_config)
    ids = torch.tensor([[2, *range(5, 45), 3]])
    ones = torch.ones_like(ids)
    masked = electramed.mask_tokens(ids, ones, tiny_config, torch.Generator().manual_seed(0))
    output = model(masked, ones, 0 * ones)
    chosen = masked.positions[0][masked.weights[0] > 0]
    logits = model.predict(model.electra(masked.input_ids, ones, 0 * ones))[0, chosen]
    expected = -logits.log_softmax(-1)[range(len(chosen)), ids[0, chosen]].mean()
    assert output.loss.item() == output.mlm_loss.item() == pytest.approx(expected.item(), rel=1e-5)


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


def test_a_loss_that_is_not_finite_stops_naming_step_batch_and_last_good_checkpoint(corpus, tmp_path, capsys):
    """The first update has rate 0, the second makes the weights huge, the third finds out; the log would at 12."""
    message = fails([*SMALL, "--corpus", str(corpus), "--out", str(tmp_path), "--learning-rate", "1e30", "--log-every",
                     "12", "--checkpoint-every", "2"], capsys)
    options = train_pretrain.complete(train_pretrain.Options(max_length=48, batch_size=8))
    width, examples = train_pretrain.BatchOrder(data.open_shards(tmp_path / "shards"), options).examples(2)
    assert "step 3 is not finite" in message
    assert f"last good checkpoint: {tmp_path / 'checkpoint-00000002.pt'};" in message
    assert f"seed 0, {width} tokens, examples {' '.join(map(str, examples))};" in message


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
