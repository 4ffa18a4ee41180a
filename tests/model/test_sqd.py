# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch
from small_sqd import clips, config

from avsmodel.config import load_config, preset_names
from avsmodel.criterion import LossConfig, SQDCriterion
from avsmodel.sqd import build_model
from avsmodel.sqd.semantics import SemanticCodebook

SWITCHES = {
    "whole": {},
    "baseline": {"gsd": False, "avsr": False, "lsd": False},
    "gsd": {"avsr": False, "lsd": False},
    "gsd, avsr": {"lsd": False},
    "gsd, avsr, lsd": {"shared_codebook": False},
    "lsd": {"gsd": False, "avsr": False, "shared_codebook": False},
    "one token": {"num_tokens": 1},
    "nine tokens": {"num_tokens": 9},
    "one codeword": {"num_codewords": 1},
    "one layer": {"decoder_layers": 1},
    "no encoder": {"encoder_layers": 0},
    "three levels": {"extra_levels": 0},
    "two extra levels": {"extra_levels": 2},
    "pre-norm": {"norm_first": True},
    "no fusion": {"fusion": False},
    "shared decoder": {"shared_decoder": True},
    "codebook normal": {"codebook_init": "normal"},
    "codebook uniform": {"codebook_init": "uniform"},
    "codebook kmeans": {"codebook_init": "kmeans"},
    "codebook ema": {"codebook_update": "ema"},
    "codebook frozen": {"codebook_update": "frozen"},
    "codebook restart": {"codebook_restart": 1},
    "codebook later": {"quantize_after": 1},
    "quantization sum": {"quantization_reduction": "sum"},
    "group norm": {"recombination_norm": "group"},
    "plain attention": {"segm_attention": "plain"},
    "no refinement": {"box_refinement": False},
    "filter": {"mask_head": "filter"},
    "deeper masks": {"mask_hidden": (4, 3, 2)},
    "frozen VGGish": {"freeze_vggish": True},
    "frozen BatchNorm": {"freeze_batchnorm": True},
    "dropout": {"dropout": 0.1},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_trains(switches):
    torch.manual_seed(0)
    settings = config(**switches)
    model = build_model(settings, 4)
    batch = clips(classes=4)
    for _ in range(2):
        output = model(batch.frames, batch.log_mel, batch.real)
        total, _ = SQDCriterion()(output, batch)
        total.backward()
    N = settings.num_tokens
    assert output.class_logits.shape == (2, N, 2, 3)
    assert output.boxes.shape == (2, N, 2, 4)
    assert output.mask_logits.shape == (2, N, 2, 8, 8)
    assert len(output.auxiliary) == settings.decoder_layers - 1
    assert (output.global_indices is None) == (not settings.gsd)
    assert (output.local_indices is None) == (not settings.lsd)
    if settings.lsd:
        assert output.local_indices.shape == (2, N, 2)
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    # DistributedDataParallel needs a gradient of every parameter in every step.
    assert [name for name, grad in grads.items() if grad is None] == []
    assert all(grad.isfinite().all() for grad in grads.values())
    segmentation = model.eval().segment(model(batch.frames, batch.log_mel))
    assert segmentation.labels.shape == batch.masks.shape


@pytest.mark.cuda
def test_trains_on_a_cuda_device():
    torch.manual_seed(0)
    model, batch = build_model(config(), 4), clips(classes=4)
    totals = []
    for device in ("cpu", "cuda"):
        model, batch = model.to(device), batch.to(device)
        output = model(batch.frames, batch.log_mel, batch.real)
        total, _ = SQDCriterion()(output, batch)
        totals.append(total.item())
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    # Convolutions are in TF32 there, and BatchNorm divides by the small variance of these maps.
    assert totals[1] == pytest.approx(totals[0], rel=0.05)


# Parameters in millions, of a model for 70 classes; VGGish holds 72 of the large ones.
SIZES = {"sqd_pvtv2": 173, "sqd_r50": 125, "sqd_swin_t": 126, "sqd_video_swin_t": 126, "tiny": 1.08}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds(name):
    settings = load_config(name).model
    with torch.device("meta"):
        model = build_model(replace(settings, pretrained=False, vggish_weights=""), 71)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(SIZES[name], rel=0.05)


@pytest.mark.parametrize("size", [(32, 32), (30, 53), (65, 33)])
@pytest.mark.parametrize("frames", [1, 4])
def test_any_size_and_length(size, frames):
    torch.manual_seed(0)
    model = build_model(config(), 3).eval()
    batch = clips(1, frames, *size)
    output = model(batch.frames, batch.log_mel)
    assert output.mask_logits.shape == (1, 3, frames, -(-size[0] // 4), -(-size[1] // 4))
    assert output.frame_size == size
    assert model.segment(output).labels.shape == (1, frames, *size)


def test_padding_is_what_the_caller_would_pad():
    torch.manual_seed(0)
    model = build_model(config(), 2).eval()
    batch = clips(1, 2, 40, 52)
    padded = torch.nn.functional.pad(batch.frames, (0, 12, 0, 24))
    small, large = (model(frames, batch.log_mel) for frames in (batch.frames, padded))
    torch.testing.assert_close(small.mask_logits, large.mask_logits[..., :10, :13])
    # The same box, as a share of a smaller frame.
    pixels = torch.tensor([52, 40, 52, 40]), torch.tensor([64, 64, 64, 64])
    torch.testing.assert_close(small.boxes * pixels[0], large.boxes * pixels[1])


def test_frames_that_do_not_exist_change_nothing():
    torch.manual_seed(0)
    model = build_model(config(), 2)
    batch = clips(1, 3)
    batch.real[0, 2] = False
    other = clips(1, 3)
    other.log_mel[0, 2] += 5
    model.eval()
    first = model(batch.frames, batch.log_mel, batch.real)
    second = model(batch.frames, other.log_mel, batch.real)
    assert torch.equal(first.global_indices, second.global_indices)
    torch.testing.assert_close(first.quantization_loss, second.quantization_loss)
    torch.testing.assert_close(first.mask_logits[:, :, :2], second.mask_logits[:, :, :2])


def test_local_tokens_never_move_the_codebook():
    torch.manual_seed(0)
    model = build_model(config(), 2).train()
    batch = clips()
    codebook = model.codebook.codebook
    audio = model.audio_encoder(batch.log_mel)
    local = model._decompose_frames(audio, None)
    (local.quantized.sum() + local.loss).backward()
    assert codebook.grad is None or not codebook.grad.any()
    assert model.local_decoder.prototypes.grad.any()
    assert not model.codebook.usage.any()
    model(batch.frames, batch.log_mel).quantization_loss.backward()
    assert codebook.grad.any()


@pytest.mark.parametrize("switches", [{"codebook_update": "ema"}, {"codebook_restart": 1}])
def test_statistics_are_of_global_tokens_only(switches):
    torch.manual_seed(0)
    model = build_model(config(**switches), 2).train()
    batch = clips()
    model._decompose_frames(model.audio_encoder(batch.log_mel), None)
    fresh = model.codebook.codebook.clone()
    assert model.codebook.usage.sum() == 0
    output = model(batch.frames, batch.log_mel)
    assert model.codebook.usage.sum() == output.global_indices.numel()
    assert not torch.equal(model.codebook.codebook, fresh)


def test_without_a_shared_codebook_local_tokens_move_their_own():
    torch.manual_seed(0)
    model = build_model(config(shared_codebook=False), 2)
    batch = clips()
    model(batch.frames, batch.log_mel).quantization_loss.backward()
    assert model.local_codebook.codebook.grad.any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_quantization_loss_is_equation_9(reduction):
    torch.manual_seed(0)
    settings = config(quantization_reduction=reduction, commitment=0.7)
    codebook = SemanticCodebook(settings)
    tokens = torch.randn(2, 3, 4, 16)
    real = torch.tensor([[True, True, False], [True, False, False]])
    clip, local = tokens[:, 0], tokens
    expected = {}
    for name, rows in (("clip", clip[real.any(1)].flatten(0, -2)), ("local", local[real])):
        rows = rows.reshape(-1, 16)
        nearest = torch.cdist(rows, codebook.codebook).min(1).values.square()
        expected[name] = nearest.sum() / (rows.numel() if reduction == "mean" else 2)
    torch.testing.assert_close(codebook(clip).loss, 1.7 * expected["clip"])
    found = codebook(local, real, commit_only=True).loss
    torch.testing.assert_close(found, 0.7 * expected["local"])


def test_tokens_pass_until_quantization_begins():
    torch.manual_seed(0)
    codebook = SemanticCodebook(config(quantize_after=2, codebook_init="kmeans"))
    tokens = torch.randn(4, 3, 16, requires_grad=True)
    for _ in range(2):
        clip, local = codebook(tokens), codebook(tokens, commit_only=True)
        for result in (clip, local):
            assert result.quantized is tokens
            assert result.indices.shape == (4, 3)
        # The codebook learns meanwhile, without an effect on the tokens.
        (grad,) = torch.autograd.grad(clip.loss, codebook.codebook)
        assert grad.any()
        assert not local.loss.requires_grad
    # What is evaluated, saved or shown does not wait.
    quantized, indices, _ = codebook.eval()(tokens)
    torch.testing.assert_close(quantized, codebook.codebook[indices])
    quantized, indices, loss = codebook.train()(tokens)
    torch.testing.assert_close(quantized, codebook.codebook[indices])
    assert torch.autograd.grad(loss, tokens)[0].any()
    resumed = SemanticCodebook(config(quantize_after=2, codebook_init="kmeans"))
    resumed.load_state_dict(codebook.state_dict())
    torch.testing.assert_close(resumed.eval()(tokens).quantized, quantized)


def test_parameter_groups():
    model = build_model(config(freeze_vggish=True), 2)
    groups = model.parameter_groups(lr=0.1, backbone_multiplier=0.5, weight_decay=0.01)
    assert [group["lr"] for group in groups] == [0.05, 0.1]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    backbone = {id(p) for p in model.visual_encoder.backbone.parameters()}
    assert {id(p) for p in groups[0]["params"]} == backbone


def test_one_batch_can_be_learned():
    torch.manual_seed(0)
    model = build_model(config(dim=32, mask_dim=8, quantize_after=10, codebook_init="kmeans"), 2)
    criterion = SQDCriterion(LossConfig())
    batch = clips()
    optimizer = torch.optim.AdamW(model.parameter_groups(3e-3, 1.0, 0.0))
    history = []
    for _ in range(50):
        total, terms = criterion(model(batch.frames, batch.log_mel, batch.real), batch)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(terms)
    assert history[-1]["dice"] < 0.3 * history[0]["dice"]
    assert sum(history[-1].values()) < 0.5 * sum(history[0].values())
    segmentation = model.eval().segment(model(batch.frames, batch.log_mel))
    inside = (segmentation.labels & batch.masks).sum()
    assert inside / (segmentation.labels | batch.masks).sum() > 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gsd": False, "lsd": False}, "expected gsd=true where avsr=true"),
        ({"gsd": False, "avsr": False}, "expected gsd=true where lsd=true and shared_codebook"),
        ({"lsd": False, "shared_decoder": True}, "gsd=true and lsd=true where shared_decoder=true"),
        ({"dim": 18}, "expected dim divisible by 4 and by num_heads=2, got 18"),
        ({"num_tokens": 0}, "expected num_tokens of at least 1, got 0"),
    ],
)
def test_choices_that_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=f"SQDConfig: .*{message}"):
        build_model(config(**changes), 2)


