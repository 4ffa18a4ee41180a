# SPDX-License-Identifier: Apache-2.0
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from avsmodel.checkpoint import (
    load_state,
    random_state,
    restore_random_state,
    save_state,
    write_atomically,
)

# Writes one checkpoint after the other, each filled with one number.
_WRITER = """
import sys
from pathlib import Path
import torch
from avsmodel.checkpoint import save_state
for number in range(10**9):
    save_state(Path(sys.argv[1]), {"values": torch.full((200_000,), number), "number": number})
    if number == 0:
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
"""


def test_a_kill_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            writer.stdout.readline()
            numbers = []
            for _ in range(20):
                state = load_state(path)  # read while it is being replaced
                assert state["values"].eq(state["number"]).all()
                numbers.append(state["number"])
                time.sleep(0.01)
        finally:
            writer.kill()
    state = load_state(path)
    assert state["values"].eq(state["number"]).all()
    assert state["number"] >= numbers[-1] > numbers[0]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"


def test_every_random_generator_is_restored():
    device = torch.device("cpu")

    def draw():
        return random.random(), np.random.normal(), torch.rand(3).tolist()

    np.random.normal()  # leaves the second normal of the pair in the state
    random.gauss(0, 1)
    state = random_state(device)
    first = draw()
    draw()
    restore_random_state(state, device)
    assert draw() == first


def test_the_random_state_survives_the_file(tmp_path):
    state = random_state(torch.device("cpu"))
    expected = torch.rand(3)
    save_state(tmp_path / "state.pt", {"random": [state]})
    restore_random_state(load_state(tmp_path / "state.pt")["random"][0], torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_unreadable_checkpoints_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_state(path)
    path.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ValueError, match=r"expected a training checkpoint at .*checkpoint\.pt"):
        load_state(path)
    torch.save({"model": Malicious()}, path)
    with pytest.raises(ValueError, match="expected a training checkpoint"):
        load_state(path)
