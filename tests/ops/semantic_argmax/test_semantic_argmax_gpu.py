# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from checks import launch
from ops.semantic_argmax.cases import assert_labels, half_finite, oracle_volume, sample

from avskernels.ops.semantic_argmax.operator import triton_refuses
from avskernels.testing import assert_close

kernels = pytest.importorskip("avskernels.ops.semantic_argmax.triton")
# The interpreter computes with NumPy, which announces infinities and NaN.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

# (images, queries, classes, height, width, size)
CASES = {
    "minimal": (1, 1, 1, 1, 1, None),
    "block + 1": (1, 3, 17, 5, 13, None),
    "odd primes": (2, 37, 67, 5, 7, None),
    "enlarged": (2, 5, 9, 3, 4, (9, 13)),
    "shrunk": (1, 4, 9, 20, 21, (7, 9)),
    "two blocks of classes": (1, 3, 260, 3, 5, None),
}


def run(probs, logits, size=None, thresholds=(0.0, 0.0), sigmoid=True, scores=False):
    size = size or logits.shape[2:]
    return launch(kernels.forward, probs, logits, *size, *thresholds, sigmoid, scores)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_labels_are_exact(case):
    probs, logits, size = sample(*case)
    for thresholds, scored in (((0.0, 0.0), False), ((0.03, 0.5), True)):
        labels, scores = run(probs, logits, size, thresholds, scores=scored)
        volume = oracle_volume(probs, logits, size, *thresholds)
        assert_labels(labels, volume)
        if scored:
            assert_close(scores, volume.amax(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(dtype):
    probs, logits, size = sample(1, 5, 9, 3, 4, (5, 7), dtype=dtype)
    labels, scores = run(probs, logits, size, scores=True)
    volume = oracle_volume(probs, logits, size)
    assert_labels(labels, volume)
    assert_close(scores, volume.amax(1))


def test_near_ties_are_decided_in_float64():
    generator = torch.Generator().manual_seed(0)
    probs = 0.5 + torch.randint(0, 8, (1, 40, 20), generator=generator) * 2.0**-22
    logits = torch.randn(1, 40, 3, 7, generator=generator)
    labels, _ = run(probs, logits)
    assert torch.equal(labels, oracle_volume(probs, logits, None).argmax(1))


def test_values_of_any_sign():
    probs, logits, _ = sample(1, 9, 30, 3, 7)
    probs = probs - 0.1
    for sigmoid in (True, False):
        labels, _ = run(probs, logits, thresholds=(-1.0, -9.0), sigmoid=sigmoid)
        assert_labels(labels, oracle_volume(probs, logits, None, -1.0, -9.0, sigmoid))


def test_values_that_are_not_finite():
    probs, logits, _ = sample(1, 9, 30, 3, 7)
    logits[0, 3, 1] = torch.nan
    logits[0, 4, 2] = -torch.inf
    clean = logits.nan_to_num(nan=-torch.inf)
    assert_labels(run(probs, logits)[0], oracle_volume(probs, clean, None))
    probs[0, 2, 7] = torch.inf
    assert (run(probs, logits)[0] == 7).all()


@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_pixel_without_a_share_does_not_count(value):
    probs, logits, expected = half_finite(value, (2, 4))
    assert torch.equal(run(probs, logits, (2, 4))[0][0], expected)
    assert torch.equal(run(probs, logits.mT, (4, 2))[0][0], expected.mT)


def test_nothing_left_is_class_0():
    probs, logits, _ = sample(1, 4, 9, 3, 7)
    labels, scores = run(probs, logits - 60, thresholds=(0.0, 0.5), scores=True)
    assert not labels.any() and not scores.any()


def test_refusals():
    logits = torch.zeros(2, 3, 4, 5)
    assert triton_refuses(logits, 4, 5) is None
    assert triton_refuses(logits[:, :0], 4, 5) == "no queries"
    assert triton_refuses(logits[:0], 4, 5) == triton_refuses(logits, 0, 5) == "no pixels"
