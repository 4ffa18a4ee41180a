# SPDX-License-Identifier: Apache-2.0
"""What all Triton launchers need; it does not import Triton.

The launchers take tensors of a CUDA device, and under TRITON_INTERPRET=1 those of the CPU, which is
how the tests check the kernels' arithmetic on a machine without a GPU.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a CUDA tensor's device current, since a kernel is launched on that."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
