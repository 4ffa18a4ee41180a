"""The explicit choice between kernels and reference."""

import contextlib
import contextvars

import torch

BACKENDS = ("auto", "kernel", "reference")

_current = contextvars.ContextVar("avskernels_backend", default="auto")
# The same for torch.compile, which guards a global, but up to torch 2.13 traces no ContextVar.
_compiled = "auto"


def _check_backend(name):
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {name!r}")
    return name


@contextlib.contextmanager
def backend(name):
    """Choose what the operators run as, inside a ``with`` block.

    Args:
        name: ``"auto"`` (the best there is for the device), ``"kernel"`` (the same, but an error
            where only plain torch would serve) or ``"reference"`` (the definition in plain torch).

    Raises:
        ValueError: for another name.

    Example:
        >>> from avskernels import vector_quantize
        >>> x, codebook = torch.eye(3), torch.eye(3)
        >>> with backend("reference"):
        ...     vector_quantize(x, codebook).indices
        tensor([0, 1, 2])
    """
    global _compiled
    token = _current.set(_check_backend(name))
    _compiled = name
    try:
        yield
    finally:
        _current.reset(token)
        _compiled = _current.get()


def use_reference(op, chosen, *tensors):
    """Tell whether ``op`` is to run as its reference; check that a demanded kernel exists."""
    if chosen is not None:
        name = _check_backend(chosen)
    else:
        name = _compiled if torch.compiler.is_dynamo_compiling() else _current.get()
    if name == "kernel":
        device = tensors[0].device.type
        if not has_kernel(op, device):
            raise RuntimeError(f"{op}: expected a device with a kernel, got {device}")
    return name == "reference"


def has_kernel(op, device_type):
    """Tell whether ``avskernels::<op>`` has a kernel of its own on a device type."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(
        f"avskernels::{op}", key
    )
