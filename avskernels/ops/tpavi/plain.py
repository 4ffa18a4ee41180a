# SPDX-License-Identifier: Apache-2.0
"""Tpavi in plain torch: the algebra before each pass, the passes, and the block without audio.

``a`` holds the operator's arguments, and what earlier steps returned.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from avskernels.core.composite import Known
from avskernels.core.specification import fail


def key_rows(a: Known) -> dict[str, Tensor | None]:
    """Return keys ``[B, T, C]`` and offsets ``[B, T]`` or None; a pixel scores key . x + offset."""
    if a.audio is None:
        fail("tpavi", "audio [B, T, C], without which avskernels.tpavi calls no operator", None)
    if a.mode == "gaussian":
        return {"keys": a.audio, "offsets": None}
    phi = functional.linear(a.audio, a.phi_weight, a.phi_bias)  # [B, T, C']
    if a.mode == "concatenate":
        on_visual, on_audio = a.concat_weight.view(2, -1)
        keys = (on_visual @ a.theta_weight).expand_as(a.audio)
        return {
            "keys": keys,
            "offsets": phi @ on_audio + on_visual @ a.theta_bias + a.concat_bias,
        }
    return {"keys": phi @ a.theta_weight, "offsets": phi @ a.theta_bias}


def weights_and_values(a: Known) -> dict[str, Tensor]:
    """Return the factors of what is added to the map, and BatchNorm's statistics.

    A pixel n gets ``values.T @ weights[:, n] + shift``, with weights ``[B, T, THW]``, values
    ``[B, T, C]`` and shift ``[C]``. Given are the scores ``[B, T, THW]`` and the sums over each
    frame's pixels ``[B, T, C]``.
    """
    frames, positions = a.scores.shape[1:]
    pooled = a.sums / max(positions // max(frames, 1), 1)
    bias, g_bias = a.out_bias, a.g_bias
    softmax = a.mode in ("gaussian", "embedded")
    if softmax:
        weights = a.scores.softmax(1)
        if a.batch_statistics:
            # The weights of a pixel add to one, so what all values have in common is a constant,
            # which BatchNorm takes away. It is large beside the rest: it is left out first.
            common = pooled.mean((0, 1))
            bias = bias + functional.linear(common, a.g_weight, g_bias) @ a.out_weight.T
            pooled, g_bias = pooled - common, None
    else:
        weights = (a.scores.relu() if a.mode == "concatenate" else a.scores) / frames
    values = functional.linear(pooled, a.g_weight, g_bias) @ a.out_weight.T
    shift, mean, variance = bias, a.sums.new_empty(0), a.sums.new_empty(0)
    if a.bn_weight is not None:
        if a.batch_statistics:
            centre, variance = _moments(weights, values)
            mean = centre + bias
        else:  # copies, because an operator's results must be its own
            mean, variance = a.running_mean.clone(), a.running_var.clone()
            centre = mean - bias
            if softmax:  # likewise, as far as the statistics know it
                values, centre = values - centre, torch.zeros_like(centre)
        scale = a.bn_weight * (variance + a.bn_eps).rsqrt()
        values, shift = values * scale, a.bn_bias - centre * scale
    return {
        "weights": weights,
        "values": values,
        "shift": shift,
        "bn_mean": mean,
        "bn_variance": variance,
    }


def _moments(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance ``[C]`` of ``values.T @ weights`` over all positions."""
    row_means = weights.mean(2, keepdim=True)  # [B, T, 1]
    centred = weights - row_means
    covariance = torch.bmm(centred, centred.mT) / weights.shape[2]  # [B, T, T]
    clip_means = (row_means * values).sum(1)  # [B, C]
    mean = clip_means.mean(0)
    within = (torch.bmm(covariance, values) * values).sum(1).mean(0)
    return mean, within + (clip_means - mean).square().mean(0)


