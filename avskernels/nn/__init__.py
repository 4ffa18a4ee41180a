"""Modules around the operators."""

from avskernels.nn.deformable_attention import DeformableAttention, MultiScaleDeformableAttention
from avskernels.nn.dynamic_mask_conv import DynamicMaskHead
from avskernels.nn.vector_quantize import ProductQuantizer, VectorQuantizer

__all__ = [
    "DeformableAttention",
    "DynamicMaskHead",
    "MultiScaleDeformableAttention",
    "ProductQuantizer",
    "VectorQuantizer",
]
