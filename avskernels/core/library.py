# SPDX-License-Identifier: Apache-2.0
"""The compiled libraries: loading them, and what they say of themselves."""

import importlib.util
from pathlib import Path

import torch

from avskernels import _C  # importing it defines the operators and registers their CPU kernels


def _load_cuda_library() -> None:
    # A second library, because it needs libtorch_cuda: a CPU-only torch never sees it.
    spec = importlib.util.find_spec("avskernels._cuda")
    if torch.version.cuda is not None and spec is not None and spec.origin is not None:
        torch.ops.load_library(Path(spec.origin))


def build_info() -> dict[str, str]:
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


_load_cuda_library()