def scores(visual: Tensor, keys: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return key . x + offset of every pixel, and the sum of each frame's pixels."""
    scores = torch.bmm(keys, visual.flatten(2).to(keys.dtype))
    if offsets is not None:
        scores += offsets.unsqueeze(2)
    return scores, visual.sum((3, 4), dtype=keys.dtype).mT.contiguous()


def scores_backward(
    grad_visual: Tensor, visual: Tensor, keys: Tensor, grad_scores: Tensor, grad_sums: Tensor
) -> Tensor:
    """Add to ``grad_visual`` what goes through scores and sums; return the keys' gradient."""
    through_scores = torch.bmm(keys.mT, grad_scores).view_as(visual)
    grad_visual.add_(through_scores.add_(grad_sums.mT[:, :, :, None, None]))
    return torch.bmm(grad_scores, visual.flatten(2).to(keys.dtype).mT)


def _mixed(visual: Tensor, weights: Tensor, values: Tensor, shift: Tensor) -> Tensor:
    return torch.baddbmm(visual.flatten(2).to(shift.dtype) + shift.unsqueeze(1), values.mT, weights)


def fuse(
    visual: Tensor,
    weights: Tensor,
    values: Tensor,
    shift: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the factored y to the map and normalise each pixel over its channels."""
    mixed = _mixed(visual, weights, values, shift)
    fused = visual.new_empty(visual.shape)
    if norm_weight is None or norm_bias is None:
        fused.flatten(2).copy_(mixed)
        return fused, shift.new_empty(0), shift.new_empty(0)
    mean = mixed.mean(1, keepdim=True)
    rstd = (mixed.sub_(mean).square().mean(1, keepdim=True) + norm_eps).rsqrt()
    mixed.mul_(rstd).mul_(norm_weight.unsqueeze(1)).add_(norm_bias.unsqueeze(1))
    fused.flatten(2).copy_(mixed)
    return fused, mean.squeeze(1), rstd.squeeze(1)


def fuse_backward(
    grad_fused: Tensor,
    visual: Tensor,
    weights: Tensor,
    values: Tensor,
    shift: Tensor,
    norm_weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of :func:`fuse`, for the map only what passes the addition."""
    grads = grad_fused.flatten(2).to(shift.dtype)
    grad_norm_weight = grad_norm_bias = torch.zeros_like(shift)
    if norm_weight is not None and mean is not None and rstd is not None:
        normalised = _mixed(visual, weights, values, shift)
        normalised.sub_(mean.unsqueeze(1)).mul_(rstd.unsqueeze(1))
        grad_norm_weight, grad_norm_bias = (grads * normalised).sum((0, 2)), grads.sum((0, 2))
        grads = grads * norm_weight.unsqueeze(1)
        along = (grads * normalised).mean(1, keepdim=True)
        grads -= grads.mean(1, keepdim=True) + normalised.mul_(along)
        grads *= rstd.unsqueeze(1)
    grad_visual = visual.new_empty(visual.shape)
    grad_visual.flatten(2).copy_(grads)
    return (
        grad_visual,
        torch.bmm(values, grads),
        torch.bmm(weights, grads.mT),
        grads.sum((0, 2)),
        grad_norm_weight,
        grad_norm_bias.clone(),
    )


def attend_to_visual(a: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Do the whole block with the map in the place of the audio, differentiable by autograd.

    Returns the fused map and BatchNorm's statistics.
    """
    pixels = a.visual.flatten(2).to(a.g_bias.dtype)  # [B, C, N]

    def project(weight: Tensor | None, bias: Tensor) -> Tensor:
        return pixels if weight is None else weight @ pixels + bias.unsqueeze(1)

    theta, phi = project(a.theta_weight, a.theta_bias), project(a.phi_weight, a.phi_bias)
    values = project(a.g_weight, a.g_bias)
    if a.mode == "dot":
        attended = torch.bmm(torch.bmm(values, phi.mT) / pixels.shape[2], theta)
    elif a.mode == "concatenate":
        on_visual, on_audio = a.concat_weight.view(2, -1)
        attended = (
            _rectified_sums(on_visual @ theta + a.concat_bias, on_audio @ phi, values)
            / pixels.shape[2]
        )
    else:
        inner, width = values.shape[1], theta.shape[1]
        # torch's attention without an affinity matrix wants values as wide as the keys.
        padded = functional.pad(values, (0, 0, 0, max(width - inner, 0)))
        attended = functional.scaled_dot_product_attention(
            theta.mT.unsqueeze(1), phi.mT.unsqueeze(1), padded.mT.unsqueeze(1), scale=1.0
        )[:, 0, :, :inner].mT
    mixed = a.out_weight @ attended + a.out_bias.unsqueeze(1)
    mean = variance = pixels.new_empty(0)
    if a.bn_weight is not None:
        mean, variance = a.running_mean, a.running_var
        if a.batch_statistics:
            variance, mean = torch.var_mean(mixed, (0, 2), correction=0)
        mixed = (mixed - mean.unsqueeze(1)) * (variance + a.bn_eps).rsqrt().unsqueeze(1)
        mixed = torch.addcmul(a.bn_bias.unsqueeze(1), mixed, a.bn_weight.unsqueeze(1))
    mixed = mixed + pixels
    if a.norm_weight is not None:
        mixed = functional.layer_norm(
            mixed.mT, pixels.shape[1:2], a.norm_weight, a.norm_bias, a.norm_eps
        ).mT
    return mixed.reshape(a.visual.shape).to(a.visual.dtype), mean, variance


def _rectified_sums(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Return sum_q relu(rows_p + columns_q) values_q for ``[B, N]``, ``[B, N]``, ``[B, C', N]``.

    With the columns sorted, the terms of row p that are not zero are a suffix, so two suffix sums
    serve all rows: N log N work, and no N x N matrix.
    """
    ascending, order = columns.sort(1)
    terms = values.gather(2, order.unsqueeze(1).expand_as(values))
    terms = torch.stack([terms, terms * ascending.unsqueeze(1)])  # [2, B, C', N]
    sums = functional.pad(terms.flip(3).cumsum(3).flip(3), (0, 1))
    first = torch.searchsorted(ascending, -rows.detach(), right=True)  # [B, N]
    plain, weighted = sums.gather(3, first[None, :, None].expand_as(terms))
    return rows.unsqueeze(1) * plain + weighted
