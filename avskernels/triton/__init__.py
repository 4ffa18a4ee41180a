"""Triton kernels and their launchers, one file an operator; importing one imports triton.

The launchers take tensors of a CUDA device, and under TRITON_INTERPRET=1 those of the CPU, which is
how the tests check the kernels' arithmetic on a machine without a GPU.
"""

import contextlib

import torch


def device_of(tensor):
    """Make a CUDA tensor's device current, since a kernel is launched on that."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
