"""The mixers' Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from test_attention_pool import oracle
from test_attention_pool import sample as pool_sample

from avskernels._tpavi_algebra import fuse, scores_and_sums
from avskernels.testing import assert_close

pool = pytest.importorskip("avskernels.triton.attention_pool")
tpavi = pytest.importorskip("avskernels.triton.tpavi")
# The interpreter computes with NumPy, which announces what the kernel masks.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def launch(function, *args):
    moved = [arg.to(DEVICE) if isinstance(arg, torch.Tensor) else arg for arg in args]
    return [result.cpu() for result in function(*moved)]


@pytest.mark.parametrize("case", [(1, 1, 1, (1,)), (2, 17, 19, (3, 43)), (1, 8, 33, (2, 300))])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_attention_pool(case, softmax, masked):
    features, queries, mask = pool_sample(case, masked=masked)
    if masked:
        mask[-1] = False
    pooled, normalizer = launch(pool.attention_pool, features, queries, mask, 0.3, softmax)
    assert_close(pooled, oracle(features, queries, 0.3, softmax, mask), scale=10.0)
    expected = pool._algebra(features.double(), queries.double(), mask, 0.3, softmax)[1]
    assert_close(normalizer, expected, scale=10.0)


def test_attention_pool_half_precision():
    features, queries, _ = pool_sample((2, 3, 19, (7, 11)))
    features = features.bfloat16()
    pooled, _ = launch(pool.attention_pool, features, queries, None, 0.3, True)
    assert_close(pooled, oracle(features, queries, 0.3, True))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalised", [True, False])
def test_tpavi_fuse(dtype, normalised):
    visual, values, _, weights, shift, norm_weight, norm_bias = tpavi_sample()
    visual = visual.to(dtype)
    norm = (norm_weight, norm_bias) if normalised else (None, None)
    actual = launch(tpavi._tpavi_fuse, visual, weights, values, shift, *norm, 1e-3)
    double = [None if t is None else t.double() for t in (visual, weights, values, shift, *norm)]
    for one, other in zip(actual, fuse(*double, 1e-3), strict=True):
        assert_close(one, other, scale=10.0)
