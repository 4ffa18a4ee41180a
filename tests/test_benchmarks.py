"""The benchmarks' device option, what is recorded of a run, and the run on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import report
import torch

ROOT = Path(__file__).parent.parent
NO_DEVICE = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def run_benchmarks(*options, file="benchmarks/bench_linear_assignment.py"):
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pyproject.toml", file, *options]
    # pytest-benchmark does nothing where it believes to be in a process of xdist.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_cell_is_measured_recorded_and_drawn(tmp_path):
    measured, drawn, recorded = (tmp_path / name for name in ("b.json", "b.html", "r.json"))
    run = run_benchmarks("--device=cpu", "-k", "avskernels and 5", f"--benchmark-json={measured}")
    assert run.returncode == 0, run.stdout
    report.write_tables([measured], drawn, recorded)
    record = json.loads(recorded.read_text())
    assert record["machine"]["gpu"] is None
    (row,) = record["rows"]
    assert row["variant"] == "avskernels" and row["median_ms"] > 0 and "device_ms" not in row
    assert "linear_assignment" in drawn.read_text()


def test_the_gpu_is_named():
    entry = {
        "fullname": "benchmarks/bench_tpavi.py::test_tpavi[...]",
        "params": {"variant": "cuda"},
        "stats": {"median": 2e-3, "rounds": 9},
        "extra_info": {
            "case": "one clip",
            "mode": "forward",
            "dtype": "float32",
            "device": "NVIDIA H200",
            "threads": 16,
            "bytes": 1,
            "flops": 1,
            "peak_bytes": 10**6,
            "device_seconds": 5e-4,
        },
    }
    run = {
        "benchmarks": [entry],
        "machine_info": {"cpu": {"brand_raw": "a CPU"}},
        "datetime": "2026-01-02T03:04:05",
        "commit_info": {},
    }
    record = report.compact([run, run])
    assert record["machine"]["gpu"] == "NVIDIA H200" and record["machine"]["threads"] == 16
    assert [row["device_ms"] for row in record["rows"]] == [0.5, 0.5]
    page = report.page(record)
    assert "NVIDIA H200" in page and "2.000 ms (0.500)" in page


IN_TURN = """
import time
import common, pytest

def step(seconds):
    time.sleep(seconds)
    return seconds / 2

@pytest.mark.parametrize("variant", ["avskernels"])
def test_sleep(benchmark, variant):
    steps = {variant: lambda: step(1e-3), "eager": lambda: step(5e-3)}
    common.measure_in_turn(benchmark, steps, case="sleep", part="half", rounds=6)
"""


def test_variants_measured_in_turn(tmp_path):
    file, measured, drawn, recorded = (
        tmp_path / name for name in ("bench_sleep.py", "b.json", "b.html", "r.json")
    )
    file.write_text(IN_TURN)
    run = run_benchmarks(f"--rootdir={tmp_path}", f"--benchmark-json={measured}", file=file)
    assert run.returncode == 0, run.stdout
    report.write_tables([measured], drawn, recorded)
    rows = json.loads(recorded.read_text())["rows"]
    assert [row["mode"] for row in rows] == ["whole", "whole", "half", "half"]
    whole, baseline, half, _ = rows
    assert 1 <= whole["median_ms"] < 5 <= baseline["median_ms"]
    assert half["median_ms"] == 0.5 and half["saved_ms"] == [2.0, 2.0, 2.0]
    assert "saves 2.0 ms (2.0 to 2.0)" in drawn.read_text()


@NO_DEVICE
def test_a_device_that_is_not_here():
    run = run_benchmarks("--device=cuda")
    message = "benchmarks: expected --device to be cpu, since no CUDA device is here, got 'cuda'"
    assert run.returncode == pytest.ExitCode.USAGE_ERROR and message in run.stderr


@NO_DEVICE
def test_a_gpu_run_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "test"])
    with pytest.raises(
        SystemExit, match=r"^gpu: expected a CUDA device .*; missing here: .*a CUDA"
    ):
        gpu.main()
