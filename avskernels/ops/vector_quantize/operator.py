# SPDX-License-Identifier: Apache-2.0
"""Nearest-codeword vector quantization with codebook and commitment loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avskernels.core.backend import cpp, cuda_cpp, plain_torch, triton_kernel
from avskernels.core.operator import Gradient, Operator
from avskernels.core.specification import accumulate_dtype, check_choice, fail
from avskernels.ops.vector_quantize import plain, reference
from avskernels.ops.vector_quantize.reference import VectorQuantized

REDUCTIONS = ("mean", "sum", "none")
METRICS = ("l2", "cosine")


def nearest_codeword(
    x: Tensor, codebook: Tensor, *, metric: str = "l2", backend: str | None = None
) -> tuple[Tensor, Tensor]:
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
    check_choice("nearest_codeword", "metric", metric, METRICS)
    args = plain.in_metric(x, codebook, metric)
    if NEAREST.wants_reference(backend, args):
        return reference.nearest_codeword(x, codebook, metric=metric)
    nearest: tuple[Tensor, Tensor] = NEAREST(*args)
    return nearest


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    reduction: str = "mean",
    metric: str = "l2",
    backend: str | None = None,
) -> VectorQuantized:
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
    check_choice("vector_quantize", "reduction", reduction, REDUCTIONS)
    check_choice("vector_quantize", "metric", metric, METRICS)
    rows, codewords = plain.in_metric(x, codebook, metric)
    args = rows, codewords, commitment_weight, codebook_weight, reduction
    if OPERATOR.wants_reference(backend, args):
        return reference.vector_quantize(
            x,
            codebook,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            reduction=reduction,
            metric=metric,
        )
    return VectorQuantized(*OPERATOR(*args))


def codeword_residuals(x: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
    """Add up x - c_k over the rows of each codeword, in a fixed order: ``Tensor[K, D]``.

    It is the gradient of the codebook term up to the factor -2.
    """
    one = torch.ones((), dtype=accumulate_dtype(x.dtype), device=x.device)
    _, grad_codebook = BACKWARD(None, one, x, codebook, indices, 0.0, -0.5, "sum")
    residuals: Tensor = grad_codebook
    return residuals


def _require_codebook(op: str, x: Tensor, codebook: Tensor) -> None:
    if 0 in codebook.shape:
        wanted = "a codebook with at least one codeword and one dimension"
        fail(op, wanted, list(codebook.shape))
    if codebook.dim() == 3 and (x.dim() < 2 or x.shape[-2] != codebook.shape[0]):
        groups, _, dim = codebook.shape
        fail(op, f"x [..., {groups}, {dim}]", list(x.shape))


def _require_backward(a: Any) -> None:
    _require_codebook(BACKWARD.name, a.x, a.codebook)
    per_row = a.reduction == "none"
    if a.grad_loss.shape != (a.x.shape[:-1] if per_row else ()):
        wanted = "grad_loss of one value per row" if per_row else "grad_loss of one value"
        fail(BACKWARD.name, wanted, list(a.grad_loss.shape))


def _results(a: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = a.x.shape[:-1]
    return (
        torch.empty_like(a.x),
        a.x.new_empty(rows, dtype=torch.int64),
        a.x.new_empty(rows if a.reduction == "none" else (), dtype=accumulate_dtype(a.x.dtype)),
    )


def _setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    a = OPERATOR.specification.Arguments(*inputs)
    _, indices, _ = output
    ctx.save_for_backward(a.x, a.codebook, indices)
    ctx.weights = a.commitment_weight, a.codebook_weight
    ctx.reduction = a.reduction
    ctx.set_materialize_grads(False)


def _gradient(
    ctx: Any, grad_quantized: Tensor | None, _: None, grad_loss: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_loss is None:  # nothing but the straight-through gradient
        return grad_quantized, None, None, None, None
    x, codebook, indices = ctx.saved_tensors
    commitment_weight, codebook_weight = ctx.weights
    moves_codebook = OPERATOR.specification.Arguments(*ctx.needs_input_grad).codebook
    grad_x, grad_codebook = BACKWARD(
        grad_quantized,
        grad_loss,
        x,
        codebook,
        indices,
        commitment_weight,
        codebook_weight if moves_codebook else 0.0,
        ctx.reduction,
    )
    return grad_x, grad_codebook if moves_codebook else None, None, None, None


def _triton() -> Any:
    from avskernels.ops.vector_quantize import triton

    return triton


def backward_cuda(
    grad_quantized: Tensor | None,
    grad_loss: Tensor,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    commitment_weight: float,
    codebook_weight: float,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Compute ``avskernels::_vector_quantize_backward`` in CUDA C++, of rows sorted by codeword."""
    codes, order = plain.flat_codes(codebook, indices).sort(stable=True)
    grads: tuple[Tensor, Tensor] = torch.ops.avskernels._vector_quantize_backward_cuda.default(
        grad_quantized,
        grad_loss,
        x,
        codebook,
        order,
        codes,
        commitment_weight,
        codebook_weight,
        reduction,
    )
    return grads


NEAREST = Operator(
    "nearest_codeword",
    [
        cpp(),
        triton_kernel(lambda *args: _triton().nearest(*args)),
        plain_torch(plain.nearest),
    ],
    requires=lambda a: _require_codebook("nearest_codeword", a.x, a.codebook),
    autocast=torch.float32,
)
BACKWARD = Operator(
    "_vector_quantize_backward",
    [cpp(), cuda_cpp(backward_cuda), plain_torch(plain.backward)],
    requires=_require_backward,
)
OPERATOR = Operator(
    "vector_quantize",
    [
        cpp(),
        triton_kernel(lambda *args: _triton().forward(*args)),
        plain_torch(plain.forward),
    ],
    requires=lambda a: _require_codebook("vector_quantize", a.x, a.codebook),
    gradient=Gradient(_setup_context, _gradient),
    results=_results,
    autocast=torch.float32,
)
