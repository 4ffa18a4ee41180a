# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

from types import SimpleNamespace

import pytest
import torch
from checks import in_double, launch
from ops.channel_attention_mixer.cases import FORMULAS, IDS, sample

from avskernels.ops.channel_attention_mixer.operator import BACKWARD, OPERATOR, PLAIN, TRITON
from avskernels.testing import assert_as_precise, assert_close

kernels = pytest.importorskip("avskernels.ops.channel_attention_mixer.triton")
# The interpreter computes with NumPy, which announces what the kernel masks.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning"),
]


def test_dots():
    generator = torch.Generator().manual_seed(0)
    grad, features = torch.randn(2, 1, 2, 33, 41, generator=generator)  # more than a step's pixels
    sums = launch(kernels.dots, grad, features)
    assert_close(sums, (grad.double() * features.double()).sum((2, 3)))


@pytest.mark.parametrize("formula", FORMULAS, ids=IDS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_backward(formula, masked):
    tensors, mask = sample((2, 3, 18, 7, 43), masked=masked)
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    _, *saved = PLAIN.forward(*in_double(tensors), mask, 3, *formula.values())
    saved = [t.float() for t in saved]
    args = (grad, *tensors, mask, *saved, 3, *formula.values())
    plain = PLAIN.passes_backward(BACKWARD.name)
    actual = launch(TRITON.passes_backward(BACKWARD.name), *args)
    for results in zip(actual, plain(*args), plain(*in_double(args)), strict=True):
        assert_as_precise(*results)


def test_plain_backward_computes_what_the_kernel_does():
    tensors, mask = sample((2, 3, 18, 7, 43), torch.float64, masked=True)
    grad = torch.randn(tensors[0].shape, dtype=torch.float64)
    for formula in FORMULAS:
        _, *saved = OPERATOR.overload(*tensors, mask, 3, *formula.values())
        args = (grad, *tensors, mask, *saved, 3, *formula.values())
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():  # as compiled code calls it
            results = BACKWARD.implementations[-1].run(*args)
        for plain, kernel in zip(results, BACKWARD(*args), strict=True):
            assert_close(plain, kernel)


def test_refusals():
    def refuses(operator, **changed):
        given = {"k_bias": None, "softmax": True, "query": torch.zeros(2, 8)}
        given |= {"features": torch.zeros(2, 8, 3, 4), "pooled": torch.zeros(2, 4, 8)}
        return operator.implementations[1].refuses(SimpleNamespace(**given | changed))

    assert refuses(OPERATOR) is refuses(BACKWARD) is None
    assert refuses(OPERATOR, k_bias=torch.zeros(8), softmax=False) == "k_bias without softmax"
    assert refuses(OPERATOR, k_bias=torch.zeros(8)) is None
    double = torch.zeros(2, 8, 3, 4, dtype=torch.float64)
    assert refuses(OPERATOR, features=double) == refuses(BACKWARD, features=double) == "float64"
    assert refuses(BACKWARD, pooled=torch.zeros(2, 17, 34)) == "more than 16 queries"
