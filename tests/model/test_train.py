# SPDX-License-Identifier: Apache-2.0
import csv
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from avsmodel.checkpoint import load_state
from avsmodel.config import TrainConfig, load_config
from avsmodel.evaluate import evaluate, open_split
from avsmodel.log import read_log
from avsmodel.pretrained import Model
from avsmodel.train import rate_factor, train

# One thread each: sums in another order would not be bit-equal.
LONG = ("train.epochs=8", "train.checkpoint_every=1", "model.dropout=0.1")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

NOT_TERMS = {"step", "epoch", "lr", "loss", "gradient_norm", "seconds"}


def command(settings, folder, *options):
    return ["-m", "avsmodel", "train", "tiny", *settings, "-q", "-o", str(folder), *options]


def train_until(step, delay, settings, folder, *options):
    """Train in another process, killed `delay` seconds after it has logged `step` steps."""
    arguments = [sys.executable, *command(settings, folder, *options)]
    with subprocess.Popen(arguments, env=ENVIRONMENT) as process:
        try:
            while len([row for row in read_log(folder) if row["kind"] == "train"]) < step:
                assert process.poll() is None, "ended before it was killed"
                time.sleep(0.005)
            time.sleep(delay)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def same_tensors(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_everything_that_using_it_needs(run):
    files = {path.name for path in run.folder.iterdir()}
    assert files == {
        *("config.yaml", "checkpoint.pt", "log.jsonl", "train.csv", "evaluate.csv"),
        *("best", "last"),
    }
    resolved = load_config(run.folder / "config.yaml")
    assert resolved.data.class_names == ("background", "sounding")
    assert resolved.data.num_frames == 5
    assert resolved.data.format == "ms3"
    with open(run.folder / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [int(row["epoch"]) for row in rows] == [0, 0, 0, 1, 1, 1]
    total = sum(float(rows[0][name]) for name in rows[0] if name not in NOT_TERMS)
    assert float(rows[0]["loss"]) == pytest.approx(total, rel=1e-4)
    checks = [row for row in read_log(run.folder) if row["kind"] == "evaluate"]
    assert [row["step"] for row in checks] == [3, 6]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(micro, tmp_path):
    settings = (*micro, *LONG)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    chance = random.Random(7)
    train_until(4, chance.uniform(0, 0.1), settings, killed)
    train_until(12, chance.uniform(0, 0.1), settings, killed, "--resume")
    for folder, options in ((whole, ()), (killed, ("--resume",))):
        arguments = [sys.executable, *command(settings, folder, *options)]
        subprocess.run(arguments, env=ENVIRONMENT, check=True)
    for name in ("last", "best"):
        weights = [load_file(run / name / "model.safetensors") for run in (whole, killed)]
        assert same_tensors(*weights)
    states = [load_state(run / "checkpoint.pt") for run in (whole, killed)]
    assert states[0]["step"] == 24
    for first, second in zip(*(flatten(state) for state in states), strict=True):
        assert first == second
    logs = [[{**row, "seconds": 0} for row in read_log(run)] for run in (whole, killed)]
    assert logs[0] == logs[1]


def flatten(value):
    if isinstance(value, torch.Tensor):
        yield value.tolist()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield key
            yield from flatten(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flatten(item)
    else:
        yield value


def test_a_finished_run_resumes_to_itself(run, tmp_path):
    before = load_file(run.folder / "last" / "model.safetensors")
    train(load_config("tiny", run.settings), run.folder, resume=True, progress=False)
    assert same_tensors(before, load_file(run.folder / "last" / "model.safetensors"))


def test_a_training_starts_from_another_run(run, tmp_path):
    settings = (*run.settings, f"train.init={run.folder}", "train.epochs=1", "train.lr=0")
    train(load_config("tiny", settings), tmp_path / "next", progress=False)
    first, second = (
        Model.from_pretrained(folder, "cpu").network for folder in (run.folder, tmp_path / "next")
    )
    for (name, old), new in zip(first.named_parameters(), second.parameters(), strict=True):
        if "codebook" not in name:
            assert torch.equal(old, new), name


def test_the_seed_decides(run, tmp_path):
    short = (*run.settings, "train.epochs=1", "train.evaluate_every=0")
    weights = []
    for index, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(index)
        train(load_config("tiny", [*short, f"train.seed={seed}"]), folder, progress=False)
        weights.append(load_file(folder / "last" / "model.safetensors"))
    assert same_tensors(weights[0], weights[1])
    assert not same_tensors(weights[0], weights[2])


def test_an_existing_run_is_not_overwritten(run, tmp_path):
    config = load_config("tiny", run.settings)
    before = (run.folder / "checkpoint.pt").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run"):
        train(config, run.folder, progress=False)
    with pytest.raises(ValueError, match="resume or overwrite, got both"):
        train(config, run.folder, resume=True, overwrite=True, progress=False)
    lost = load_config("tiny", [*run.settings, f"data.root={tmp_path / 'nowhere'}"])
    with pytest.raises(FileNotFoundError):
        train(lost, run.folder, overwrite=True, progress=False)
    assert (run.folder / "checkpoint.pt").read_bytes() == before

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="a folder of a run or an empty one"):
            train(config, other, progress=False, **options)
    assert (other / "thesis.tex").read_text() == "years of work"


def test_overwriting_replaces_the_run(run, tmp_path):
    short = [*run.settings, "train.epochs=1", "train.evaluate_every=0"]
    train(load_config("tiny", short), tmp_path / "run", progress=False)
    short.append("train.seed=5")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(load_config("tiny", short), tmp_path / "run", overwrite=True, progress=False)
    assert load_config(tmp_path / "run" / "config.yaml").train.seed == 5
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_resuming_with_another_configuration_is_refused(run):
    config = load_config("tiny", [*run.settings, "train.lr=0.5"])
    with pytest.raises(
        ValueError, match=r"expected train\.lr=.* as in the run to resume, got 0\.5"
    ):
        train(config, run.folder, resume=True, progress=False)


def test_a_loss_that_is_not_finite_stops_and_names_the_clips(run, tmp_path):
    wild = [*run.settings, "train.lr=1e30", "train.clip_norm=0", "train.checkpoint_every=1"]
    with pytest.raises(FloatingPointError, match=r"a finite (loss|gradient), got .* clip\d+, clip"):
        train(load_config("tiny", wild), tmp_path / "run", progress=False)
    state = load_state(tmp_path / "run" / "checkpoint.pt")
    assert 1 <= state["step"] < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.batch_size=7", r"at least train\.batch_size=7 clips in the training split, got 6"),
        ("train.batch_size=0", "expected train.batch_size to be a multiple of"),
        ("train.epochs=0", "expected at least 1 epoch, got 0"),
        ("data.root=", "expected data.root to name a data set"),
        ("train.device=tpu", "expected auto, cpu or cuda, got 'tpu'"),
    ],
)
def test_what_cannot_be_trained_is_named(run, tmp_path, change, message):
    config = load_config("tiny", [*run.settings, change])
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_half_precision_trains(run, tmp_path):
    short = [*run.settings, "train.epochs=1", "train.amp=bf16"]
    row = train(load_config("tiny", short), tmp_path / "run", progress=False)
    assert 0 <= row["J"] <= 1


