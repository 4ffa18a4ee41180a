"""Fused CPU and GPU operators for audiovisual segmentation."""

from avskernels._backend import backend
from avskernels._library import build_info
from avskernels.attention_pool import attention_pool
from avskernels.channel_attention_mixer import channel_attention_mixer
from avskernels.deformable_attention import (
    MSDeformAttnFunction,
    deformable_attention,
    multi_scale_deformable_attention,
)
from avskernels.dynamic_mask_conv import dynamic_mask_conv
from avskernels.focal_dice_loss import MaskLosses, focal_dice_loss
from avskernels.linear_assignment import linear_assignment
from avskernels.matching_cost import MatchingWeights, matching_cost
from avskernels.semantic_argmax import semantic_argmax
from avskernels.semantic_recombination import semantic_recombination
from avskernels.tpavi import tpavi
from avskernels.vector_quantize import VectorQuantized, nearest_codeword, vector_quantize

__all__ = [
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
    "focal_dice_loss",
    "linear_assignment",
    "matching_cost",
    "multi_scale_deformable_attention",
    "nearest_codeword",
    "semantic_argmax",
    "semantic_recombination",
    "tpavi",
    "vector_quantize",
]
