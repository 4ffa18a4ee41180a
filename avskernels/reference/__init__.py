"""The definition of every operator: what the published code does, in plain torch, on any device.

Each function takes the arguments of the public function of its name and is differentiable by
torch's own autograd. It is the baseline and the oracle, as slow as the published code is.
"""

from avskernels.reference.attention_pool import attention_pool
from avskernels.reference.channel_attention_mixer import channel_attention_mixer
from avskernels.reference.deformable_attention import deformable_attention
from avskernels.reference.dynamic_mask_conv import dynamic_mask_conv
from avskernels.reference.focal_dice_loss import focal_dice_loss
from avskernels.reference.linear_assignment import linear_assignment
from avskernels.reference.matching_cost import matching_cost
from avskernels.reference.semantic_argmax import semantic_argmax
from avskernels.reference.semantic_recombination import semantic_recombination
from avskernels.reference.tpavi import tpavi
from avskernels.reference.vector_quantize import nearest_codeword, vector_quantize

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
