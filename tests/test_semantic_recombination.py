import pytest
import torch
from checks import (
    check_compile,
    check_deterministic,
    check_error,
    check_layouts,
    opcheck,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st

import avskernels
from avskernels.testing import assert_as_precise, assert_close

# (batch, frames (0 = none), tokens, channels, channels out, height, width, kernel)
CASES = {
    "minimal": (1, 0, 1, 1, 1, 1, 1, 1),
    "empty batch": (0, 0, 2, 3, 3, 4, 4, 1),
    "no frames": (2, 0, 2, 3, 3, 0, 4, 1),
    "one below a vector": (2, 0, 3, 15, 15, 3, 5, 1),
    "exact tile": (2, 2, 2, 16, 16, 4, 8, 1),
    "tile + 1": (1, 3, 2, 17, 17, 3, 11, 1),
    "other channels out": (2, 2, 3, 5, 7, 3, 3, 1),
    "kernel 3": (2, 2, 2, 3, 3, 4, 5, 3),
    "odd primes": (3, 0, 5, 31, 31, 7, 13, 1),
}


def sample(case, dtype=torch.float32, seed=0):
    batch, frames, tokens, channels, out, height, width, kernel = case
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, *([frames] if frames else []), channels, height, width),
        (batch, tokens, channels),
        (out, tokens * channels, kernel, kernel),
        (out,),
    )
    features, filters, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    weight /= max(tokens * channels, 1) ** 0.5
    return *(t.to(dtype) for t in (features, filters, weight, bias)), channels == out


def oracle(features, filters, weight, bias, residual):
    """Eq. 5 in float64, one sample, frame, token and tap at a time."""
    features, filters, weight, bias = (t.double() for t in (features, filters, weight, bias))
    frames = features if features.dim() == 5 else features.unsqueeze(1)
    channels, height, width = frames.shape[2:]
    pad = weight.shape[-1] // 2
    out = frames.new_zeros(*frames.shape[:2], len(weight), height, width) + bias[:, None, None]
    for b, t in ((b, t) for b in range(frames.shape[0]) for t in range(frames.shape[1])):
        padded = torch.nn.functional.pad(frames[b, t], (pad, pad, pad, pad))
        for n, (i, j) in (
            (n, (i, j))
            for n in range(filters.shape[1])
            for i in range(weight.shape[-1])
            for j in range(weight.shape[-1])
        ):
            taps = weight[:, n * channels : (n + 1) * channels, i, j] * filters[b, n]
            shifted = padded[:, i : i + height, j : j + width]
            out[b, t] += (taps @ shifted.flatten(1)).view(len(taps), height, width)
    out = out + frames if residual else out
    return out if features.dim() == 5 else out.squeeze(1)


def run(*args, backend=None):
    *tensors, residual = args
    return avskernels.semantic_recombination(*tensors, residual=residual, backend=backend)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_oracle(case, dtype):
    args = sample(case, dtype)
    assert_close(run(*args), oracle(*args))
    if args[0].numel():  # torch has no convolution of an empty map
        assert_close(run(*args, backend="reference"), oracle(*args))


@pytest.mark.parametrize("case", ["tile + 1", "odd primes", "other channels out"])
def test_every_instruction_set(case, isa):
    for dtype in (torch.float32, torch.float64):
        args = sample(CASES[case], dtype)
        assert_close(run(*args), oracle(*args))
    for dtype in (torch.bfloat16, torch.float16):
        args = sample(CASES[case], dtype)
        assert_as_precise(run(*args), run(*args, backend="reference"), oracle(*args))


def test_no_tokens_leave_the_features():
    features, filters, weight, bias, _ = sample((2, 0, 0, 3, 3, 4, 5, 1))
    tensors = [t.requires_grad_() for t in (features, filters, weight, bias)]
    mixed = avskernels.semantic_recombination(*tensors)
    assert torch.equal(mixed, features + bias[:, None, None])
    grads = torch.autograd.grad(mixed.sum(), tensors)
    assert torch.equal(grads[0], torch.ones_like(features))
    assert torch.equal(grads[3], torch.full_like(bias, 40.0))


