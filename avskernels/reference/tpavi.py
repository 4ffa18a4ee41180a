"""Temporal pixel-wise audio-visual interaction as AVSBench writes it: a THW x THW affinity."""

import torch
from torch.nn import functional


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
):
    """Return LN(BN(W_z(f(theta(x), phi(a)) g(x))) + x) for audio ``[B, T, C]``, or None for x."""

    def project(tensor, weight, bias):  # a 1 x 1 x 1 convolution, pixels in a row
        if weight is None:
            return tensor.flatten(2)
        return functional.conv3d(tensor, weight[:, :, None, None, None], bias).flatten(2)

    source = visual
    if audio is not None:
        source = audio.mT[:, :, :, None, None].repeat(1, 1, 1, *visual.shape[-2:])
    theta = project(visual, theta_weight, theta_bias)  # [B, C', THW]
    phi = project(source, phi_weight, phi_bias)
    if mode == "concatenate":
        size = theta.shape[-1]
        pairs = torch.cat(
            [theta.unsqueeze(3).repeat(1, 1, 1, size), phi.unsqueeze(2).repeat(1, 1, size, 1)], 1
        )
        affinity = functional.conv2d(pairs, concat_weight[:, :, None, None], concat_bias).relu()[
            :, 0
        ]
    else:
        affinity = theta.mT @ phi  # [B, THW, THW]
    weights = affinity.softmax(-1) if mode in ("gaussian", "embedded") else affinity / phi.shape[-1]
    values = (weights @ project(visual, g_weight, g_bias).mT).mT.contiguous()  # [B, C', THW]
    fused = functional.conv1d(values, out_weight.unsqueeze(2), out_bias)
    if bn_weight is not None:
        fused = functional.batch_norm(
            fused, running_mean, running_var, bn_weight, bn_bias, training, momentum, bn_eps
        )
    fused = fused.view_as(visual) + visual
    if norm_weight is None:
        return fused
    fused = functional.layer_norm(
        fused.movedim(1, -1), visual.shape[1:2], norm_weight, norm_bias, norm_eps
    )
    return fused.movedim(-1, 1)
