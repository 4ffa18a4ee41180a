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


def masked_sample(case, masked):
    features, queries, mask = sample(case, masked=masked)
    if masked:
        mask[-1] = False
    return features, queries, mask


@pytest.mark.parametrize("case", [(1, 1, 1, (1,)), (2, 17, 19, (3, 43)), (1, 8, 33, (2, 300))])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_matches_oracle(case, softmax, masked):
    features, queries, mask = masked_sample(case, masked)
    pooled, normalizer = launch(kernels.attention_pool, features, queries, mask, 0.3, softmax)
    assert_close(pooled, oracle(features, queries, 0.3, softmax, mask))
    expected = kernels._algebra(features.double(), queries.double(), mask, 0.3, softmax)[1]
    assert_close(normalizer, expected)


def test_half_precision():
    features, queries, _ = sample((2, 3, 19, (7, 11)))
    features = features.bfloat16()
    pooled, _ = launch(kernels.attention_pool, features, queries, None, 0.3, True)
    assert_close(pooled, oracle(features, queries, 0.3, True))


@pytest.mark.parametrize("case", [(1, 1, 1, (1,)), (2, 16, 19, (3, 43)), (1, 8, 33, (2, 300))])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_backward(case, softmax, masked):
    tensors = masked_sample(case, masked)
    grad = torch.randn(tensors[1].shape, generator=torch.Generator().manual_seed(1))
    exact = in_double((grad, *tensors))
    forward = kernels._algebra(*exact[1:], 0.3, softmax)
    saved = [result.float() for result in forward]
    args = (grad, *tensors, *saved, 0.3, softmax)
    expected = kernels._backward_algebra(*exact, *forward, 0.3, softmax)
    for one, other in zip(launch(kernels._attention_pool_backward, *args), expected, strict=True):
        assert_close(one, other)
