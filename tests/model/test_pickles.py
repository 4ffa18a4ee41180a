# SPDX-License-Identifier: Apache-2.0
"""Published log-mel pickles load; anything else in a pickle is rejected without being run."""

import builtins
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch

from avsmodel.data.pickles import read_log_mel, write_log_mel


@pytest.fixture
def examples():
    return torch.randn(5, 1, 96, 64, generator=torch.Generator().manual_seed(0))


def legacy_save(value, file):
    torch.save(value, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_reads_what_pickle_wrote(tmp_path, examples, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(examples, protocol=protocol))
    assert torch.equal(read_log_mel(path), examples)


def test_reads_what_torch_saved(tmp_path, examples):
    torch.save(examples, tmp_path / "a.pkl")
    assert torch.equal(read_log_mel(tmp_path / "a.pkl"), examples)


def test_reads_a_view_of_a_larger_storage(tmp_path, examples):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(examples.flip(0)[1:4].double()))
    assert torch.equal(read_log_mel(tmp_path / "a.pkl"), examples.flip(0)[1:4])


def test_ordinary_pickle_reads_what_was_written(tmp_path, examples):
    write_log_mel(tmp_path / "a.pkl", examples[1:])
    with (tmp_path / "a.pkl").open("rb") as file:
        assert torch.equal(pickle.load(file), examples[1:])
    assert torch.equal(read_log_mel(tmp_path / "a.pkl"), examples[1:])


class Malicious:
    """Runs a function when `pickle.load` reads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hidden_in_storage(payload):
    """A pickle that names allowed parts only and carries the payload in a storage's bytes."""
    buffer = io.BytesIO()
    legacy_save(payload, buffer)
    return Malicious(torch.storage._load_from_bytes, buffer.getvalue())


@pytest.mark.parametrize(
    "save",
    [lambda p, f: pickle.dump(p, f), torch.save, lambda p, f: pickle.dump(hidden_in_storage(p), f)],
    ids=["pickle", "torch.save", "inside a storage"],
)
@pytest.mark.parametrize("function", [os.system, builtins.exec, subprocess.check_call])
def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path, save, function):
    mark = tmp_path / "it-ran"
    code = f"open({str(mark)!r}, 'w').close()"
    argument = {
        os.system: f"touch {mark}",
        builtins.exec: code,
        subprocess.check_call: [sys.executable, "-c", code],
    }[function]
    path = tmp_path / "a.pkl"
    with path.open("wb") as file:
        save(Malicious(function, argument), file)
    with pytest.raises(
        ValueError, match=r"read_log_mel: expected a pickled tensor at .*not run"
    ) as e:
        read_log_mel(path)
    assert "\n" not in str(e.value)
    assert not mark.exists()


def test_the_payload_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Malicious(os.system, f"touch {tmp_path / 'it-ran'}")))
    assert (tmp_path / "it-ran").exists()


def test_tensor_beyond_its_storage_is_refused(tmp_path, examples):
    _, arguments = examples.__reduce_ex__(2)
    content = pickle.dumps(Malicious(torch._utils._rebuild_tensor_v2, *arguments))
    longer = (arguments[0], 10**6, *arguments[2:])
    (tmp_path / "a.pkl").write_bytes(content)
    assert torch.equal(read_log_mel(tmp_path / "a.pkl"), examples)
    content = pickle.dumps(Malicious(torch._utils._rebuild_tensor_v2, *longer))
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a pickled tensor at .*out of bounds"):
        read_log_mel(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "expected a pickled tensor at .*, got"),
        (b"PK\x03\x04 no zip", "expected a pickled tensor at .*, got"),
        (b"not a pickle", "expected a pickled tensor at .*, got"),
        (pickle.dumps({"log": 1}), "expected a tensor in .*, got dict"),
        (
            pickle.dumps(torch.zeros(5, 96, 64)),
            r"expected shape \[n, 1, 96, 64\] in .*, got \[5, 96",
        ),
        (
            pickle.dumps(torch.zeros(0, 1, 96, 64)),
            r"expected shape \[n, 1, 96, 64\] in .*, got \[0",
        ),
        (
            pickle.dumps(torch.full((1, 1, 96, 64), torch.nan)),
            "expected finite values in .*, got NaN",
        ),
    ],
)
def test_errors(tmp_path, content, message):
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"read_log_mel: {message}"):
        read_log_mel(path)


def test_truncated_pickle(tmp_path, examples):
    content = pickle.dumps(examples)
    for length in (10, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "a.pkl").write_bytes(content[:length])
        with pytest.raises(ValueError, match="read_log_mel: expected a pickled tensor at"):
            read_log_mel(tmp_path / "a.pkl")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"read_log_mel: expected a file at .*, got none"):
        read_log_mel(tmp_path / "a.pkl")
