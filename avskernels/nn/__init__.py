"""Modules around the operators."""

from avskernels.nn.deformable_attention import DeformableAttention
from avskernels.nn.vector_quantize import ProductQuantizer, VectorQuantizer

__all__ = [
    "DeformableAttention",
    "ProductQuantizer",
    "VectorQuantizer",
]
