# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torchvision

from avsmodel.backbones import STRIDES, build_backbone

SMALL = {"channels": [4, 8, 8, 16], "stem_width": 4, "stem_type": "deep"}
SMALL_SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 2)}
CASES = {
    "resnet10t": SMALL,
    "pvt_v2_b0": {},
    "swin_tiny_patch4_window7_224": SMALL_SWIN,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(32, 64), (96, 32)])
def test_maps_at_four_strides(name, size):
    backbone = build_backbone(name, **CASES[name]).eval()
    maps = backbone(torch.randn(2, 3, 3, *size))
    assert [item.shape for item in maps] == [
        (6, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(backbone.channels, STRIDES, strict=True)
    ]


def test_frames_of_an_image_backbone_are_independent():
    backbone = build_backbone("resnet10t", **SMALL).eval()
    frames = torch.randn(1, 2, 3, 32, 32)
    together = backbone(frames)
    alone = backbone(frames[:, 1:])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:], b)


@pytest.mark.parametrize("frames", [1, 3])
def test_video_swin_keeps_every_frame(frames):
    with torch.device("meta"):
        backbone = build_backbone("swin3d_t")
        maps = backbone(torch.randn(2, frames, 3, 64, 32))
    assert backbone.channels == (96, 192, 384, 768)
    assert [item.shape for item in maps] == [
        (2 * frames, channels, 64 // stride, 32 // stride)
        for channels, stride in zip(backbone.channels, STRIDES, strict=True)
    ]


def test_video_swin_embeds_like_the_published_network_that_sees_each_frame_twice():
    torch.manual_seed(0)
    published = torchvision.models.video.swin3d_t().eval()
    torch.manual_seed(0)
    backbone = build_backbone("swin3d_t").eval()
    frames = torch.randn(1, 3, 2, 32, 32)  # channels before time
    torch.testing.assert_close(
        backbone.patch_embed(frames),
        published.patch_embed(frames.repeat_interleave(2, dim=2)),
    )


def test_frozen_batchnorm_neither_trains_nor_follows_the_data():
    backbone = build_backbone("resnet10t", freeze_batchnorm=True, **SMALL)
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone.train()(torch.randn(1, 2, 3, 32, 32) + 3)
    assert before
    for name, value in backbone.named_buffers():
        assert torch.equal(value, before[name]), name
    assert not any("bn" in name for name, _ in backbone.named_parameters())


def test_a_name_that_timm_does_not_know():
    with pytest.raises(ValueError, match="ImageBackbone: expected the name of a timm model"):
        build_backbone("resnet5000")


def test_a_network_without_the_four_strides():
    with pytest.raises(ValueError, match="expected feature maps at strides"):
        build_backbone("resnet10t", out_indices=(0, 1, 2), **SMALL)
