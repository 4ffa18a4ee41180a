# SPDX-License-Identifier: Apache-2.0
"""SQD's loss: clip-wise matching of tokens and targets, then Eqs. 8 to 10 of the paper."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from avskernels import MatchingWeights, focal_dice_loss, linear_assignment, matching_cost
from avsmodel.sqd.output import SQDOutput
from avsmodel.targets import Targets, clip_targets

if TYPE_CHECKING:
    from avsmodel.data import Batch

WEIGHTS = {
    "paper": MatchingWeights(cls=2.0, l1=5.0, giou=2.0, mask=5.0, dice=2.0),
    "referformer": MatchingWeights(cls=2.0, l1=5.0, giou=2.0, mask=2.0, dice=5.0),
}

TERMS = ("class", "l1", "giou", "mask", "dice", "quantization")


@dataclass
class LossConfig:
    """The weights of the loss, which are those of the matching too.

    Attributes:
        weights: the set to start from: ``"paper"`` (the supplement's) or ``"referformer"`` (with
            the weights of the two mask terms exchanged).
        class_weight, l1_weight, giou_weight, mask_weight, dice_weight: replace a weight of the set.
        quantization_weight: of Eq. 9.
        mask_loss: ``"focal"`` (the supplement) or ``"bce"`` (the main text), beside dice.
        focal_alpha, focal_gamma: of the class term and of the focal mask term.
        auxiliary: whether the earlier decoder layers are matched and supervised too.
    """

    weights: Literal["paper", "referformer"] = "paper"
    class_weight: float | None = None
    l1_weight: float | None = None
    giou_weight: float | None = None
    mask_weight: float | None = None
    dice_weight: float | None = None
    quantization_weight: float = 1.0
    mask_loss: Literal["focal", "bce"] = "focal"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    auxiliary: bool = True

    def matching_weights(self) -> MatchingWeights:
        """Return the weights of the set, with the replacements."""
        base = WEIGHTS[self.weights]
        given = {
            "cls": self.class_weight,
            "l1": self.l1_weight,
            "giou": self.giou_weight,
            "mask": self.mask_weight,
            "dice": self.dice_weight,
        }
        return base._replace(**{name: value for name, value in given.items() if value is not None})


class SQDCriterion(nn.Module):
    """Match tokens with targets over whole clips and sum the weighted losses of all layers.

    Only labelled frames take part. A token without a target is trained towards low class
    probabilities, and so is a matched token in frames where its target is absent; its mask is then
    trained to be empty, and its box is not supervised. The class term is divided by the number of
    (target, frame) pairs or of labelled frames, whichever is larger, the box terms by the number of
    these pairs, the mask terms by the number of targets. Under torch.distributed each number is its
    mean over the processes.
    """

    def __init__(self, config: LossConfig | None = None):
        super().__init__()
        self.config = config or LossConfig()
        self.weights = self.config.matching_weights()

    def forward(self, output: SQDOutput, batch: "Batch") -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of ``output`` for a :class:`Batch` (its ``masks`` and ``labelled``).

        Returns:
            The total, and the weighted terms that add up to it: ``"class"``, ``"l1"``, ``"giou"``,
            ``"mask"``, ``"dice"`` (each summed over the decoder layers) and ``"quantization"``.
        """
        layers = [(output.class_logits, output.boxes, output.mask_logits)]
        if self.config.auxiliary:
            layers += output.auxiliary
        # The layers share the targets, so they are stacked along the batch.
        class_logits, boxes, mask_logits = (torch.cat(parts) for parts in zip(*layers, strict=True))
        targets = clip_targets(batch.masks, batch.labelled)
        columns = self.match(class_logits, boxes, mask_logits, targets, batch.labelled)
        sums = self._sums(class_logits, boxes, mask_logits, targets, batch.labelled, columns)

        sizes = torch.stack((targets.present.sum(), batch.labelled.sum(), targets.counts.sum()))
        pairs, frames, count = _mean_over_processes(sizes.to(sums)).clamp(min=1)
        divisors = torch.stack((torch.maximum(pairs, frames), pairs, pairs, count, count))
        terms = sums / divisors * sums.new_tensor(self.weights)
        quantization = self.config.quantization_weight * output.quantization_loss
        terms = torch.cat((terms, quantization[None]))
        return terms.sum(), dict(zip(TERMS, terms.tolist(), strict=True))

    @torch.no_grad()
    def match(
        self,
        class_logits: Tensor,
        boxes: Tensor,
        mask_logits: Tensor,
        targets: Targets,
        labelled: Tensor,
    ) -> Tensor:
        """Return the target of each token, int64 ``[L * B, N]``, -1 = none (Eq. 10)."""
        cost = matching_cost(
            class_logits,
            boxes,
            mask_logits,
            targets.labels,
            targets.boxes,
            targets.masks,
            num_targets=targets.counts,
            valid=targets.present,
            labelled=labelled,
            weights=self.weights,
            mask_cost=self.config.mask_loss,
            alpha=self.config.focal_alpha,
            gamma=self.config.focal_gamma,
        )
        return linear_assignment(cost)

    def _sums(
        self,
        class_logits: Tensor,
        boxes: Tensor,
        mask_logits: Tensor,
        targets: Targets,
        labelled: Tensor,
        columns: Tensor,
    ) -> Tensor:
        """Sum the five terms, unweighted, over the ``[L * B, N, T]`` predictions."""
        row, token = (columns >= 0).nonzero(as_tuple=True)
        clip, target = row % len(labelled), columns[row, token]
        present = targets.present[clip, target]  # [M, T]

        wanted = torch.zeros_like(class_logits)
        one_hot = F.one_hot(targets.labels[clip, target], class_logits.shape[-1])
        wanted[row, token] = (one_hot[:, None] * present[..., None]).to(wanted)
        classes = sigmoid_focal_loss(
            class_logits, wanted, self.config.focal_alpha, self.config.focal_gamma
        )
        classes = classes.unflatten(0, (-1, len(labelled))) * labelled[:, None, :, None]

        predicted, true = boxes[row, token][present], targets.boxes[clip, target][present]
        l1 = F.l1_loss(predicted, true, reduction="sum")
        giou = generalized_box_iou_loss(
            box_convert(predicted, "cxcywh", "xyxy"), box_convert(true, "cxcywh", "xyxy"), "sum"
        )
        mask, dice = focal_dice_loss(
            mask_logits,
            targets.masks,
            columns,
            labelled=labelled,
            mask_loss=self.config.mask_loss,
            alpha=self.config.focal_alpha,
            gamma=self.config.focal_gamma,
        )
        return torch.stack((classes.sum(), l1, giou, mask.sum(), dice.sum()))


def _mean_over_processes(values: Tensor) -> Tensor:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
        values = values / distributed.get_world_size()
    return values
