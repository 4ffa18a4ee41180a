# SPDX-License-Identifier: Apache-2.0
import csv

from avsmodel.log import LOG, RunLog, read_log


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_arrive_in_both_files(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write("train", 1, loss=2.5)
    log.write("evaluate", 1, J=0.25)
    log.write("train", 2, loss=1.5)
    assert [(row["kind"], row["step"]) for row in read_log(tmp_path)] == [
        ("train", 1),
        ("evaluate", 1),
        ("train", 2),
    ]
    assert rows_of(tmp_path / "train.csv") == [
        {"step": "1", "loss": "2.5"},
        {"step": "2", "loss": "1.5"},
    ]
    assert rows_of(tmp_path / "evaluate.csv") == [{"step": "1", "J": "0.25"}]


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("train", step, loss=float(step))
    with open(tmp_path / LOG, "a") as file:
        file.write('{"kind": "train", "step": 4, "lo')  # the kill came here
    log = RunLog(tmp_path, 2)
    log.write("train", 3, loss=30.0)
    assert [row["loss"] for row in read_log(tmp_path)] == [1.0, 2.0, 30.0]
    assert [row["loss"] for row in rows_of(tmp_path / "train.csv")] == ["1.0", "2.0", "30.0"]


def test_a_folder_without_a_log_has_no_rows(tmp_path):
    assert read_log(tmp_path) == []
