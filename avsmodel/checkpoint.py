# SPDX-License-Identifier: Apache-2.0
"""Files that a killed process leaves whole, and the state that a bit-exact resume needs."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

PARTIAL = ".partial"  # suffix of a file that is being written


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace the file at ``path`` with what ``write`` writes, wholly or not at all.

    The bytes go to a temporary file beside ``path``, which is synced to the disk and renamed.

    Args:
        path: the file to replace or create.
        write: called with the temporary file, open for binary writing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "a.txt", lambda file: file.write(b"text"))
        >>> (folder / "a.txt").read_text()
        'text'
    """
    temporary = path.with_name(path.name + PARTIAL)
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; a killed process leaves the old file or the new one."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, on the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no checkpoint at ``path``.
        ValueError: if the file is not a checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: expected a file, got {path}, which does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"checkpoint: expected a training checkpoint at {path}, got {reason}"
        ) from (error)


def seed_everything(seed: int) -> None:
    """Seed every random generator whose state :func:`random_state` returns."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every random generator that training may draw from."""
    version, python_words, python_gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    name, numpy_words, position, has_gauss, gauss = numpy_state
    state = {
        "python": [version, list(python_words), python_gauss],
        "numpy": [name, numpy_words.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set every random generator to the state that :func:`random_state` returned."""
    version, python_words, python_gauss = state["python"]
    random.setstate((version, tuple(python_words), python_gauss))
    name, numpy_words, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(numpy_words, np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
