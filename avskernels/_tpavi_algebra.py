"""Tpavi beside its passes over the map: checks, the small algebra, the block without audio."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from avskernels._check import FLOATS, expect


class Parameters(NamedTuple):
    """The parameters of the block, in the order of the operator's schema."""

    theta_weight: Tensor | None
    theta_bias: Tensor | None
    phi_weight: Tensor | None
    phi_bias: Tensor | None
    g_weight: Tensor
    g_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    concat_weight: Tensor | None
    concat_bias: Tensor | None
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


def check(visual, audio, parameters, training, mode):
    op = "tpavi"
    expect(op, "visual", visual, ["B", "C", "T", "H", "W"], FLOATS)
    batch, channels, frames = visual.shape[:3]
    if audio is not None:
        expect(op, "audio", audio, [batch, frames, channels], FLOATS, visual.device)
    if parameters.g_weight is None:
        raise RuntimeError(f"{op}: expected g_weight [C', {channels}], got None")
    expect(op, "g_weight", parameters.g_weight, ["C'", channels], FLOATS, visual.device)
    inner = parameters.g_weight.shape[0]
    down = {"weight": [inner, channels], "bias": [inner]}
    per_channel = {"weight": [channels], "bias": [channels]}
    groups = {
        "theta": down,
        "phi": down,
        "g": down,
        "out": {"weight": [channels, inner], "bias": [channels]},
        "concat": {"weight": [1, 2 * inner], "bias": [1]},
        "bn": per_channel,
        "running": {"mean": [channels], "var": [channels]},
        "norm": per_channel,
    }
    needed = {"gaussian": ("g", "out"), "concatenate": ("theta", "phi", "g", "out", "concat")}
    for group, shapes in groups.items():
        tensors = {f"{group}_{end}": shape for end, shape in shapes.items()}
        given = any(getattr(parameters, name) is not None for name in tensors)
        for name, shape in tensors.items():
            tensor = getattr(parameters, name)
            if tensor is not None:
                expect(op, name, tensor, shape, FLOATS, visual.device)
            elif given or group in needed.get(mode, ("theta", "phi", "g", "out")):
                raise RuntimeError(f"{op}: expected {name} {shape} in mode {mode!r}, got None")
    positions = visual.numel() // max(channels, 1)
    if training and parameters.bn_weight is not None and positions < 2:
        raise RuntimeError(
            f"{op}: expected at least 2 positions to train BatchNorm on, got {positions}"
        )


def key_rows(audio, p, mode):
    """Return keys ``[B, T, C]`` and offsets ``[B, T]`` or None; a pixel scores key . x + offset."""
    if mode == "gaussian":
        return audio, None
    phi = functional.linear(audio, p.phi_weight, p.phi_bias)  # [B, T, C']
    if mode == "concatenate":
        on_visual, on_audio = p.concat_weight.view(2, -1)
        keys = (on_visual @ p.theta_weight).expand_as(audio)
        return keys, phi @ on_audio + on_visual @ p.theta_bias + p.concat_bias
    return phi @ p.theta_weight, phi @ p.theta_bias


def weights_and_values(scores, sums, p, batch_statistics, bn_eps, mode):
    """Return the factors of what is added to the map, and BatchNorm's statistics.

    A pixel n gets ``values.T @ weights[:, n] + shift``, with weights ``[B, T, THW]``, values
    ``[B, T, C]`` and shift ``[C]``. Given are the scores ``[B, T, THW]`` and the sums over each
    frame's pixels ``[B, T, C]``.
    """
    frames, positions = scores.shape[1:]
    pooled = sums / max(positions // max(frames, 1), 1)
    bias, g_bias = p.out_bias, p.g_bias
    if mode in ("gaussian", "embedded"):
        weights = scores.softmax(1)
        if batch_statistics:
            # The weights of a pixel add to one, so what all values have in common is a constant,
            # which BatchNorm takes away. It is large beside the rest: it is left out first.
            common = pooled.mean((0, 1))
            bias = bias + functional.linear(common, p.g_weight, g_bias) @ p.out_weight.T
            pooled, g_bias = pooled - common, None
    else:
        weights = (scores.relu() if mode == "concatenate" else scores) / frames
    values = functional.linear(pooled, p.g_weight, g_bias) @ p.out_weight.T
    if p.bn_weight is None:
        return weights, values, bias, sums.new_empty(0), sums.new_empty(0)
    if batch_statistics:
        centre, variance = _moments(weights, values)
        mean = centre + bias
    else:
        mean, variance = p.running_mean, p.running_var
        centre = mean - bias
        if mode in ("gaussian", "embedded"):  # likewise, as far as the statistics know it
            values, centre = values - centre, torch.zeros_like(centre)
    scale = p.bn_weight * (variance + bn_eps).rsqrt()
    return weights, values * scale, p.bn_bias - centre * scale, mean, variance


def _moments(weights, values):
    """Return mean and variance ``[C]`` of ``values.T @ weights`` over all positions."""
    row_means = weights.mean(2, keepdim=True)  # [B, T, 1]
    centred = weights - row_means
    covariance = torch.bmm(centred, centred.mT) / weights.shape[2]  # [B, T, T]
    clip_means = (row_means * values).sum(1)  # [B, C]
    mean = clip_means.mean(0)
    within = (torch.bmm(covariance, values) * values).sum(1).mean(0)
    return mean, within + (clip_means - mean).square().mean(0)


def attend_to_visual(visual, p, batch_statistics, bn_eps, norm_eps, mode):
    """Do the whole block with the map in the place of the audio, differentiable by autograd."""
    pixels = visual.flatten(2).to(p.g_bias.dtype)  # [B, C, N]

    def project(weight, bias):
        return pixels if weight is None else weight @ pixels + bias.unsqueeze(1)

    theta, phi = project(p.theta_weight, p.theta_bias), project(p.phi_weight, p.phi_bias)
    values = project(p.g_weight, p.g_bias)
    if mode == "dot":
        attended = torch.bmm(torch.bmm(values, phi.mT) / pixels.shape[2], theta)
    elif mode == "concatenate":
        on_visual, on_audio = p.concat_weight.view(2, -1)
        attended = (
            _rectified_sums(on_visual @ theta + p.concat_bias, on_audio @ phi, values)
            / pixels.shape[2]
        )
    else:
        inner, width = values.shape[1], theta.shape[1]
        # torch's attention without an affinity matrix wants values as wide as the keys.
        padded = functional.pad(values, (0, 0, 0, max(width - inner, 0)))
        attended = functional.scaled_dot_product_attention(
            theta.mT.unsqueeze(1), phi.mT.unsqueeze(1), padded.mT.unsqueeze(1), scale=1.0
        )[:, 0, :, :inner].mT
    mixed = p.out_weight @ attended + p.out_bias.unsqueeze(1)
    mean = variance = pixels.new_empty(0)
    if p.bn_weight is not None:
        mean, variance = p.running_mean, p.running_var
        if batch_statistics:
            variance, mean = torch.var_mean(mixed, (0, 2), correction=0)
        mixed = (mixed - mean.unsqueeze(1)) * (variance + bn_eps).rsqrt().unsqueeze(1)
        mixed = torch.addcmul(p.bn_bias.unsqueeze(1), mixed, p.bn_weight.unsqueeze(1))
    mixed = mixed + pixels
    if p.norm_weight is not None:
        mixed = functional.layer_norm(
            mixed.mT, pixels.shape[1:2], p.norm_weight, p.norm_bias, norm_eps
        ).mT
    return mixed.reshape(visual.shape).to(visual.dtype), mean, variance


def _rectified_sums(rows, columns, values):
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
