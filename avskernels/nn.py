# SPDX-License-Identifier: Apache-2.0
"""Modules around the operators."""

from avskernels.ops.channel_attention_mixer.module import ChannelAttentionMixer
from avskernels.ops.deformable_attention.module import (
    DeformableAttention,
    MultiScaleDeformableAttention,
)
from avskernels.ops.dynamic_mask_conv.module import DynamicMaskHead
from avskernels.ops.matching_cost.module import HungarianMatcher
from avskernels.ops.semantic_recombination.module import SemanticRecombination
from avskernels.ops.tpavi.module import TPAVI
from avskernels.ops.vector_quantize.module import ProductQuantizer, VectorQuantizer

__all__ = [
    "TPAVI",
    "ChannelAttentionMixer",
    "DeformableAttention",
    "DynamicMaskHead",
    "HungarianMatcher",
    "MultiScaleDeformableAttention",
    "ProductQuantizer",
    "SemanticRecombination",
    "VectorQuantizer",
]
