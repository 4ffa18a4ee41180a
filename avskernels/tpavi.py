"""Temporal pixel-wise audio-visual interaction without its affinity matrix."""

import torch
from torch.nn import functional

from avskernels import reference
from avskernels._backend import use_reference
from avskernels._check import accumulate_dtype
from avskernels._library import define, register_fallback, register_triton
from avskernels._tpavi_algebra import (
    Parameters,
    attend_to_visual,
    check,
    key_rows,
    weights_and_values,
)
from avskernels._tpavi_passes import (
    fuse,
    fuse_backward,
    scores_and_sums,
    scores_and_sums_backward_,
)

MODES = ("dot", "embedded", "gaussian", "concatenate")


def tpavi(
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
    *,
    align_weight=None,
    align_bias=None,
    concat_weight=None,
    concat_bias=None,
    bn_weight=None,
    bn_bias=None,
    running_mean=None,
    running_var=None,
    norm_weight=None,
    norm_bias=None,
    training=False,
    momentum=0.1,
    bn_eps=1e-5,
    norm_eps=1e-5,
    mode="dot",
    backend=None,
):
    r"""Let every pixel of a clip attend to the clip's audio; project, normalise, add, normalise.

    .. math::
        z = \mathrm{LN}(\mathrm{BN}(W_z\, f(\theta(x), \varphi(a))\, g(x)) + x)

    f is the product divided by THW (``"dot"``), its softmax over positions (``"embedded"``;
    ``"gaussian"`` without theta and phi), or
    :math:`\mathrm{ReLU}(w \cdot [\theta; \varphi] + b) / THW` (``"concatenate"``).

    The audio is the same for all pixels of a frame, so the THW x THW affinity has only T distinct
    columns: T scores a pixel, T values a clip. BatchNorm's statistics follow from the mean and the
    covariance of the scores. The map is read twice and written once, and no other tensor of its
    size is made. Sums are float32 (float64 for float64) whatever the map's dtype, autocast or not.

    Args:
        visual: ``Tensor[B, C, T, H, W]``; float16, bfloat16, float32 or float64; any strides.
        audio: ``Tensor[B, T, C]``, or ``[B, T, A]`` with ``align_weight``. None attends to the
            visual map itself; that is plain torch (``"dot"`` and ``"concatenate"`` without an
            affinity matrix, the softmax modes by torch's attention).
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
    if mode not in MODES:
        raise ValueError(f"tpavi: expected mode to be one of {MODES}, got {mode!r}")
    aligned = audio
    if audio is not None and align_weight is not None:
        aligned = functional.linear(audio, align_weight, align_bias)
    parameters = Parameters(
        theta_weight,
        theta_bias,
        phi_weight,
        phi_bias,
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
    if mode == "gaussian":
        parameters = parameters._replace(**dict.fromkeys(Parameters._fields[:4]))
    check(visual, aligned, parameters, training, mode)
    if use_reference("tpavi", backend, visual):
        attended, *small = _cast((aligned, *parameters), visual.dtype)
        # No casts of these two: they are updated in place.
        small = Parameters(*small)._replace(running_mean=running_mean, running_var=running_var)
        settings = training, momentum, bn_eps, norm_eps, mode
        return reference.tpavi(visual, attended, *small, *settings), aligned
    use_batch = bn_weight is not None and (training or running_mean is None)
    if use_batch:  # the running statistics are not read, and change before the backward pass
        parameters = parameters._replace(running_mean=None, running_var=None)
    options = (use_batch, bn_eps, norm_eps, mode)
    small = _cast((aligned, *parameters), accumulate_dtype(visual.dtype))
    if audio is None:
        fused, mean, variance = attend_to_visual(visual, Parameters(*small[1:]), *options)
    else:
        fused, mean, variance = torch.ops.avskernels.tpavi.default(visual, *small, *options)[:3]
    if training and running_mean is not None:
        count = visual.numel() // visual.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    return fused, aligned


def _cast(tensors, dtype):
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


_PARAMETERS = ", ".join(
    f"Tensor{'?' if name.split('_')[0] not in ('g', 'out') else ''} {name}"
    for name in Parameters._fields
)
# After fused, in the precision of sums: the statistics of BatchNorm [C], of LayerNorm [B, THW], the
# scores [B, T, THW] and the sums of each frame's pixels [B, T, C].
define(
    "tpavi",
    f"(Tensor visual, Tensor audio, {_PARAMETERS}, bool batch_statistics, float bn_eps, "
    "float norm_eps, str mode) -> (Tensor fused, Tensor bn_mean, Tensor bn_variance, Tensor mean, "
    "Tensor rstd, Tensor scores, Tensor sums)",
)


@torch.library.register_fake("avskernels::tpavi")
def _fake(visual, audio, *arguments):
    *parameters, batch_statistics, _, _, mode = arguments
    p = Parameters(*parameters)
    check(visual, audio, p, batch_statistics, mode)
    batch, channels, frames, height, width = visual.shape
    normalised = 0 if p.norm_weight is None else frames * height * width
    return (
        visual.new_empty(visual.shape),
        audio.new_empty(0 if p.bn_weight is None else channels),
        audio.new_empty(0 if p.bn_weight is None else channels),
        audio.new_empty(batch, normalised),
        audio.new_empty(batch, normalised),
        audio.new_empty(batch, frames, frames * height * width),
        audio.new_empty(batch, frames, channels),
    )


def _tpavi(visual, audio, *arguments):
    *parameters, batch_statistics, bn_eps, norm_eps, mode = arguments
    p = Parameters(*parameters)
    check(visual, audio, p, batch_statistics, mode)
    keys, offsets = key_rows(audio, p, mode)
    scores, sums = torch.ops.avskernels._tpavi_scores.default(visual, keys, offsets)
    weights, values, shift, bn_mean, bn_variance = weights_and_values(
        scores, sums, p, batch_statistics, bn_eps, mode
    )
    fused, mean, rstd = torch.ops.avskernels._tpavi_fuse.default(
        visual, weights, values, shift, p.norm_weight, p.norm_bias, norm_eps
    )
    # An operator's results must be its own: statistics that are inputs are copied.
    if not batch_statistics and p.bn_weight is not None:
        bn_mean, bn_variance = bn_mean.clone(), bn_variance.clone()
    return fused, bn_mean, bn_variance, mean, rstd, scores, sums


def _setup_context(ctx, inputs, output):
    visual, audio, *parameters = inputs[:-4]
    ctx.batch_statistics, ctx.bn_eps, _, ctx.mode = inputs[-4:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:], visual, audio, *parameters)


def _backward(ctx, grad, *_):
    """Differentiate the passes over the map by their kernels, what lies between by autograd."""
    mean, rstd, scores, sums, visual, *small = ctx.saved_tensors
    with torch.enable_grad():
        scores, sums, *small = (
            None if t is None else t.detach().requires_grad_() for t in (scores, sums, *small)
        )
        audio, p = small[0], Parameters(*small[1:])
        keys, offsets = key_rows(audio, p, ctx.mode)
        weights, values, shift, _, _ = weights_and_values(
            scores, sums, p, ctx.batch_statistics, ctx.bn_eps, ctx.mode
        )
    grad_visual, *grads, grad_norm_weight, grad_norm_bias = (
        torch.ops.avskernels._tpavi_fuse_backward.default(
            grad,
            visual,
            weights.detach(),
            values.detach(),
            shift.detach(),
            p.norm_weight,
            mean,
            rstd,
        )
    )
    leaves = [t for t in small if t is not None]
    grad_scores, grad_sums, *first = torch.autograd.grad(
        [weights, values, shift], [scores, sums, *leaves], grads, allow_unused=True
    )
    grad_keys = torch.ops.avskernels._tpavi_scores_backward.default(
        grad_visual, visual, keys.detach(), grad_scores, grad_sums
    )
    outputs, grads = [keys], [grad_keys]
    if offsets is not None:
        outputs, grads = [keys, offsets], [grad_keys, grad_scores.sum(2)]
    second = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    total = iter([_sum(one, other) for one, other in zip(first, second, strict=True)])
    grads = [None if t is None else next(total) for t in small]
    if p.norm_weight is not None:
        grads[-2:] = grad_norm_weight, grad_norm_bias
    for name in ("g_bias", "out_bias"):  # BatchNorm may take away all that they add
        index = 1 + p._fields.index(name)
        if grads[index] is None:
            grads[index] = torch.zeros_like(getattr(p, name))
    return grad_visual, *grads, *[None] * 4


def _sum(one, other):
    return other if one is None else one if other is None else one + other


register_fallback("tpavi", _tpavi, "CPU", "CUDA")
register_fallback("_tpavi_scores", scores_and_sums)
register_fallback("_tpavi_scores_backward", scores_and_sums_backward_)
register_fallback("_tpavi_fuse", fuse)
register_fallback("_tpavi_fuse_backward", fuse_backward)
register_triton("_tpavi_scores", "tpavi")
register_triton("_tpavi_scores_backward", "tpavi_backward")
register_triton("_tpavi_fuse", "tpavi")
register_triton("_tpavi_fuse_backward", "tpavi_backward")
torch.library.register_autograd("avskernels::tpavi", _backward, setup_context=_setup_context)
