"""Fused CPU and GPU operators for audiovisual segmentation."""

from avskernels._backend import backend
from avskernels._library import build_info
from avskernels.deformable_attention import deformable_attention
from avskernels.semantic_recombination import semantic_recombination
from avskernels.vector_quantize import VectorQuantized, nearest_codeword, vector_quantize

__all__ = [
    "VectorQuantized",
    "backend",
    "build_info",
    "deformable_attention",
    "nearest_codeword",
    "semantic_recombination",
    "vector_quantize",
]
