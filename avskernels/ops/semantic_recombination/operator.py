# SPDX-License-Identifier: Apache-2.0
"""Per-sample recombination of channels: one matrix for all tokens, no concatenation."""

from typing import Any

from torch import Tensor

from avskernels.core.backend import composite, cpp, plain_torch
from avskernels.core.composite import Composite, Known, Stage
from avskernels.core.operator import Operator, autocast_to
from avskernels.core.specification import accumulate_dtype, fail, to_dtype
from avskernels.ops.semantic_recombination import plain
from avskernels.ops.semantic_recombination.reference import semantic_recombination as reference


def semantic_recombination(
    features: Tensor,
    filters: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: bool = True,
    backend: str | None = None,
) -> Tensor:
    r"""Modulate the features by every filter, project the concatenation, add the features.

    .. math:: F' = \varphi(w_1 F \oplus \dots \oplus w_N F) + F

    Computed as one product per sample with :math:`\sum_i W_i \mathrm{diag}(w_i)`, where
    :math:`\varphi = (W_1, \dots, W_N)`: N times fewer operations, and no tensor larger than the
    features. Under autocast it runs in autocast's dtype, as a convolution does. On CUDA devices the
    product is torch's batched one: a dense product with a per-sample matrix is what the vendor's
    library is best at.

    Args:
        features: ``Tensor[B, C, H, W]``, or ``Tensor[B, T, C, H, W]`` to use the same filters for T
            frames; float16, bfloat16, float32 or float64; any strides.
        filters: ``Tensor[B, N, C]``, a scale for each token and channel; any floating-point dtype.
        weight: ``Tensor[C_out, N * C, k, k]``, k odd, of the projection; any floating-point dtype.
        bias: ``Tensor[C_out]`` or None.
        residual: whether to add the features, which needs C_out = C.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: the features' shape with C_out channels, and their dtype.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.

    Source: QDFormer, Eq. 5.

    Example:
        >>> import torch
        >>> features = torch.ones(1, 2, 1, 1)
        >>> filters = torch.tensor([[[1.0, 0.5]]])
        >>> semantic_recombination(features, filters, torch.eye(2)[:, :, None, None]).flatten()
        tensor([2.0000, 1.5000])
    """
    dtype = accumulate_dtype(features.dtype)
    small = (to_dtype(tensor, dtype) for tensor in (filters, weight, bias))
    args = Arguments(autocast_to(features), *small, residual)
    if OPERATOR.wants_reference(backend, args):
        return reference(features, filters, weight, bias, residual=residual)
    if args.weight.dim() == 4 and args.weight.shape[3] > 1:
        OPERATOR.check(args)  # here, since the operator does not see these arguments
        return plain.convolve(args)
    mixed: Tensor = OPERATOR(*args)
    return mixed


def _require(a: Any) -> None:
    if a.weight.shape[2] % 2 == 0:
        fail(
            "semantic_recombination",
            f"weight [C_out, {a.weight.shape[1]}, k, k] with odd k",
            list(a.weight.shape),
        )
    channels = a.features.shape[-3]
    if a.residual and a.weight.shape[0] != channels:
        fail(
            "semantic_recombination",
            f"{channels} output channels to add the residual to",
            a.weight.shape[0],
        )


def _require_square(a: Any) -> None:
    if a.residual and a.matrices.shape[1] != a.features.shape[2]:
        fail(
            "_semantic_recombination_product",
            f"{a.features.shape[2]} output channels to add the residual to",
            a.matrices.shape[1],
        )


def _refuses(a: Any) -> str | None:
    size = a.weight.shape[3]
    return None if size == 1 else f"a convolution of {size} x {size}"


def _multiply_backward(a: Known) -> dict[str, Tensor]:
    grads = plain.by_frame(a.grad_mixed, len(a.matrices)).flatten(3)
    grad_features = PRODUCT(a.matrices.mT, grads, a.residual)
    return {"grad_features": grad_features.view(a.features.shape), **plain.multiply_backward(a)}


BATCHED = "torch's batched product"
PRODUCT = Operator(
    "_semantic_recombination_product",
    [cpp(), *composite(plain.product, "cuda", name=BATCHED), plain_torch(plain.product)],
    requires=_require_square,
)
COMPOSITE = Composite(
    "semantic_recombination", Stage(plain.fold, plain.multiply, _multiply_backward)
)
OPERATOR = Operator(
    "semantic_recombination",
    [
        cpp(_refuses),
        *composite(COMPOSITE.forward, "cuda", name=BATCHED, refuses=_refuses),
        plain_torch(COMPOSITE.forward),
    ],
    requires=_require,
    gradient=COMPOSITE.gradient(),
)
Arguments = OPERATOR.specification.Arguments
