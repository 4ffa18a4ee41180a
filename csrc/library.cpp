// SPDX-License-Identifier: Apache-2.0
// The table of operators. Each schema stands in csrc/<op>/<op>.h above the C++ function it
// describes; an operator without a folder here has no compiled kernel yet and runs in plain torch.
#include <torch/csrc/stable/library.h>

#include "attention_pool/attention_pool.h"
#include "channel_attention_mixer/channel_attention_mixer.h"
#include "deformable_attention/deformable_attention.h"
#include "dynamic_mask_conv/dynamic_mask_conv.h"
#include "focal_dice_loss/focal_dice_loss.h"
#include "linear_assignment/linear_assignment.h"
#include "matching_cost/matching_cost.h"
#include "semantic_argmax/semantic_argmax.h"
#include "semantic_recombination/semantic_recombination.h"
#include "tpavi/tpavi.h"
#include "vector_quantize/vector_quantize.h"

STABLE_TORCH_LIBRARY(avskernels, m) {
  m.def(avskernels::kAttentionPoolSchema);
  m.def(avskernels::kAttentionPoolBackwardSchema);
  m.def(avskernels::kChannelAttentionMixerSchema);
  m.def(avskernels::kChannelAttentionMixerBackwardSchema);
  m.def(avskernels::kDeformableAttentionSchema);
  m.def(avskernels::kDeformableAttentionBackwardSchema);
  m.def(avskernels::kDeformableAttentionCudaSchema);
  m.def(avskernels::kDeformableAttentionBackwardCudaSchema);
  m.def(avskernels::kFocalDiceLossSchema);
  m.def(avskernels::kFocalDiceLossBackwardSchema);
  m.def(avskernels::kDynamicMaskConvSchema);
  m.def(avskernels::kDynamicMaskConvBackwardSchema);
  m.def(avskernels::kDynamicMaskConvCudaSchema);
  m.def(avskernels::kDynamicMaskConvBackwardCudaSchema);
  m.def(avskernels::kLinearAssignmentSchema);
  m.def(avskernels::kLinearAssignmentCudaSchema);
  m.def(avskernels::kMatchingCostSchema);
  m.def(avskernels::kNearestCodewordSchema);
  m.def(avskernels::kSemanticArgmaxSchema);
  m.def(avskernels::kSemanticRecombinationProductSchema);
  m.def(avskernels::kTpaviFuseSchema);
  m.def(avskernels::kTpaviFuseBackwardSchema);
  m.def(avskernels::kTpaviScoresSchema);
  m.def(avskernels::kTpaviScoresBackwardSchema);
  m.def(avskernels::kVectorQuantizeSchema);
  m.def(avskernels::kVectorQuantizeBackwardSchema);
  m.def(avskernels::kVectorQuantizeBackwardCudaSchema);
}