def test_two_processes_train_and_measure_as_one(micro, tmp_path):
    settings = (*micro, *LONG, "train.epochs=1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [*torchrun, *command(settings, tmp_path / "run")]
    subprocess.run(arguments, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)
    rows = read_log(tmp_path / "run")
    model = Model.from_pretrained(tmp_path / "run" / "last", "cpu")
    dataset = open_split(model.config.data, "val")
    alone = evaluate(model, dataset, model.config.evaluate, progress=False)
    assert {name: rows[-1][name] for name in alone["metrics"]} == alone["metrics"]
    assert rows[-1]["kind"] == "evaluate"
    assert len(load_state(tmp_path / "run" / "checkpoint.pt")["random"]) == 2
    with pytest.raises(ValueError, match="expected 2 processes, as before the checkpoint, got 1"):
        train(load_config("tiny", settings), tmp_path / "run", resume=True, progress=False)


def test_rates_follow_the_schedule():
    steps = TrainConfig(epochs=4, lr_drop_epochs=(1, 3), lr_drop_factor=0.1)
    factors = [rate_factor(steps, step, 2) for step in range(8)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    cosine = TrainConfig(epochs=4, schedule="cosine", lr_drop_factor=0.1, warmup_steps=1)
    factors = [rate_factor(cosine, step, 2) for step in range(8)]
    assert factors[0] == pytest.approx(0.5)
    assert factors[4] == pytest.approx(0.55)
    assert factors[1:] == sorted(factors[1:], reverse=True) and factors[-1] > 0.1
