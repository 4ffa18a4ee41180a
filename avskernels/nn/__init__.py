"""Modules around the operators."""

from avskernels.nn.vector_quantize import ProductQuantizer, VectorQuantizer

__all__ = ["ProductQuantizer", "VectorQuantizer"]
