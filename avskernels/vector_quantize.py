"""Nearest-codeword vector quantization with codebook and commitment loss."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import accumulate_dtype
from avskernels._library import register_autocast, register_fallback, register_triton
from avskernels._vector_quantize_algebra import (
    algebra,
    backward_algebra,
    check,
    flat_codes,
    nearest_algebra,
)

REDUCTIONS = ("mean", "sum", "none")
METRICS = ("l2", "cosine")


class VectorQuantized(NamedTuple):
    """Result of :func:`vector_quantize`: ``quantized``, ``indices`` and ``loss``."""

    quantized: Tensor
    indices: Tensor
    loss: Tensor


def nearest_codeword(x, codebook, *, metric="l2", backend=None):
    r"""Find each row's nearest codeword, exactly.

    .. math:: k^* = \arg\min_k \|x - c_k\|_2^2

    The float64 distance of the returned codeword is within 1e-6 relative of the minimum; of equal
    distances the lowest index wins. A row that holds NaN or Inf gets index 0 and distance NaN; a
    codeword that does is never chosen. Not differentiable. Under autocast it runs in float32.

    Args:
        x: ``Tensor[..., D]``, or ``Tensor[..., G, D]`` for G codebooks; float16, bfloat16, float32
            or float64; any strides.
        codebook: ``Tensor[K, D]`` or ``Tensor[G, K, D]``, of x's dtype, K and D at least 1.
        metric: ``"l2"``, or ``"cosine"``, which first scales rows and codewords to unit length.
        backend: see :func:`avskernels.backend`.

    Returns:
        tuple[Tensor, Tensor]: ``indices`` int64 and ``squared_distance`` (float32, float64 for
        float64 input), both of x's shape without D.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.
        ValueError: for an unknown metric.

    Source: van den Oord et al. 2017, Eq. 1.

    Example:
        >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> nearest_codeword(torch.tensor([[0.9, 0.8]]), codebook)
        (tensor([1]), tensor([0.0500]))
    """
    x, codebook = _in_metric("nearest_codeword", x.detach(), codebook.detach(), metric)
    if use_reference("nearest_codeword", backend, x):
        return reference.nearest_codeword(x, codebook)
    return torch.ops.avskernels.nearest_codeword.default(x, codebook)


def vector_quantize(
    x,
    codebook,
    *,
    commitment_weight=0.25,
    codebook_weight=1.0,
    reduction="mean",
    metric="l2",
    backend=None,
):
    r"""Replace each row by its nearest codeword, with a straight-through gradient and the loss.

    .. math::
        e = c_{k^*}, \quad
        L = w_\mathrm{codebook} \|\mathrm{sg}[x] - e\|^2
            + w_\mathrm{commitment} \|x - \mathrm{sg}[e]\|^2

    The gradient of ``quantized`` goes to x unchanged; the codebook learns from the codebook term of
    the loss alone. ``codebook.detach()`` with ``codebook_weight=0`` makes rows commit to a codebook
    that they do not move. The gradients are deterministic. Under autocast it runs in float32, and
    so ``quantized`` is float32 too.

    Args:
        x: ``Tensor[..., D]``, or ``Tensor[..., G, D]`` for G codebooks; float16, bfloat16, float32
            or float64; any strides.
        codebook: ``Tensor[K, D]`` or ``Tensor[G, K, D]``, of x's dtype, K and D at least 1.
        commitment_weight: weight of the term that moves x.
        codebook_weight: weight of the term that moves the codebook.
        reduction: ``"mean"`` over all elements of x, ``"sum"``, or ``"none"``: a sum per row.
        metric: ``"l2"``, or ``"cosine"``, which first scales rows and codewords to unit length
            (``quantized`` is then the scaled codeword).
        backend: see :func:`avskernels.backend`.

    Returns:
        VectorQuantized: ``quantized`` with x's shape and dtype, ``indices`` int64 of x's shape
        without D, ``loss`` float32 (float64 for float64 input), a scalar or of the indices' shape.
        A row that holds NaN or Inf gets index 0 and makes the loss NaN.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.
        ValueError: for an unknown reduction or metric.

    Source: van den Oord et al. 2017, Eq. 3; QDFormer, Eq. 9.

    Example:
        >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> out = vector_quantize(torch.tensor([[0.9, 0.8]]), codebook)
        >>> out.quantized, out.indices, out.loss
        (tensor([[1., 1.]]), tensor([1]), tensor(0.0312))
    """
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"vector_quantize: expected reduction to be one of {REDUCTIONS}, got {reduction!r}"
        )
    x, codebook = _in_metric("vector_quantize", x, codebook, metric)
    if use_reference("vector_quantize", backend, x):
        result = reference.vector_quantize(
            x, codebook, commitment_weight, codebook_weight, reduction
        )
    else:
        result = torch.ops.avskernels.vector_quantize.default(
            x, codebook, commitment_weight, codebook_weight, reduction
        )
    return VectorQuantized(*result)


def codeword_residuals(x, codebook, indices):
    """Add up x - c_k over the rows of each codeword, in a fixed order: ``Tensor[K, D]``.

    It is the gradient of the codebook term up to the factor -2.
    """
    one = torch.ones((), dtype=accumulate_dtype(x.dtype), device=x.device)
    backward = torch.ops.avskernels._vector_quantize_backward.default
    return backward(None, one, x, codebook, indices, 0.0, -0.5, "sum")[1]


def _in_metric(op, x, codebook, metric):
    if metric not in METRICS:
        raise ValueError(f"{op}: expected metric to be one of {METRICS}, got {metric!r}")
    if metric == "cosine":
        return functional.normalize(x, dim=-1), functional.normalize(codebook, dim=-1)
    return x, codebook


@torch.library.register_fake("avskernels::nearest_codeword")
def _nearest_codeword_fake(x, codebook):
    check("nearest_codeword", x, codebook)
    return (
        x.new_empty(x.shape[:-1], dtype=torch.int64),
        x.new_empty(x.shape[:-1], dtype=accumulate_dtype(x.dtype)),
    )


@torch.library.register_fake("avskernels::vector_quantize")
def _vector_quantize_fake(x, codebook, commitment_weight, codebook_weight, reduction):
    check("vector_quantize", x, codebook)
    return (
        torch.empty_like(x),
        x.new_empty(x.shape[:-1], dtype=torch.int64),
        x.new_empty(x.shape[:-1] if reduction == "none" else (), dtype=accumulate_dtype(x.dtype)),
    )


@torch.library.register_fake("avskernels::_vector_quantize_backward")
@torch.library.register_fake("avskernels::_vector_quantize_backward_cuda")
def _vector_quantize_backward_fake(grad_quantized, grad_loss, x, codebook, *_):
    return x.new_empty(x.shape), codebook.new_empty(codebook.shape)


def backward_cuda(grad_quantized, grad_loss, x, codebook, indices, *settings):
    """Run the backward pass in CUDA C++: arguments and results of ``_vector_quantize_backward``.

    CUDA tensors take the plain-torch version until this kernel has run on a GPU.
    """
    codes, order = flat_codes(codebook, indices).sort(stable=True)
    return torch.ops.avskernels._vector_quantize_backward_cuda.default(
        grad_quantized, grad_loss, x, codebook, order, codes, *settings
    )


def _setup_context(ctx, inputs, output):
    x, codebook, ctx.commitment_weight, ctx.codebook_weight, ctx.reduction = inputs
    ctx.save_for_backward(x, codebook, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_quantized, _, grad_loss):
    if grad_loss is None:  # nothing but the straight-through gradient
        return grad_quantized, None, None, None, None
    x, codebook, indices = ctx.saved_tensors
    moves_codebook = ctx.needs_input_grad[1]
    grad_x, grad_codebook = torch.ops.avskernels._vector_quantize_backward.default(
        grad_quantized,
        grad_loss,
        x,
        codebook,
        indices,
        ctx.commitment_weight,
        ctx.codebook_weight if moves_codebook else 0.0,
        ctx.reduction,
    )
    return grad_x, grad_codebook if moves_codebook else None, None, None, None


torch.library.register_autograd(
    "avskernels::vector_quantize", _backward, setup_context=_setup_context
)


register_fallback("nearest_codeword", nearest_algebra)
register_fallback("vector_quantize", algebra)
register_fallback("_vector_quantize_backward", backward_algebra)
register_triton("nearest_codeword", "vector_quantize")
register_triton("vector_quantize", "vector_quantize")
register_autocast("nearest_codeword")
register_autocast("vector_quantize")
