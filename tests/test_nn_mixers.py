"""The modules against published modules' structure, written out with torch's own layers."""

import pytest
import torch
from torch import nn

from avskernels import reference
from avskernels.nn import TPAVI, ChannelAttentionMixer, SemanticRecombination
from avskernels.testing import assert_close


def randomise(module):
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            value = (
                torch.randn(tensor.shape, generator=generator) / max(tensor[0].numel(), 1) ** 0.5
            )
            tensor.copy_(value.abs() + 0.5 if name.endswith("running_var") else value)
    return module


class PublishedMixer(nn.Module):
    """AVSegFormer's mixer by its parameter names, the key and value maps in full."""

    def __init__(self, dim, num_heads, qkv_bias):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv_proj = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, features, audio):
        tokens = features.flatten(2).mT
        query = self.q_proj(audio).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        both = self.kv_proj(tokens).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ both[0].mT * query.shape[-1] ** -0.5).softmax(-1)
        pooled = (weights @ both[1]).transpose(1, 2).flatten(1)
        return features * self.proj(pooled).sigmoid()[:, :, None, None]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_mixer_loads_the_published_checkpoint(batch, qkv_bias):
    published = randomise(PublishedMixer(24, 4, qkv_bias))
    mixer = ChannelAttentionMixer(24, 4, qkv_bias=qkv_bias)
    mixer.load_state_dict(published.state_dict())
    features, audio = torch.randn(batch, 24, 5, 7), torch.randn(batch, 1, 24)
    expected = published.double()(features.double(), audio.double())
    assert_close(mixer(features, audio), expected)
    assert_close(mixer(features, audio[:, 0]), expected)


def test_mixer_by_the_paper():
    mixer = ChannelAttentionMixer(24, 4, formula="paper")
    assert not list(mixer.parameters())
    features, audio = torch.randn(2, 24, 5, 7), torch.randn(2, 1, 24)
    heads = features.double().flatten(2).unflatten(1, (4, 6))  # [B, heads, C / heads, N]
    query = audio.double().view(2, 4, 6)
    logits = torch.einsum("bhd,bhdn->bhn", query, heads) / 6**0.5
    omega = torch.einsum("bhn,bhdn->bhd", logits, heads).flatten(1)
    expected = features + features * omega[:, :, None, None]
    assert_close(mixer(features, audio), expected)


def test_mixer_errors():
    with pytest.raises(ValueError, match="expected dim to be a multiple of 5 heads, got 24"):
        ChannelAttentionMixer(24, 5)
    with pytest.raises(ValueError, match="expected formula to be one of"):
        ChannelAttentionMixer(24, 4, formula="other")


@pytest.mark.parametrize("norm", ["batch", "group", None])
@pytest.mark.parametrize("frames", [None, 3])
def test_recombination(norm, frames):
    module = randomise(SemanticRecombination(8, 3, norm=norm, num_groups=2))
    features = torch.randn(2, *([frames] if frames else []), 8, 5, 7)
    tokens = torch.randn(2, 3, 8)
    fused = module(features, tokens)
    mixed = reference.semantic_recombination(
        features, module.filters(tokens), module.phi.weight, module.phi.bias
    )
    assert_close(fused, module.norm(mixed.flatten(0, -4)).view_as(mixed).double())
    fused.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_recombination_norm():
    with pytest.raises(ValueError, match="expected norm to be one of"):
        SemanticRecombination(8, 3, norm="layer")


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
