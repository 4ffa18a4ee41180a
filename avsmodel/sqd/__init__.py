# SPDX-License-Identifier: Apache-2.0
"""SQD (QDFormer): audiovisual segmentation by semantic quantization and decomposition."""

from avsmodel.sqd.config import SQDConfig
from avsmodel.sqd.model import SQD, build_model
from avsmodel.sqd.output import Segmentation, SQDOutput, join_tracks, segment

__all__ = [
    "SQD",
    "SQDConfig",
    "SQDOutput",
    "Segmentation",
    "build_model",
    "join_tracks",
    "segment",
]
