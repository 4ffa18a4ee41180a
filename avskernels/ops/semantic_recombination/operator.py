# SPDX-License-Identifier: Apache-2.0
"""Per-sample recombination of channels: one matrix for all tokens, no concatenation."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from avskernels.core.backend import Implementation, composite, cpp, plain_torch
from avskernels.core.composite import Composite, Known, Stage, named
from avskernels.core.operator import Operator, autocast_to
from avskernels.core.specification import fail
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
    args = features, filters, weight, bias, residual
    if OPERATOR.wants_reference(backend, args):
        return reference(features, filters, weight, bias, residual=residual)
    mixed: Tensor = OPERATOR(autocast_to(features), *args[1:])
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


def _products(run: Callable[..., Any], kernel_of: Callable[[Any], Tensor]) -> list[Implementation]:
    """Return what calls the product once per sample."""

    def refuses(a: Any) -> str | None:
        size = kernel_of(a).shape[-1]
        return None if size == 1 else f"a convolution of {size} x {size}"

    return [
        *composite(run, "cpu", name="C++", refuses=refuses),
        *composite(run, "cuda", name="torch's batched product", refuses=refuses),
    ]


PRODUCT = Operator(
    "_semantic_recombination_product",
    [
        cpp(),
        *composite(plain.product, "cuda", name="torch's batched product"),
        plain_torch(plain.product),
    ],
    requires=_require_square,
)


def _multiply(a: Known) -> dict[str, Tensor]:
    frames = plain.by_frame(a.features, len(a.filters)).flatten(3)
    product = PRODUCT(a.matrices[..., 0, 0], frames, a.shift, a.residual)
    return {"mixed": product.view(plain.output_shape(a.features, a.weight))}


def _multiply_backward(
    grad_mixed: Tensor, features: Tensor, matrices: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grads = plain.by_frame(grad_mixed, len(matrices)).flatten(3)
    grad_features = PRODUCT(matrices[..., 0, 0].mT, grads, None, residual)
    return grad_features.view(features.shape), *plain.matrices_backward(grad_mixed, features)


BACKWARD = Operator(
    "_semantic_recombination_backward",
    [
        *_products(_multiply_backward, lambda a: a.matrices),
        plain_torch(plain.backward),
    ],
)
PLAIN = Composite(
    "semantic_recombination", Stage(plain.fold, plain.multiply_or_convolve, named(BACKWARD))
)
COMPOSITE = Composite("semantic_recombination", Stage(plain.fold, _multiply, named(BACKWARD)))
OPERATOR = Operator(
    "semantic_recombination",
    [
        *_products(COMPOSITE.forward, lambda a: a.weight),
        plain_torch(PLAIN.forward),
    ],
    requires=_require,
    gradient=COMPOSITE.gradient(),
)
