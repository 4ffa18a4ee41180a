# SPDX-License-Identifier: Apache-2.0
"""Measures of audiovisual segmentation, each by a named protocol."""

from avsmodel.metrics.binary import BinaryEvaluator
from avsmodel.metrics.semantic import SemanticEvaluator
from avsmodel.metrics.silence import FalsePositiveRate

__all__ = ["BinaryEvaluator", "FalsePositiveRate", "SemanticEvaluator"]
