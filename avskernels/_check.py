"""One tensor against what an operator expects of it; the same sentences as csrc/common/check.h."""

import torch

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def expect(op, name, tensor, shape, dtypes, device=None):
    """Check shape, dtype and device of an argument.

    Args:
        op: the operator's name, which begins the sentence.
        name: the argument's name.
        tensor: ``Tensor``, the argument.
        shape: sizes; a string stands for any size, ``"..."`` at the end for one or more dimensions.
        dtypes: the allowed ones.
        device: that of the operator's first tensor; None where this is the first.

    Raises:
        RuntimeError: ``<op>: expected <name> <what>, got <value>``.
    """
    sizes = tensor.shape
    fits = len(sizes) == len(shape) or (len(sizes) > len(shape) and shape[-1] == "...")
    for want, size in zip(shape, sizes, strict=False):
        if want != size and not isinstance(want, str):
            fits = False
    if not fits:
        raise RuntimeError(
            f"{op}: expected {name} [{', '.join(map(str, shape))}], got {list(tensor.shape)}"
        )
    if tensor.dtype not in dtypes:
        kinds = "floating point" if dtypes == FLOATS else " or ".join(map(str, dtypes))
        raise RuntimeError(f"{op}: expected {name} of {kinds}, got {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise RuntimeError(f"{op}: expected {name} on {device}, got {tensor.device}")


def accumulate_dtype(dtype):
    """Return the precision of sums: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