@given(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(1, 5),
        st.integers(1, 20),
        st.integers(1, 20),
        st.integers(1, 9),
        st.integers(1, 9),
        st.sampled_from([1, 3]),
    )
)
def test_gradients_match_reference(case):
    args = sample(case, torch.float64)
    out, grads = run_with_grads(run, args)
    expected, expected_grads = run_with_grads(lambda *a: run(*a, backend="reference"), args)
    for one, other in zip([*out, *grads], [*expected, *expected_grads], strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("case", ["tile + 1", "kernel 3"])
def test_gradcheck(case):
    *tensors, residual = sample((1, 2, 2, 3, 3, 2, 2, CASES[case][-1]), torch.float64)
    tensors = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: run(*t, residual), tensors)


@pytest.mark.parametrize("case", ["tile + 1", "kernel 3"])
def test_generic_checks(case):
    args = sample(CASES[case])
    op = torch.ops.avskernels.semantic_recombination
    opcheck("semantic_recombination", (*(t.requires_grad_() for t in args[:4]), args[4]))
    if case != "kernel 3":  # torch's own convolution differs with the number of threads
        check_deterministic(op, args)
    check_layouts(op, args)
    check_compile(
        lambda f, w, p: avskernels.semantic_recombination(f, w, p),
        [sample(CASES[case])[:3], sample((3, 4, 2, 5, 5, 6, 7, 3))[:3]],
    )


def test_without_bias_and_residual():
    features, filters, weight, bias, _ = sample(CASES["tile + 1"])
    assert_close(
        avskernels.semantic_recombination(features, filters, weight, residual=False),
        oracle(features, filters, weight, torch.zeros_like(bias), False),
    )


def test_channels_last():
    features, *rest = sample(CASES["one below a vector"])
    layout = features.contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(layout, *rest), run(features, *rest))


def test_negative_and_zero_filters():
    features, filters, weight, bias, _ = sample(CASES["tile + 1"])
    args = (features, torch.stack([-filters[:, 0].abs(), 0 * filters[:, 0]], 1), weight, bias, True)
    assert_close(run(*args), oracle(*args))


def test_autocast_runs_as_a_convolution_does():
    args = sample(CASES["odd primes"])
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(*args)
    assert actual.dtype == torch.bfloat16
    same = run(*(t.bfloat16() for t in args[:4]), args[4], backend="reference")
    assert_as_precise(actual, same, oracle(*args))


SHAPES = {"features": (2, 3, 4, 5), "filters": (2, 2, 3), "weight": (3, 6, 1, 1), "bias": (3,)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"features": (3, 4, 5)},
            "expected features [B, C, H, W], got [3, 4, 5]",
        ),
        (
            {"filters": (2, 2, 4)},
            "expected filters [2, N, 3], got [2, 2, 4]",
        ),
        (
            {"filters": (1, 2, 3)},
            "expected filters [2, N, 3], got [1, 2, 3]",
        ),
        (
            {"filters": (2, 3, 3)},
            "expected weight [C_out, 9, k, k], got [3, 6, 1, 1]",
        ),
        (
            {"weight": (3, 6, 2, 2)},
            "expected weight [C_out, 6, k, k] with odd k, got [3, 6, 2, 2]",
        ),
        ({"bias": (4,)}, "expected bias [3], got [4]"),
        (
            {"weight": (4, 6, 1, 1), "bias": (4,)},
            "expected 3 output channels to add the residual to, got 4",
        ),
    ],
)
def test_shape_errors(changed, message):
    args = [torch.zeros(shape) for shape in (SHAPES | changed).values()]
    check_error(avskernels.semantic_recombination, args, f"semantic_recombination: {message}")


def test_integer_features():
    args = [torch.zeros(shape) for shape in SHAPES.values()]
    args[0] = args[0].long()
    check_error(
        avskernels.semantic_recombination,
        args,
        "semantic_recombination: expected features of floating point, got torch.int64",
    )
