# SPDX-License-Identifier: Apache-2.0
"""The block against its oracle and its reference, and its passes against plain torch."""

import pytest
import torch
from checks import (
    assert_all_as_precise,
    check_large_outputs,
    in_double,
    plain_and_exact,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st
from ops.tpavi.cases import CASES, DTYPES, MODES, differentiable, oracle, run, sample, small_run

from avskernels.core.operator import OPERATORS
from avskernels.testing import assert_close


def trainable(case):
    return case[0] * case[3] * case[4] * case[5] > 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("mode", MODES)
def test_matches_oracle(case, mode):
    tensors, training = sample(case, torch.float64), trainable(case)
    assert_close(run(tensors, mode=mode, training=training), oracle(tensors, mode, training))


def check_precision(tensors, **options):
    names = differentiable(tensors)
    values = [tensors[name] for name in names]
    reference = small_run(names, tensors, **options, backend="reference")
    assert_all_as_precise(
        run_with_grads(small_run(names, tensors, **options), values),
        *plain_and_exact(reference, values),
    )


@pytest.mark.parametrize("case", [case for case in CASES.values() if 0 not in case])
@pytest.mark.parametrize("mode", MODES)
def test_float32(case, mode):
    check_precision(sample(case), mode=mode, training=trainable(case))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norms", [True, False], ids=["normalised", "plain"])
def test_evaluation_mode(mode, norms):
    for dtype in DTYPES:
        tensors = sample(CASES["odd primes"], dtype, norms=norms)
        assert_close(run(tensors, mode=mode), oracle(tensors, mode, False))
    check_precision(sample(CASES["odd primes"], norms=norms), mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norms", [True, False], ids=["normalised", "plain"])
def test_without_audio(mode, norms):
    tensors = sample((2, 6, 3, 2, 3, 5), torch.float64, norms=norms) | {"audio": None}
    assert_close(run(tensors, mode=mode, training=norms), oracle(tensors, mode, norms))
    check_precision(tensors, mode=mode, training=norms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision(dtype, mode):
    check_precision(sample((2, 32, 16, 3, 5, 7), dtype), mode=mode, training=True)


@given(
    case=st.tuples(
        st.integers(1, 3),
        st.integers(2, 20),
        st.integers(1, 9),
        st.integers(1, 10),
        st.integers(1, 5),
        st.integers(2, 9),
    ),
    mode=st.sampled_from(MODES),
    norms=st.booleans(),
    training=st.booleans(),
)
def test_gradients_match_reference(case, mode, norms, training):
    tensors = sample(case, torch.float64, norms=norms)
    names = differentiable(tensors)
    options = {"mode": mode, "training": training}
    values = [tensors[name] for name in names]
    actual = run_with_grads(small_run(names, tensors, **options), values)
    expected = run_with_grads(small_run(names, tensors, **options, backend="reference"), values)
    for one, other in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("case", ["tile + 1", "several blocks"])
@pytest.mark.parametrize("norms", [True, False], ids=["normalised", "plain"])
def test_every_instruction_set(case, norms, isa):
    for dtype in (*DTYPES, torch.bfloat16, torch.float16):
        check_precision(sample(CASES[case], dtype, norms=norms), training=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norms", [True, False], ids=["normalised", "plain"])
def test_large_outputs(norms, dtype, isa):
    tensors = sample((2, 3, 2, 4, 256, 2752 // dtype.itemsize), dtype, norms=norms)
    names = ("visual", "audio")
    check_large_outputs(small_run(names, tensors), [tensors[name] for name in names])


def passes(norms):
    """Name the passes and give arguments of each."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    visual, keys, rows = randn(2, 19, 3, 5, 17), randn(2, 3, 19), randn(2, 3, 255)
    norm = (randn(19), randn(19)) if norms else (None, None)
    statistics = (randn(2, 255), randn(2, 255).abs()) if norms else (None, None)
    fused = visual, rows, keys, randn(19)
    yield "_tpavi_scores", visual, keys, randn(2, 3) if norms else None
    yield "_tpavi_scores_backward", visual.clone(), visual, keys, rows, randn(2, 3, 19)
    yield "_tpavi_fuse", *fused, *norm, 1e-3
    yield "_tpavi_fuse_backward", randn(2, 19, 3, 5, 17), *fused, norm[0], *statistics


@pytest.mark.parametrize("norms", [True, False], ids=["normalised", "plain"])
def test_passes_have_plain_twins(norms):
    for name, *args in passes(norms):
        args = in_double(args)
        twin = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
        results = OPERATORS[name](*args)
        expected = OPERATORS[name].implementations[-1].run(*twin)
        if name == "_tpavi_scores_backward":  # which adds to its first argument
            results, expected = (args[0], results), (twin[0], expected)
        for one, other in zip(results, expected, strict=True):
            assert_close(one, other)
