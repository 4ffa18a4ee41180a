# SPDX-License-Identifier: Apache-2.0
"""Temporal pixel-wise audio-visual interaction as AVSBench writes it: a THW x THW affinity."""

import torch
from torch import Tensor
from torch.nn import functional


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
) -> tuple[Tensor, Tensor | None]:
    """Return LN(BN(W_z(f(theta(x), phi(a)) g(x))) + x), and the aligned audio; None for a is x."""

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(visual.dtype)

    def project(tensor: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is None:
            return tensor.flatten(2)
        kernel = weight[:, :, None, None, None].to(tensor.dtype)
        return functional.conv3d(tensor, kernel, cast(bias)).flatten(2)  # pixels in a row

    if audio is not None and align_weight is not None:
        audio = functional.linear(audio, align_weight, align_bias)
    source = visual
    if audio is not None:
        rows = audio.to(visual.dtype).mT
        source = rows[:, :, :, None, None].repeat(1, 1, 1, *visual.shape[-2:])
    if mode == "gaussian":
        theta_weight = phi_weight = None
    theta = project(visual, theta_weight, theta_bias)  # [B, C', THW]
    phi = project(source, phi_weight, phi_bias)
    if mode == "concatenate" and concat_weight is not None:
        size = theta.shape[-1]
        pairs = torch.cat(
            [theta.unsqueeze(3).repeat(1, 1, 1, size), phi.unsqueeze(2).repeat(1, 1, size, 1)], 1
        )
        kernel = concat_weight[:, :, None, None].to(visual.dtype)
        affinity = functional.conv2d(pairs, kernel, cast(concat_bias)).relu()[:, 0]
    else:
        affinity = theta.mT @ phi  # [B, THW, THW]
    weights = affinity.softmax(-1) if mode in ("gaussian", "embedded") else affinity / phi.shape[-1]
    values = (weights @ project(visual, g_weight, g_bias).mT).mT.contiguous()  # [B, C', THW]
    kernel = out_weight.unsqueeze(2).to(visual.dtype)
    fused = functional.conv1d(values, kernel, cast(out_bias))
    if bn_weight is not None:
        fused = functional.batch_norm(
            fused,
            running_mean,
            running_var,
            cast(bn_weight),
            cast(bn_bias),
            training,
            momentum,
            bn_eps,
        )
    fused = fused.view_as(visual) + visual
    if norm_weight is not None:
        fused = functional.layer_norm(
            fused.movedim(1, -1), visual.shape[1:2], cast(norm_weight), cast(norm_bias), norm_eps
        ).movedim(-1, 1)
    return fused, audio
