# SPDX-License-Identifier: Apache-2.0
"""Attention pooling of a map by a few queries, in one read of the map."""

from typing import Any

import torch
from torch import Tensor

from avskernels.core.backend import cpp, plain_torch, triton_kernel
from avskernels.core.operator import Operator
from avskernels.core.specification import accumulate_dtype, to_dtype
from avskernels.ops.attention_pool import plain
from avskernels.ops.attention_pool.reference import attention_pool as reference

TRITON_CHANNELS = 512  # a program keeps a sum of pixels per row and channel
TRITON_ROWS = 16  # per program of the backward pass


def attention_pool(
    features: Tensor,
    queries: Tensor,
    scale: float = 1.0,
    softmax: bool = True,
    *,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Pool the pixels of a map with one row of attention weights per query.

    .. math::
        p_h = \sum_n a_{hn} x_n, \quad
        a_h = \mathrm{softmax}_n(s\, q_h \cdot x_n)
        \;\text{or}\; a_{hn} = s\, q_h \cdot x_n

    Keys and values are the map itself: a projection of either is folded into the query or applied
    to the result (:math:`q \cdot W x = W^\top q \cdot x`). Sums and the softmax are float32
    (float64 for float64) whatever the map's dtype, also under autocast. A query that no pixel takes
    part in, because of the mask or with logits of -inf alone, gives 0; a logit of NaN or +inf gives
    NaN. The gradients are deterministic.

    Args:
        features: ``Tensor[B, C, *]``, any number of spatial dimensions; float16, bfloat16, float32
            or float64; any strides (a map that is not contiguous is copied first).
        queries: ``Tensor[B, h, C]``, any floating-point dtype.
        scale: s, a number.
        softmax: whether to normalise over the pixels.
        mask: bool ``Tensor[B, *]``, True where a pixel takes part; None for all.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: ``[B, h, C]``, of the features' dtype.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.

    Source: Vaswani et al. 2017, Eq. 1, with the map as keys and values.

    Example:
        >>> features = torch.tensor([[[0.0, 4.0], [2.0, 2.0]]])  # two channels, two pixels
        >>> attention_pool(features, torch.zeros(1, 1, 2))
        tensor([[[2., 2.]]])
    """
    dtype = accumulate_dtype(features.dtype)
    args = features, to_dtype(queries, dtype), mask, scale, softmax
    if OPERATOR.wants_reference(backend, args):
        return reference(features, queries, scale, softmax, mask=mask)
    pooled: Tensor = OPERATOR(*args)[0]
    return to_dtype(pooled, features.dtype)


def _triton() -> Any:
    from avskernels.ops.attention_pool import triton

    return triton


def triton_refuses(features: Tensor, queries: Tensor) -> str | None:
    """Return why the Triton kernels cannot pool a map, or None."""
    if features.dtype == torch.float64:
        return "float64"
    if features.shape[1] > TRITON_CHANNELS:
        return f"more than {TRITON_CHANNELS} channels"
    return "nothing to pool" if queries.numel() == 0 else None


def triton_refuses_backward(features: Tensor, queries: Tensor) -> str | None:
    """Likewise for the gradients."""
    if queries.shape[1] > TRITON_ROWS:
        return f"more than {TRITON_ROWS} queries"
    if features.numel() == 0:
        return "nothing to pool"
    return triton_refuses(features, queries)


BACKWARD = Operator(
    "_attention_pool_backward",
    [
        cpp(),
        triton_kernel(
            lambda *args: _triton().backward(*args),
            lambda a: triton_refuses_backward(a.features, a.queries),
        ),
        plain_torch(plain.backward),
    ],
)
OPERATOR = Operator(
    "attention_pool",
    [
        cpp(),
        triton_kernel(
            lambda *args: _triton().forward(*args),
            lambda a: triton_refuses(a.features, a.queries),
        ),
        plain_torch(plain.forward),
    ],
    gradient=BACKWARD,
)
