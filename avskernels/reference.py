# SPDX-License-Identifier: Apache-2.0
"""The definition of every operator: what the published code does, in plain torch, on any device.

Each function takes the arguments of the public function of its name, returns what that returns, and
is differentiable by torch's own autograd. It is the baseline and the oracle, as slow as the
published code is. Each stands in ``avskernels/ops/<op>/reference.py`` and imports nothing of ours.
"""

from avskernels.ops.attention_pool.reference import attention_pool
from avskernels.ops.channel_attention_mixer.reference import channel_attention_mixer
from avskernels.ops.deformable_attention.reference import deformable_attention
from avskernels.ops.dynamic_mask_conv.reference import dynamic_mask_conv
from avskernels.ops.focal_dice_loss.reference import focal_dice_loss
from avskernels.ops.linear_assignment.reference import linear_assignment
from avskernels.ops.matching_cost.reference import matching_cost
from avskernels.ops.semantic_argmax.reference import semantic_argmax
from avskernels.ops.semantic_recombination.reference import semantic_recombination
from avskernels.ops.tpavi.reference import tpavi
from avskernels.ops.vector_quantize.reference import nearest_codeword, vector_quantize

__all__ = [
    "attention_pool",
    "channel_attention_mixer",
    "deformable_attention",
    "dynamic_mask_conv",
    "focal_dice_loss",
    "linear_assignment",
    "matching_cost",
    "nearest_codeword",
    "semantic_argmax",
    "semantic_recombination",
    "tpavi",
    "vector_quantize",
]
