# SPDX-License-Identifier: Apache-2.0
"""SQD's matcher and criterion, alone and in its training step, against their references.

All decoder layers are matched and supervised, on AVSS' shapes: 5 frames of 224 x 224, 70 classes.
"""

import common
import pytest
import torch
from common import Case, finished, grid, has_grad, measure, measure_in_turn, timed
from torch.utils import _pytree as pytree

from avskernels import backend
from avsmodel.criterion import SQDCriterion
from avsmodel.data import Batch
from avsmodel.sqd import SQD, SQDConfig, SQDOutput

OPERATOR = "criterion"
CLASSES, TOKENS, FRAMES, SIZE, LAYERS = 70, 5, 5, 224, 3
CRITERION = SQDCriterion()
TURNS = 20


def clips(count, generator):
    """Clips in which three classes sound, each a square in all frames but the last."""
    masks = torch.zeros(count, FRAMES, SIZE, SIZE, dtype=torch.int64)
    for clip in masks:
        for label in torch.randperm(CLASSES, generator=generator)[:3] + 1:
            y, x = torch.randint(0, SIZE // 2, (2,), generator=generator)
            clip[:-1, y : y + SIZE // 3, x : x + SIZE // 3] = label
    every = torch.ones(count, FRAMES, dtype=torch.bool)
    frames = torch.randn(count, FRAMES, 3, SIZE, SIZE, generator=generator)
    log_mel = torch.randn(count, FRAMES, 1, 96, 64, generator=generator)
    return Batch([str(i) for i in range(count)], frames, log_mel, masks, every, every)


def loss_case(count, **keywords):
    """Predictions of all layers, as leaves, for the criterion."""

    def arguments(dtype):
        generator = torch.Generator().manual_seed(0)
        shape, side = (count, TOKENS, FRAMES), SIZE // 4
        layers = [
            (
                torch.randn(*shape, CLASSES, generator=generator).to(dtype),
                torch.rand(*shape, 4, generator=generator).to(dtype),
                3 * torch.randn(*shape, side, side, generator=generator).to(dtype),
            )
            for _ in range(LAYERS)
        ]
        return layers, clips(count, generator)

    pixels = LAYERS * count * TOKENS * FRAMES * (SIZE // 4) ** 2
    return Case(
        f"matcher and criterion, {LAYERS} layers B {count} N 5 J 3 T 5 56x56",
        arguments,
        bytes=4 * pixels,
        flops=120 * pixels,
        modes=("forward+backward",),
        **keywords,
    )


CASES = [loss_case(4, dtypes=("float32", "bfloat16"))]


def loss(choice):
    """Return the function of a case's arguments whose matcher and criterion run as ``choice``."""

    def run(layers, batch):
        *auxiliary, last = layers
        zero = last[0].new_zeros(())
        output = SQDOutput(*last, zero, None, None, (SIZE, SIZE), auxiliary=auxiliary)
        with backend(choice):
            return CRITERION(output, batch)[0]

    return run


VARIANTS = {"eager": loss("reference"), "avskernels": loss("kernel")}


@grid(CASES, VARIANTS)
def test_criterion(benchmark, case, mode, dtype, variant):
    measure(benchmark, VARIANTS[variant], case, mode, dtype)


@pytest.mark.parametrize("variant", ["avskernels"])
def test_training_step(benchmark, variant):
    """Time the whole step, and the matcher and criterion in it, forward and backward."""
    torch.manual_seed(0)
    network = SQD(SQDConfig(), CLASSES + 1).train().to(common.device)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4, weight_decay=5e-4)
    batch = clips(1, torch.Generator().manual_seed(0)).to(common.device)

    def supervise(output, choice):
        predictions = [leaf for leaf in pytree.tree_leaves(vars(output)) if has_grad(leaf)]
        with backend(choice):
            loss = CRITERION(output, batch)[0]
        return predictions, torch.autograd.grad(loss, predictions)

    def step(choice):
        output = finished(lambda: network(batch.frames, batch.log_mel, batch.real))()
        seconds, (predictions, grads) = timed(finished(lambda: supervise(output, choice)))
        torch.autograd.backward(predictions, grads)
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return seconds

    measure_in_turn(
        benchmark,
        {variant: lambda: step("kernel"), "eager": lambda: step("reference")},
        case="training step of SQD-R50, B 1 T 5 224x224",
        part="matcher and criterion in it",
        rounds=TURNS,
    )
