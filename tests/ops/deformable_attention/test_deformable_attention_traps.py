# SPDX-License-Identifier: Apache-2.0
"""What deformable_attention could get wrong: borders, far and broken locations, size."""

import numpy as np
import pytest
import torch
from checks import run_with_grads
from ops.deformable_attention.cases import (
    BORDERS,
    FAR,
    FUNCTIONS,
    assert_all_close,
    on_one_map,
)

import avskernels


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_borders_are_those_of_grid_sample(function):
    points = [(x, y) for x in BORDERS for y in BORDERS]
    args = on_one_map(torch.arange(1.0, 65.0).square(), *points)
    actual = run_with_grads(function, args)
    expected = run_with_grads(avskernels.reference.deformable_attention, args)
    assert_all_close(actual, expected, torch.float32)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_samples_far_outside_add_nothing(function, isa):
    points = [(x, 0.5) for x in FAR] + [(0.5, y) for y in FAR]
    (output,), grads = run_with_grads(function, on_one_map(torch.ones(64), *points))
    assert not output.any()
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_nan_location_poisons_its_query_alone(function, isa):
    nan = float("nan")
    args = on_one_map(torch.ones(64), (0.5, 0.5), (nan, 0.5), (0.5, nan), (nan, nan), (0.25, 0.5))
    (output,), (_, grad_locations, grad_weights) = run_with_grads(function, args)
    poisoned = torch.tensor([False, True, True, True, False])
    assert torch.equal(output.flatten().isnan(), poisoned)
    assert torch.equal(grad_locations.flatten(1, 4).isnan().any(-1).flatten(), poisoned)
    assert torch.equal(grad_weights.flatten().isnan(), poisoned)


def test_nan_location_passes_no_gradient_to_the_value(isa):
    nan = float("nan")
    _, (grad_value, *_) = run_with_grads(
        avskernels.deformable_attention, on_one_map(torch.ones(64), (nan, 0.5), (0.5, nan))
    )
    assert not grad_value.any()


def test_nan_value_poisons_no_sample_that_is_off_in_one_direction(isa):
    values = torch.ones(64)
    values[[0, 63]] = float("nan")
    points = [(-0.5, 1 / 16), (1 / 16, -0.5), (1.5, 15 / 16), (15 / 16, 1.5)]
    args = on_one_map(values, *points)
    (output,), (_, *grads) = run_with_grads(avskernels.deformable_attention, args)
    assert not output.any()
    assert not any(grad.any() for grad in grads)


def test_nan_value_poisons_what_samples_it_alone(isa):
    values = torch.ones(64)
    values[[0, 63]] = float("nan")
    points = [(x, x) for x in (-0.5, 0.0, 1 / 8, 0.5, 7 / 8, 1.0, 1.5)]
    output = avskernels.deformable_attention(*on_one_map(values, *points))
    assert output.flatten().isnan().tolist() == [False, True, True, False, True, True, False]


@pytest.mark.large
def test_more_than_two_to_the_31_elements():
    # NumPy's zeros cost address space alone; only what is sampled is ever touched.
    value = torch.from_numpy(np.zeros((1, 2**20, 1, 2100), dtype=np.float16))
    value[0, -1] = torch.arange(2100)
    locations = torch.full((1, 1, 1, 1, 1, 2), 1 - 2.0**-11)  # the centre of the last pixel
    output = avskernels.deformable_attention(
        value, [(1024, 1024)], locations, torch.ones(1, 1, 1, 1, 1)
    )
    assert torch.equal(output[0, 0], value[0, -1, 0])
