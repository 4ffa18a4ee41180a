"""The mixers' Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from checks import DEVICE, on_device
from test_attention_pool import oracle
from test_attention_pool import sample as pool_sample
from test_channel_attention_mixer import FORMULAS, IDS
from test_channel_attention_mixer import sample as mixer_sample

from avskernels._tpavi_passes import (
    fuse,
    fuse_backward,
    scores_and_sums,
    scores_and_sums_backward_,
)
from avskernels.channel_attention_mixer import _algebra as mixer_algebra
from avskernels.channel_attention_mixer import _backward_algebra as mixer_backward
from avskernels.testing import assert_as_precise, assert_close

pool = pytest.importorskip("avskernels.triton.attention_pool")
mixer = pytest.importorskip("avskernels.triton.channel_attention_mixer")
tpavi = pytest.importorskip("avskernels.triton.tpavi")
tpavi_backward = pytest.importorskip("avskernels.triton.tpavi_backward")
# The interpreter computes with NumPy, which announces what the kernel masks.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning"),
]


def launch(function, *args):
    return [result.cpu() for result in function(*on_device(args))]


@pytest.mark.parametrize("case", [(1, 1, 1, (1,)), (2, 17, 19, (3, 43)), (1, 8, 33, (2, 300))])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_attention_pool(case, softmax, masked):
    features, queries, mask = pool_sample(case, masked=masked)
    if masked:
        mask[-1] = False
    pooled, normalizer = launch(pool.attention_pool, features, queries, mask, 0.3, softmax)
    assert_close(pooled, oracle(features, queries, 0.3, softmax, mask))
    expected = pool._algebra(features.double(), queries.double(), mask, 0.3, softmax)[1]
    assert_close(normalizer, expected)


def test_attention_pool_half_precision():
    features, queries, _ = pool_sample((2, 3, 19, (7, 11)))
    features = features.bfloat16()
    pooled, _ = launch(pool.attention_pool, features, queries, None, 0.3, True)
    assert_close(pooled, oracle(features, queries, 0.3, True))


def double(tensors):
    return [t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors]


POOL_CASES = [(1, 1, 1, (1,)), (2, 16, 19, (3, 43)), (1, 8, 33, (2, 300))]


@pytest.mark.parametrize("case", POOL_CASES)
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_attention_pool_backward(case, softmax, masked):
    features, queries, mask = pool_sample(case, masked=masked)
    if masked:
        mask[-1] = False
    grad = torch.randn(queries.shape, generator=torch.Generator().manual_seed(1))
    forward = pool._algebra(features.double(), queries.double(), mask, 0.3, softmax)
    args = (grad, features, queries, mask, *(t.float() for t in forward), 0.3, softmax)
    expected = pool._backward_algebra(*double((grad, features, queries, mask)), *forward, *args[6:])
    for one, other in zip(launch(pool._attention_pool_backward, *args), expected, strict=True):
        assert_close(one, other)


def test_mixer_dots():
    generator = torch.Generator().manual_seed(0)
    grad, features = torch.randn(2, 1, 2, 33, 41, generator=generator)  # more than a step's pixels
    (sums,) = launch(lambda *args: [mixer._launch_dots(*args)], grad, features)
    assert_close(sums, (grad.double() * features.double()).sum((2, 3)))


@pytest.mark.parametrize("formula", FORMULAS, ids=IDS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_mixer_backward(formula, masked):
    tensors, mask = mixer_sample((2, 3, 18, 7, 43), masked=masked)
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    exact = double(tensors)
    _, *saved = mixer_algebra(*exact, mask, 3, *formula.values())
    saved = [t.float() for t in saved]  # what 1 - gate loses in float32 is not the kernel's doing
    small = [0, 1, 2, 3, 4, 6, 7]  # all but out_bias
    args = (grad, *(tensors[i] for i in small), mask, *saved)
    actual = launch(mixer._channel_attention_mixer_backward, *args, 3, *formula.values())
    plain = mixer_backward(*args, 3, *formula.values())
    expected = mixer_backward(*double(args), 3, *formula.values())
    for results in zip(actual, plain, expected, strict=True):
        assert_as_precise(*results)


def tpavi_sample(batch=2, channels=19, frames=3, height=5, width=7):
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (batch, channels, frames, height, width),
        (batch, frames, channels),
        (batch, frames),
        (batch, frames, frames * height * width),
        (channels,),
        (channels,),
        (channels,),
    )
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("with_offsets", [True, False])
def test_tpavi_scores(with_offsets):
    visual, keys, offsets, *_ = tpavi_sample()
    offsets = offsets if with_offsets else None
    actual = launch(tpavi._tpavi_scores, visual, keys, offsets)
    double = [None if t is None else t.double() for t in (visual, keys, offsets)]
    for one, other in zip(actual, scores_and_sums(*double), strict=True):
        assert_close(one, other)


def test_tpavi_scores_backward():
    visual, keys, _, grad_scores, *_ = tpavi_sample(height=9, width=31)
    grad_visual, grad_sums = torch.randn_like(visual), torch.randn_like(keys)
    exact = double((grad_visual, visual, keys, grad_scores, grad_sums))
    expected = scores_and_sums_backward_(*exact)
    grad_visual = grad_visual.to(DEVICE)
    (grad_keys,) = launch(
        lambda *args: [tpavi_backward._tpavi_scores_backward(grad_visual, *args)],
        *(visual, keys, grad_scores, grad_sums),
    )
    assert_close(grad_visual.cpu(), exact[0])
    assert_close(grad_keys, expected)


@pytest.mark.parametrize("normalised", [True, False])
def test_tpavi_fuse_backward(normalised):
    visual, values, _, weights, shift, norm_weight, norm_bias = tpavi_sample(height=9, width=31)
    norm = (norm_weight, norm_bias) if normalised else (None, None)
    exact = double((visual, weights, values, shift, *norm))
    _, mean, rstd = fuse(*exact, 1e-3)
    grad = torch.randn(visual.shape, generator=torch.Generator().manual_seed(1))
    args = (visual, weights, values, shift, norm[0], mean.float(), rstd.float())
    actual = launch(tpavi_backward._tpavi_fuse_backward, grad, *args)
    expected = fuse_backward(grad.double(), *exact[:5], mean, rstd)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalised", [True, False])
def test_tpavi_fuse(dtype, normalised):
    visual, values, _, weights, shift, norm_weight, norm_bias = tpavi_sample()
    visual = visual.to(dtype)
    norm = (norm_weight, norm_bias) if normalised else (None, None)
    actual = launch(tpavi._tpavi_fuse, visual, weights, values, shift, *norm, 1e-3)
    double = [None if t is None else t.double() for t in (visual, weights, values, shift, *norm)]
    for one, other in zip(actual, fuse(*double, 1e-3), strict=True):
        assert_close(one, other)
