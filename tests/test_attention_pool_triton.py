"""The Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from checks import in_double, launch
from test_attention_pool import oracle, sample

from avskernels.testing import assert_close

kernels = pytest.importorskip("avskernels.triton.attention_pool")
# The interpreter computes with NumPy, which announces what the kernel masks.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning"),
]


@pytest.mark.parametrize("case", [(1, 1, 1, (1,)), (2, 17, 19, (3, 43)), (1, 8, 33, (2, 300))])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_attention_pool(case, softmax, masked):
    features, queries, mask = sample(case, masked=masked)
    if masked:
        mask[-1] = False
    pooled, normalizer = launch(kernels.attention_pool, features, queries, mask, 0.3, softmax)
    assert_close(pooled, oracle(features, queries, 0.3, softmax, mask))
    expected = kernels._algebra(features.double(), queries.double(), mask, 0.3, softmax)[1]
    assert_close(normalizer, expected)


def test_attention_pool_half_precision():
    features, queries, _ = sample((2, 3, 19, (7, 11)))
    features = features.bfloat16()
    pooled, _ = launch(kernels.attention_pool, features, queries, None, 0.3, True)
    assert_close(pooled, oracle(features, queries, 0.3, True))


POOL_CASES = [(1, 1, 1, (1,)), (2, 16, 19, (3, 43)), (1, 8, 33, (2, 300))]


@pytest.mark.parametrize("case", POOL_CASES)
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_attention_pool_backward(case, softmax, masked):
    features, queries, mask = sample(case, masked=masked)
    if masked:
        mask[-1] = False
    grad = torch.randn(queries.shape, generator=torch.Generator().manual_seed(1))
    forward = kernels._algebra(features.double(), queries.double(), mask, 0.3, softmax)
    args = (grad, features, queries, mask, *(t.float() for t in forward), 0.3, softmax)
    expected = kernels._backward_algebra(
        *in_double((grad, features, queries, mask)), *forward, *args[6:]
    )
    for one, other in zip(launch(kernels._attention_pool_backward, *args), expected, strict=True):
        assert_close(one, other)
