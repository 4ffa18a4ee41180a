# SPDX-License-Identifier: Apache-2.0
"""Channel attention: one audio query per head pools the map, the result gates its channels."""

from typing import Any

import torch
from torch import Tensor

from avskernels.core.backend import cpp, plain_torch, triton_kernel
from avskernels.core.composite import Composite, Known, Stage
from avskernels.core.operator import Operator
from avskernels.core.specification import accumulate_dtype, check_choice, fail, to_dtype
from avskernels.ops.attention_pool import operator as attention_pool
from avskernels.ops.channel_attention_mixer import plain
from avskernels.ops.channel_attention_mixer.reference import channel_attention_mixer as reference

GATES = ("sigmoid", "residual")


def channel_attention_mixer(
    features: Tensor,
    query: Tensor,
    k_weight: Tensor | None,
    v_weight: Tensor | None,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    *,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    mask: Tensor | None = None,
    num_heads: int = 8,
    softmax: bool = True,
    gate: str = "sigmoid",
    backend: str | None = None,
) -> Tensor:
    r"""Scale each channel of a map by what an audio query attends to in it.

    .. math::
        a_h = \mathrm{softmax}_n\frac{q_h \cdot (W_k x_n)_h}{\sqrt{C / \mathrm{heads}}}, \quad
        g = W_o \, \mathrm{concat}_h \sum_n a_{hn} (W_v x_n)_h + b_o, \quad
        F' = F \odot \sigma(g)

    With ``gate="residual"`` the result is :math:`F + F \odot g`; without ``softmax`` the logits
    themselves are the weights. AVSegFormer's released code is the default; its paper is
    ``softmax=False, gate="residual"`` with all weights None.

    One query per head makes the projections of the map unnecessary:
    :math:`q \cdot W_k x_n = W_k^\top q \cdot x_n` and
    :math:`\sum_n a_n W_v x_n = W_v \sum_n a_n x_n`. Sums and softmax are float32 (float64 for
    float64) whatever the map's dtype, also under autocast. Where no pixel takes part, because of
    the mask or with logits of -inf alone, a head pools 0; a fully masked map has gate 0.

    Args:
        features: ``Tensor[B, C, H, W]``; float16, bfloat16, float32 or float64; any strides
            (a map that is not contiguous, channels_last included, is copied first).
        query: ``Tensor[B, C]``, already projected; it and all weights of any floating-point dtype.
        k_weight: ``Tensor[C, C]``, or None for the identity; likewise ``v_weight`` and
            ``out_weight``.
        v_weight: see above.
        out_weight: see above.
        out_bias: ``Tensor[C]`` or None; likewise ``k_bias``, which cancels in the softmax, and
            ``v_bias``.
        k_bias: see above.
        v_bias: see above.
        mask: bool ``Tensor[B, H, W]``, True where a pixel takes part; None for all.
        num_heads: heads, a divisor of C.
        softmax: whether to normalise over the pixels.
        gate: ``"sigmoid"`` or ``"residual"``.
        backend: see :func:`avskernels.backend`.

    Returns:
        Tensor: ``[B, C, H, W]``, of the features' dtype.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit.
        ValueError: for an unknown gate.

    Source: AVSegFormer, Eq. 2, and its released channel-attention mixer.

    Example:
        >>> features = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        >>> paper = dict(softmax=False, gate="residual", num_heads=2)
        >>> channel_attention_mixer(features, torch.ones(1, 2), None, None, None, None, **paper)
        tensor([[[[ 2.]],
        <BLANKLINE>
                 [[30.]]]])
    """
    check_choice("channel_attention_mixer", "gate", gate, GATES)
    dtype = accumulate_dtype(features.dtype)
    weights = [
        torch.eye(query.shape[-1], dtype=dtype, device=query.device)
        if weight is None
        else to_dtype(weight, dtype)
        for weight in (k_weight, v_weight, out_weight)
    ]
    biases = [to_dtype(bias, dtype) for bias in (out_bias, k_bias, v_bias)]
    args = features, to_dtype(query, dtype), *weights, *biases, mask, num_heads, softmax, gate
    if OPERATOR.wants_reference(backend, args):
        return reference(
            features,
            query,
            k_weight,
            v_weight,
            out_weight,
            out_bias,
            k_bias=k_bias,
            v_bias=v_bias,
            mask=mask,
            num_heads=num_heads,
            softmax=softmax,
            gate=gate,
        )
    mixed: Tensor = OPERATOR(*args)[0]
    return mixed


def _require(a: Any) -> None:
    channels = a.features.shape[1]
    if a.num_heads < 1 or channels % a.num_heads != 0:
        fail("channel_attention_mixer", f"num_heads to divide {channels} channels", a.num_heads)


def _triton() -> Any:
    from avskernels.ops.channel_attention_mixer import triton

    return triton


def _pool(a: Known) -> dict[str, Tensor]:
    pooled, normalizer = attention_pool.OPERATOR(a.features, a.queries, a.mask, 1.0, a.softmax)
    if a.offsets is not None:  # which cancel in the softmax
        normalizer = normalizer + a.offsets
    return {"pooled": pooled, "normalizer": normalizer}


def _refuses(a: Any) -> str | None:
    if a.k_bias is not None and not a.softmax:
        return "k_bias without softmax"
    return attention_pool.triton_refuses(a.features, a.query)


# Where there are kernels, both directions are fused on the CPU, whose caches hold an image from one
# pass to the next.
TRITON = Composite(
    "channel_attention_mixer",
    Stage(plain.fold, _pool, lambda a: _triton().pool_backward(a)),
    Stage(plain.gate, plain.scale, lambda a: _triton().scale_backward(a)),
)
PLAIN = Composite(
    "channel_attention_mixer",
    Stage(plain.fold, plain.pool, plain.pool_backward),
    Stage(plain.gate, plain.scale, plain.scale_backward),
)
BACKWARD = Operator(
    "_channel_attention_mixer_backward",
    [
        cpp(),
        triton_kernel(
            TRITON.passes_backward("_channel_attention_mixer_backward"),
            lambda a: attention_pool.triton_refuses_backward(a.features, a.pooled),
        ),
        plain_torch(PLAIN.passes_backward("_channel_attention_mixer_backward")),
    ],
    requires=_require,
)
OPERATOR = Operator(
    "channel_attention_mixer",
    [cpp(), triton_kernel(TRITON.forward, _refuses), plain_torch(PLAIN.forward)],
    requires=_require,
    gradient=PLAIN.gradient(BACKWARD),
)
