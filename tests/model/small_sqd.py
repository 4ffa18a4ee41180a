# SPDX-License-Identifier: Apache-2.0
"""A model small enough for tests, and clips for it."""

from dataclasses import replace

import torch

from avsmodel.data import Batch
from avsmodel.sqd import SQDConfig

CONFIG = SQDConfig(
    backbone="resnet10t",
    backbone_options={"channels": [4, 8, 8, 16], "stem_width": 4, "stem_type": "deep"},
    freeze_batchnorm=False,
    encoder_layers=1,
    vggish_width=1 / 32,
    freeze_vggish=False,
    dim=16,
    num_heads=2,
    ffn_dim=32,
    dropout=0.0,
    num_points=2,
    decoder_layers=2,
    num_tokens=3,
    num_codewords=7,
    mask_dim=6,
    mask_hidden=(4, 4),
    coord_scale=0.05,
)


def config(**changes) -> SQDConfig:
    return replace(CONFIG, **changes)


def clips(B=2, T=2, height=32, width=32, classes=2, seed=0) -> Batch:
    """Clips of noise, each with a rectangle of one class that is absent from its last frame."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.zeros(B, T, height, width, dtype=torch.int64)
    for clip in range(B):
        masks[clip, : max(1, T - 1), 4 : height // 2, 6 : width - 5] = 1 + clip % (classes - 1)
    return Batch(
        uids=[f"clip{index}" for index in range(B)],
        frames=torch.randn(B, T, 3, height, width, generator=random),
        log_mel=torch.randn(B, T, 1, 96, 64, generator=random),
        masks=masks,
        real=torch.ones(B, T, dtype=torch.bool),
        labelled=torch.ones(B, T, dtype=torch.bool),
    )