def test_input_errors():
    model = build_model(config(), 2)
    batch = clips()
    with pytest.raises(ValueError, match=r"SQD: expected frames \[B, T, 3, H, W\], got"):
        model(batch.frames[0], batch.log_mel)
    with pytest.raises(ValueError, match=r"SQD: expected log_mel \[2, 2, 1, 96, 64\]"):
        model(batch.frames, batch.log_mel[:, :1])
    with pytest.raises(ValueError, match=r"SQD: expected real bool \[2, 2\], got torch.int64"):
        model(batch.frames, batch.log_mel, batch.real.long())
    with pytest.raises(ValueError, match="SQD: expected at least 2 classes"):
        build_model(config(), 1)


def test_bfloat16_autocast_trains():
    torch.manual_seed(0)
    model = build_model(config(), 2)
    # Maps of 2 x 2 at stride 32: on a 1 x 1 map torch's own bfloat16 gradient of a strided 3 x 3
    # convolution's weight is at times not finite (torch 2.15, 15 of 60 runs on one thread).
    batch = clips(height=64, width=64)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch.frames, batch.log_mel, batch.real)
    total, _ = SQDCriterion()(output, batch)
    total.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    exact = model(batch.frames, batch.log_mel, batch.real)
    torch.testing.assert_close(output.boxes.float(), exact.boxes, atol=0.05, rtol=0)
