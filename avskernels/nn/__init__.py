"""Modules around the operators."""

from avskernels.nn.channel_attention_mixer import ChannelAttentionMixer
from avskernels.nn.deformable_attention import DeformableAttention, MultiScaleDeformableAttention
from avskernels.nn.dynamic_mask_conv import DynamicMaskHead
from avskernels.nn.linear_assignment import HungarianMatcher
from avskernels.nn.semantic_recombination import SemanticRecombination
from avskernels.nn.tpavi import TPAVI
from avskernels.nn.vector_quantize import ProductQuantizer, VectorQuantizer

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
