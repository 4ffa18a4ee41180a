# SPDX-License-Identifier: Apache-2.0
"""The module against the published module's structure, written out with torch's own layers."""

import pytest
import torch
from checks import randomise
from torch import nn

from avskernels.nn import TPAVI
from avskernels.testing import assert_close


def published_names(mode, bn_layer):
    """The keys of TPAVIModule's state dict."""
    names = {f"{m}.{p}" for m in ("align_channel", "norm_layer", "g") for p in ("weight", "bias")}
    out = "W_z.0" if bn_layer else "W_z"
    names |= {f"{out}.weight", f"{out}.bias"}
    if bn_layer:
        ends = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        names |= {f"W_z.1.{end}" for end in ends}
    if mode != "gaussian":
        names |= {f"{m}.{p}" for m in ("theta", "phi") for p in ("weight", "bias")}
    if mode == "concatenate":
        names |= {"W_f.0.weight", "W_f.0.bias"}
    return names


def published_tpavi(m, visual, audio):
    """TPAVIModule's forward with the layers of module m: affinities of all pairs of positions."""
    frames, height, width = visual.shape[2:]
    source, aligned = visual, None
    if audio is not None:
        aligned = m.align_channel(audio)
        source = aligned.mT[:, :, :, None, None].expand(-1, -1, -1, height, width)
    theta = (visual if m.mode == "gaussian" else m.theta(visual)).flatten(2)
    phi = (source if m.mode == "gaussian" else m.phi(source)).flatten(2)
    if m.mode == "concatenate":
        size = theta.shape[2]
        pairs = [
            theta.unsqueeze(3).expand(-1, -1, -1, size),
            phi.unsqueeze(2).expand(-1, -1, size, -1),
        ]
        affinity = m.W_f(torch.cat(pairs, 1))[:, 0]
    else:
        affinity = theta.mT @ phi
    softmax = m.mode in ("gaussian", "embedded")
    weights = affinity.softmax(-1) if softmax else affinity / affinity.shape[2]
    attended = (weights @ m.g(visual).flatten(2).mT).mT
    fused = m.W_z(attended.unflatten(2, (frames, height, width))) + visual
    return m.norm_layer(fused.movedim(1, -1)).movedim(-1, 1), aligned


@pytest.mark.parametrize("mode", ["dot", "embedded", "gaussian", "concatenate"])
@pytest.mark.parametrize("bn_layer", [True, False], ids=["batch norm", "no batch norm"])
@pytest.mark.parametrize("with_audio", [True, False], ids=["audio", "visual"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_tpavi_is_the_published_module(mode, bn_layer, with_audio, training):
    ours = TPAVI(8, mode=mode, bn_layer=bn_layer, audio_dim=12)
    assert set(ours.state_dict()) == published_names(mode, bn_layer)
    randomise(ours).double().train(training)
    theirs = TPAVI(8, mode=mode, bn_layer=bn_layer, audio_dim=12).double().train(training)
    theirs.load_state_dict(ours.state_dict())
    visual = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64)
    audio = torch.randn(2, 3, 12, dtype=torch.float64) if with_audio else None
    fused, aligned = ours(visual, audio)
    expected, expected_audio = published_tpavi(theirs, visual, audio)
    assert_close(fused, expected)
    if with_audio:
        assert_close(aligned, expected_audio)
    else:
        assert aligned is None
    for name, tensor in ours.state_dict().items():
        assert_close(tensor.double(), theirs.state_dict()[name], torch.float64)


def test_tpavi_starts_as_the_normalised_map():
    module = TPAVI(8)
    visual = torch.randn(2, 8, 3, 4, 5)
    fused, _ = module(visual, torch.randn(2, 3, 128))
    assert_close(
        fused, nn.functional.layer_norm(visual.movedim(1, -1), (8,)).movedim(-1, 1).double()
    )


def test_tpavi_cumulative_statistics():
    module = randomise(TPAVI(8))
    module.W_z[1].momentum = None
    twin = TPAVI(8)
    twin.load_state_dict(module.state_dict())
    twin.W_z[1].momentum = None
    visual, audio = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 3, 128)
    for _ in range(2):
        module(visual, audio)
        published_tpavi(twin, visual, audio)
    assert_close(module.W_z[1].running_var, twin.W_z[1].running_var.double())


def test_tpavi_mode():
    with pytest.raises(ValueError, match="expected mode to be one of"):
        TPAVI(8, mode="sum")
