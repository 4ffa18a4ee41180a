# SPDX-License-Identifier: Apache-2.0
"""Temporal pixel-wise audio-visual interaction without its affinity matrix."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from avskernels.core.backend import composite, cpp, plain_torch, triton_kernel
from avskernels.core.composite import Composite, Known, Stage, named
from avskernels.core.operator import Operator
from avskernels.core.specification import accumulate_dtype, check_choice, fail, to_dtype
from avskernels.ops.tpavi import plain
from avskernels.ops.tpavi.reference import tpavi as reference

MODES = ("dot", "embedded", "gaussian", "concatenate")
TRITON_ROWS = 16  # the least that a matrix product takes
TRITON_CHANNELS = 512  # a program keeps all of a position


def tpavi(
    visual: Tensor,
    audio: Tensor | None,
    theta_weight: Tensor | None,
    theta_bias: Tensor | None,
    phi_weight: Tensor | None,
    phi_bias: Tensor | None,
    g_weight: Tensor,
    g_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    align_weight: Tensor | None = None,
    align_bias: Tensor | None = None,
    concat_weight: Tensor | None = None,
    concat_bias: Tensor | None = None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    bn_eps: float = 1e-5,
    norm_eps: float = 1e-5,
    mode: str = "dot",
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    r"""Let every pixel of a clip attend to the clip's audio; project, normalise, add, normalise.

    .. math::
        z = \mathrm{LN}(\mathrm{BN}(W_z\, f(\theta(x), \varphi(a))\, g(x)) + x)

    f is the product divided by THW (``"dot"``), its softmax over positions (``"embedded"``;
    ``"gaussian"`` without theta and phi), or
    :math:`\mathrm{ReLU}(w \cdot [\theta; \varphi] + b) / THW` (``"concatenate"``).

    The audio is the same for all pixels of a frame, so the THW x THW affinity has only T distinct
    columns: T scores per pixel, T values per clip. BatchNorm's statistics follow from the mean and
    the covariance of the scores. The map is read twice and written once, and no other tensor of its
    size is made. Sums are float32 (float64 for float64) whatever the map's dtype, autocast or not.

    Args:
        visual: ``Tensor[B, C, T, H, W]``; float16, bfloat16, float32 or float64; any strides.
        audio: ``Tensor[B, T, C]``, or ``[B, T, A]`` with ``align_weight``. None attends to the
            visual map itself; that is plain torch (``"dot"`` and ``"concatenate"`` without an
            affinity matrix, the softmax modes by torch's attention), and no kernel.
        theta_weight: ``Tensor[C', C]``, with bias ``[C']``; likewise phi and g. This and all that
            follow have any floating-point dtype. mode ``"gaussian"`` has no theta and phi.
        theta_bias: see above.
        phi_weight: see above.
        phi_bias: see above.
        g_weight: see above.
        g_bias: see above.
        out_weight: ``Tensor[C, C']``, W_z.
        out_bias: ``Tensor[C]``.
        align_weight: ``Tensor[C, A]``, with ``align_bias`` ``[C]``, projects the audio first.
        align_bias: see above.
        concat_weight: ``Tensor[1, 2C']`` of mode ``"concatenate"``, with ``concat_bias`` ``[1]``.
        concat_bias: see above.
        bn_weight: ``Tensor[C]``, with ``bn_bias``; None for no BatchNorm.
        bn_bias: see above.
        running_mean: ``Tensor[C]``, with ``running_var``, the statistics used when not training and
            updated in place when training; None always takes the batch's.
        running_var: see above.
        norm_weight: ``Tensor[C]``, with ``norm_bias``; None for no LayerNorm.
        norm_bias: see above.
        training: whether BatchNorm takes the batch's statistics.
        momentum: of the running statistics.
        bn_eps: of BatchNorm.
        norm_eps: of LayerNorm.
        mode: ``"dot"``, ``"embedded"``, ``"gaussian"`` or ``"concatenate"``.
        backend: see :func:`avskernels.backend`.

    Returns:
        tuple[Tensor, Tensor]: fused ``[B, C, T, H, W]`` of the map's dtype, and the (aligned) audio
        ``[B, T, C]``, None where audio is.

    Raises:
        RuntimeError: for shapes, dtypes or devices that do not fit, for a missing parameter that
            the mode needs, and for fewer than two positions to train BatchNorm on.
        ValueError: for an unknown mode.

    Source: Zhou et al. 2022 (AVSBench), Eq. 1; Wang et al. 2018 for the modes.

    Example:
        >>> visual, audio, one = torch.ones(1, 1, 1, 1, 2), torch.ones(1, 1, 1), torch.ones(1, 1)
        >>> zero = torch.zeros(1)
        >>> tpavi(visual, audio, one, zero, one, zero, one, zero, one, zero)[0]
        tensor([[[[[2., 2.]]]]])
    """
    check_choice("tpavi", "mode", mode, MODES)
    aligned = audio
    if audio is not None and align_weight is not None:
        aligned = functional.linear(audio, align_weight, align_bias)
    gaussian = mode == "gaussian"
    small = (
        aligned,
        *(
            None if gaussian else tensor
            for tensor in (theta_weight, theta_bias, phi_weight, phi_bias)
        ),
        g_weight,
        g_bias,
        out_weight,
        out_bias,
        concat_weight,
        concat_bias,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        norm_weight,
        norm_bias,
    )
    dtype = accumulate_dtype(visual.dtype)
    use_batch = bn_weight is not None and (training or running_mean is None)
    args = Arguments(
        visual, *(to_dtype(tensor, dtype) for tensor in small), use_batch, bn_eps, norm_eps, mode
    )
    if OPERATOR.wants_reference(backend, args):
        return reference(
            visual,
            audio,
            theta_weight,
            theta_bias,
            phi_weight,
            phi_bias,
            g_weight,
            g_bias,
            out_weight,
            out_bias,
            align_weight=align_weight,
            align_bias=align_bias,
            concat_weight=concat_weight,
            concat_bias=concat_bias,
            bn_weight=bn_weight,
            bn_bias=bn_bias,
            running_mean=running_mean,
            running_var=running_var,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            training=training,
            momentum=momentum,
            bn_eps=bn_eps,
            norm_eps=norm_eps,
            mode=mode,
        )
    unread = use_batch and (running_mean is not None or running_var is not None)
    if audio is None or unread:
        OPERATOR.check(args)  # here, since the operator does not see these arguments
    if unread:  # and they change before the backward pass
        args = args._replace(running_mean=None, running_var=None)
    if audio is None:
        fused, mean, variance = plain.attend_to_visual(args)
    else:
        fused, mean, variance = OPERATOR(*args)[:3]
    if training and running_mean is not None and running_var is not None:
        count = visual.numel() // visual.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    return fused, aligned


PAIRS = (
    ("theta_weight", "theta_bias"),
    ("phi_weight", "phi_bias"),
    ("concat_weight", "concat_bias"),
    ("bn_weight", "bn_bias"),
    ("running_mean", "running_var"),
    ("norm_weight", "norm_bias"),
)
NEEDED = {"gaussian": (), "concatenate": PAIRS[:3]}  # two of them in other modes


def _require(a: Any) -> None:
    for pair in PAIRS:
        given = [getattr(a, name) is not None for name in pair]
        if not all(given) and (any(given) or pair in NEEDED.get(a.mode, PAIRS[:2])):
            fail("tpavi", f"{pair[given.index(False)]} in mode {a.mode!r}", None)
    positions = a.visual.numel() // max(a.visual.shape[1], 1)
    if a.batch_statistics and positions < 2:
        fail("tpavi", "at least 2 positions to train BatchNorm on", positions)


def _require_contiguous(a: Any) -> None:
    if not a.grad_visual.is_contiguous():
        fail("_tpavi_scores_backward", "grad_visual to be contiguous", "strides")


def _require_norm_bias(a: Any) -> None:
    if a.norm_weight is not None and a.norm_bias is None:
        fail("_tpavi_fuse", "norm_bias", None)


def _require_statistics(a: Any) -> None:
    if a.norm_weight is not None and (a.mean is None or a.rstd is None):
        fail("_tpavi_fuse_backward", "mean and rstd", None)


def _triton() -> Any:
    from avskernels.ops.tpavi import triton

    return triton


def triton_refuses(visual: Tensor, rows: int) -> str | None:
    """Return why the Triton kernels cannot take a map and so many rows, or None."""
    if visual.dtype == torch.float64:
        return "float64"
    if visual.shape[1] > TRITON_CHANNELS:
        return f"more than {TRITON_CHANNELS} channels"
    if rows > TRITON_ROWS:
        return f"more than {TRITON_ROWS} frames"
    return "nothing to fuse" if rows == 0 or visual.numel() == 0 else None


def _refuses(a: Any) -> str | None:
    if a.audio is None:
        return "no audio: the map attends to itself"
    return triton_refuses(a.visual, a.visual.shape[2]) if a.visual.is_cuda else None


SCORES = Operator(
    "_tpavi_scores",
    [
        cpp(),
        triton_kernel(
            lambda *args: _triton().scores(*args),
            lambda a: triton_refuses(a.visual, a.keys.shape[1]),
        ),
        plain_torch(plain.scores),
    ],
)
SCORES_BACKWARD = Operator(
    "_tpavi_scores_backward",
    [
        cpp(),
        triton_kernel(
            lambda *args: _triton().scores_backward(*args),
            lambda a: triton_refuses(a.visual, a.keys.shape[1]),
        ),
        plain_torch(plain.scores_backward),
    ],
    requires=_require_contiguous,
)
FUSE = Operator(
    "_tpavi_fuse",
    [
        cpp(),
        triton_kernel(
            lambda *args: _triton().fuse(*args),
            lambda a: triton_refuses(a.visual, a.weights.shape[1]),
        ),
        plain_torch(plain.fuse),
    ],
    requires=_require_norm_bias,
)
FUSE_BACKWARD = Operator(
    "_tpavi_fuse_backward",
    [
        cpp(),
        triton_kernel(
            lambda *args: _triton().fuse_backward(*args),
            lambda a: triton_refuses(a.visual, a.weights.shape[1]),
        ),
        plain_torch(plain.fuse_backward),
    ],
    requires=_require_statistics,
)


def _scores_backward(a: Known) -> dict[str, Tensor | None]:
    # In place: what it returns beside the keys' gradient is added to a.grad_visual.
    grads = named(SCORES_BACKWARD)(a)
    return {**grads, "grad_offsets": None if a.offsets is None else a.grad_scores.sum(2)}


COMPOSITE = Composite(
    "tpavi",
    Stage(plain.key_rows, named(SCORES), _scores_backward),
    Stage(plain.weights_and_values, named(FUSE), named(FUSE_BACKWARD)),
)
OPERATOR = Operator(
    "tpavi",
    [
        *composite(COMPOSITE.forward, "cpu", name="C++", refuses=_refuses),
        triton_kernel(COMPOSITE.forward, _refuses),
        plain_torch(COMPOSITE.forward),
    ],
    requires=_require,
    gradient=COMPOSITE.gradient(),
)
Arguments = OPERATOR.specification.Arguments
