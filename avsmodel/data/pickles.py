# SPDX-License-Identifier: Apache-2.0
"""Log-mel pickles of AVSBench, read without running what they contain.

A pickle is a program: ``pickle.load`` calls whatever functions it names. The published log-mel
files are pickled tensors, which need only four names; a pickle that names anything else is
rejected before anything is called.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_EXAMPLE_SHAPE = (1, 96, 64)
_ZIP = b"PK\x03\x04"  # how a file of torch.save begins


def read_log_mel(path: str | Path) -> Tensor:
    """Return the log-mel examples that are pickled, or saved by torch, at ``path``.

    Returns:
        float32 ``Tensor[n, 1, 96, 64]``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a pickle that names anything but a tensor's parts, a damaged file, or a
            tensor of another shape or with values that are not finite.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"read_log_mel: expected a file at {path}, got none") from None
    try:
        if content.startswith(_ZIP):
            examples = _load_from_bytes(content)
        else:
            examples = _TensorUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle raises nearly any type
        raise ValueError(
            f"read_log_mel: expected a pickled tensor at {path}, got {_first_line(error)}"
        ) from None
    if not isinstance(examples, Tensor):
        raise ValueError(
            f"read_log_mel: expected a tensor in {path}, got {type(examples).__name__}"
        )
    if examples.ndim != 4 or tuple(examples.shape[1:]) != _EXAMPLE_SHAPE or not len(examples):
        raise ValueError(
            f"read_log_mel: expected shape [n, 1, 96, 64] in {path}, got {list(examples.shape)}"
        )
    examples = examples.detach().to(torch.float32).contiguous()
    if not examples.isfinite().all():
        raise ValueError(f"read_log_mel: expected finite values in {path}, got NaN or infinity")
    return examples


def write_log_mel(path: str | Path, examples: Tensor) -> None:
    """Pickle log-mel examples as AVSBench does, with equal bytes for equal values."""
    buffer = io.BytesIO()
    _StablePickler(buffer, protocol=4).dump(examples.clone(memory_format=torch.contiguous_format))
    Path(path).write_bytes(buffer.getvalue())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _load_from_bytes(content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message suggests to load the file unsafely
        raise pickle.UnpicklingError("one that names more than tensors (not run)") from None


def _rebuild_tensor(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = (),
    metadata: Any = None,
) -> Tensor:
    # torch's own function resizes a storage that is too small; a view checks the bounds.
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return flat.as_strided(size, stride, offset)


_ALLOWED = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _load_from_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"one that names {module}.{name} (not run)") from None


class _StoredBytes:
    """Pickles as a call of torch's storage loader on these bytes."""

    def __init__(self, content: bytes):
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.content,)


class _StablePickler(pickle.Pickler):
    # torch pickles the address of a storage, so that two pickles of one tensor differ; its zip
    # format holds no address.
    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        storage = torch.storage.TypedStorage(
            wrap_storage=obj.untyped_storage(), dtype=obj.dtype, _internal=True
        )
        buffer = io.BytesIO()
        torch.save(storage, buffer)
        parts = (_StoredBytes(buffer.getvalue()), 0, tuple(obj.shape), obj.stride(), False)
        return torch._utils._rebuild_tensor_v2, (*parts, collections.OrderedDict())
