"""Loads the compiled libraries and registers what Python adds to their operators."""

import importlib
import importlib.util
import warnings
from pathlib import Path

import torch

from avskernels import _C  # importing it registers the CPU operators

_fallback_warned = False

# Below an operator autocast has no say: its plain torch computes in the precision it asks for.
_AUTOCAST_KEYS = torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCPU
) | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _load_cuda_library():
    # A second library, because it needs libtorch_cuda: a CPU-only torch never sees it.
    spec = importlib.util.find_spec("avskernels._cuda")
    if torch.version.cuda is not None and spec is not None and spec.origin is not None:
        torch.ops.load_library(Path(spec.origin))


def build_info():
    """Describe this build: compiler, torch target, CUDA version and architectures, CPU features.

    Returns:
        dict[str, str]: ``compiler``, ``torch_target`` (the oldest torch it runs on), ``torch`` (the
        one it runs on now), ``cuda`` ("none" or version and architectures), ``cpu_detected`` and
        ``cpu_active`` (instruction set levels).

    Example:
        >>> sorted(build_info())
        ['compiler', 'cpu_active', 'cpu_detected', 'cuda', 'torch', 'torch_target']
    """
    return {**_C.build_info(), "torch": torch.__version__}


def define(op, schema_tail):
    """Define an operator that has no compiled part: ``avskernels::<op><schema_tail>``."""
    torch.library.define(f"avskernels::{op}", schema_tail)


def register_fallback(op, function, *kernel_keys):
    """Serve ``avskernels::<op>`` with plain torch on every device that has no kernel of its own.

    Under the dispatch keys ``kernel_keys`` it calls kernels, and counts as one itself.
    """
    overload = getattr(torch.ops.avskernels, op).default
    expected = {"cpu", *(key.lower() for key in kernel_keys)}

    def fallback(*args):
        global _fallback_warned
        device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
        if device.type not in expected and not _fallback_warned:
            _fallback_warned = True
            warnings.warn(
                f"avskernels: no kernel for {op} on {device.type}, running it in plain torch "
                "(this is said once a process)",
                stacklevel=2,
            )
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return function(*args)

    for key in ("CompositeExplicitAutograd", *kernel_keys):
        torch.library.impl(overload.name(), key, fallback)


def register_triton(op, file):
    """Serve ``avskernels::<op>`` on CUDA devices with its launcher in ``avskernels/triton/<file>``.

    Triton is imported by the first call; where it is not installed, nothing is registered.
    """
    if importlib.util.find_spec("triton") is None:
        return

    def launch(*args):
        return getattr(importlib.import_module(f"avskernels.triton.{file}"), op)(*args)

    torch.library.impl(f"avskernels::{op}", "CUDA", launch)


def register_autocast(op, dtype=torch.float32):
    """Under autocast, run the operator with its floating-point tensors cast to ``dtype``."""
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"avskernels::{op}", device, dtype)


def autocast_to(tensor):
    """Cast to the dtype that autocast gives a matrix product; the same tensor outside autocast."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


_load_cuda_library()
