# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from checks import in_double, launch
from ops.attention_pool.cases import oracle, sample

from avskernels.ops.attention_pool import plain
from avskernels.ops.attention_pool.operator import triton_refuses, triton_refuses_backward
from avskernels.testing import assert_close

kernels = pytest.importorskip("avskernels.ops.attention_pool.triton")
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
    pooled, normalizer = launch(kernels.forward, features, queries, mask, 0.3, softmax)
    assert_close(pooled, oracle(features, queries, 0.3, softmax, mask))
    expected = plain.forward(features.double(), queries.double(), mask, 0.3, softmax)[1]
    assert_close(normalizer, expected)


def test_half_precision():
    features, queries, _ = sample((2, 3, 19, (7, 11)))
    features = features.bfloat16()
    pooled, _ = launch(kernels.forward, features, queries, None, 0.3, True)
    assert_close(pooled, oracle(features, queries, 0.3, True))


@pytest.mark.parametrize("case", [(1, 1, 1, (1,)), (2, 16, 19, (3, 43)), (1, 8, 33, (2, 300))])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_backward(case, softmax, masked):
    tensors = masked_sample(case, masked)
    grad = torch.randn(tensors[1].shape, generator=torch.Generator().manual_seed(1))
    exact = in_double((grad, *tensors))
    forward = plain.forward(*exact[1:], 0.3, softmax)
    saved = [result.float() for result in forward]
    args = (grad, *tensors, *saved, 0.3, softmax)
    expected = plain.backward(*exact, *forward, 0.3, softmax)
    for one, other in zip(launch(kernels.backward, *args), expected, strict=True):
        assert_close(one, other)


def test_refusals():
    features, queries, _ = sample((2, 17, 5, (3, 4)))
    assert triton_refuses(features, queries) is None
    assert triton_refuses(features.double(), queries.double()) == "float64"
    assert triton_refuses(features, queries[:, :0]) == "nothing to pool"
    wide = torch.zeros(2, 513, 3), torch.zeros(2, 1, 513)
    assert triton_refuses(*wide) == triton_refuses_backward(*wide) == "more than 512 channels"
    assert triton_refuses_backward(features, queries) == "more than 16 queries"
    assert triton_refuses_backward(features, queries[:, :16]) is None
    assert triton_refuses_backward(features[..., :0], queries[:, :16]) == "nothing to pool"
