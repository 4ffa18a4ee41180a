# SPDX-License-Identifier: Apache-2.0
"""Fused CPU and GPU operators for audiovisual segmentation."""

from avskernels import nn, reference
from avskernels.core.backend import Explanation, backend, explain, use_cuda_cpp
from avskernels.core.library import build_info
from avskernels.ops.attention_pool.operator import attention_pool
from avskernels.ops.channel_attention_mixer.operator import channel_attention_mixer
from avskernels.ops.deformable_attention.operator import (
    MSDeformAttnFunction,
    deformable_attention,
    multi_scale_deformable_attention,
)
from avskernels.ops.dynamic_mask_conv.operator import dynamic_mask_conv
from avskernels.ops.focal_dice_loss.operator import MaskLosses, focal_dice_loss
from avskernels.ops.linear_assignment.operator import linear_assignment
from avskernels.ops.matching_cost.operator import MatchingWeights, matching_cost
from avskernels.ops.semantic_argmax.operator import semantic_argmax
from avskernels.ops.semantic_recombination.operator import semantic_recombination
from avskernels.ops.tpavi.operator import tpavi
from avskernels.ops.vector_quantize.operator import (
    VectorQuantized,
    nearest_codeword,
    vector_quantize,
)

__all__ = [
    "Explanation",
    "MSDeformAttnFunction",
    "MaskLosses",
    "MatchingWeights",
    "VectorQuantized",
    "attention_pool",
    "backend",
    "build_info",
    "channel_attention_mixer",
    "deformable_attention",
    "dynamic_mask_conv",
    "explain",
    "focal_dice_loss",
    "linear_assignment",
    "matching_cost",
    "multi_scale_deformable_attention",
    "nearest_codeword",
    "nn",
    "reference",
    "semantic_argmax",
    "semantic_recombination",
    "tpavi",
    "use_cuda_cpp",
    "vector_quantize",
]
