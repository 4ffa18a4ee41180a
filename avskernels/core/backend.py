# SPDX-License-Identifier: Apache-2.0
"""Who computes: an operator's implementations in order, and the user's choice among them."""

import contextlib
import contextvars
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from avskernels import _C

BACKENDS = ("auto", "kernel", "reference")
EXPLAIN = "explain"  # set by explain() alone

_current = contextvars.ContextVar("avskernels_backend", default="auto")
# The same for torch.compile, which guards a global, but up to torch 2.13 traces no ContextVar.
_compiled = "auto"
_cuda_cpp = False


class Implementation(NamedTuple):
    """One way to compute an operator.

    Attributes:
        name: what it is: ``"C++"``, ``"CUDA C++"``, ``"Triton"``, or words for plain torch.
        device: the device type it runs on; ``"any"`` for plain torch.
        run: a function of the operator's arguments; None where the compiled library registers it.
        refuses: a function of the operator's arguments, a named tuple, that returns the reason why
            it cannot compute them, or None.
        is_kernel: whether it satisfies ``backend="kernel"``.
    """

    name: str
    device: str
    run: Callable[..., Any] | None
    refuses: Callable[[Any], str | None] | None
    is_kernel: bool

    def refusal(self, device: str, arguments: Any) -> str | None:
        """Return why it cannot compute these arguments on this device type, or None."""
        if self.device not in (device, "any"):
            return f"runs on {self.device}"
        return self.refuses(arguments) if self.refuses is not None else None


def cpp(refuses: Callable[[Any], str | None] | None = None) -> Implementation:
    """Return the kernel of ``csrc/<op>/<op>_cpu.cpp``."""
    return Implementation("C++", "cpu", None, refuses, True)


def cuda_cpp(
    run: Callable[..., Any], refuses: Callable[[Any], str | None] | None = None
) -> Implementation:
    """Return the kernel of ``csrc/<op>/<op>_cuda.cu``, which :func:`use_cuda_cpp` switches on."""

    def reason(arguments: Any) -> str | None:
        if _C.build_info()["cuda"] == "none":
            return "this build has no CUDA library"
        if not _cuda_cpp:
            return "has not run on a GPU yet; avskernels.use_cuda_cpp() switches it on"
        return refuses(arguments) if refuses is not None else None

    return Implementation("CUDA C++", "cuda", run, reason, True)


def triton_kernel(
    run: Callable[..., Any], refuses: Callable[[Any], str | None] | None = None
) -> Implementation:
    """Return a Triton launcher for CUDA devices.

    Args:
        run: a function of the operator's arguments; it imports its Triton file when it is called.
        refuses: see :class:`Implementation`.
    """

    def reason(arguments: Any) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        return refuses(arguments) if refuses is not None else None

    return Implementation("Triton", "cuda", run, reason, True)


def plain_torch(run: Callable[..., Any], name: str = "plain torch") -> Implementation:
    """Return an implementation in plain torch, which runs anywhere."""
    return Implementation(name, "any", run, None, False)


def composite(
    run: Callable[..., Any],
    *devices: str,
    name: str,
    refuses: Callable[[Any], str | None] | None = None,
) -> list[Implementation]:
    """Return an implementation per device type that calls kernels of other operators."""
    return [Implementation(name, device, run, refuses, True) for device in devices]


class Explanation(NamedTuple):
    """Which implementation computes a call, and why not those before it.

    Attributes:
        op: the operator's name.
        device: the device type of its tensors.
        chosen: the implementation's name.
        refused: pairs of a name and a reason, in order.
    """

    op: str
    device: str
    chosen: str
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.device}: {self.chosen}"]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.refused])


class Explained(Exception):
    """Carries an :class:`Explanation` out of the operator that is being explained."""


def _check_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {name!r}")
    return name


@contextlib.contextmanager
def _chosen(name: str) -> Iterator[None]:
    global _compiled
    token = _current.set(name)
    _compiled = name
    try:
        yield
    finally:
        _current.reset(token)
        _compiled = _current.get()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose what the operators run as, inside a ``with`` block.

    Args:
        name: ``"auto"`` (the best there is for the device and arguments), ``"kernel"`` (the same,
            but an error where only plain torch would serve) or ``"reference"`` (the definition in
            plain torch).

    Raises:
        ValueError: for another name.

    Example:
        >>> from avskernels import vector_quantize
        >>> x, codebook = torch.eye(3), torch.eye(3)
        >>> with backend("reference"):
        ...     vector_quantize(x, codebook).indices
        tensor([0, 1, 2])
    """
    with _chosen(_check_backend(name)):
        yield


def use_cuda_cpp(enabled: bool = True) -> None:
    """Let CUDA devices run the kernels in CUDA C++, which have not run on a GPU yet.

    Args:
        enabled: False returns to the default.
    """
    global _cuda_cpp
    _cuda_cpp = enabled


def current_backend(asked: str | None) -> str:
    """Return the backend of a call: the one it asks for, or that of the ``with`` block."""
    if asked is not None:
        return _check_backend(asked)
    return _compiled if torch.compiler.is_dynamo_compiling() else _current.get()


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Tell which implementation would compute a call, and why not the others. Computes nothing.

    Args:
        op: an operator of this package, such as :func:`avskernels.tpavi`.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        Explanation: prints as a few lines.

    Raises:
        RuntimeError: for arguments that the operator does not take.

    Example:
        >>> from avskernels import attention_pool
        >>> print(explain(attention_pool, torch.zeros(1, 2, 3), torch.zeros(1, 1, 2)))
        attention_pool on cpu: C++
    """
    with _chosen(EXPLAIN):
        try:
            op(*args, **kwargs)
        except Explained as explained:
            explanation: Explanation = explained.args[0]
            return explanation
    raise TypeError(f"explain: expected an operator of avskernels, got {op!r}")
