from itertools import pairwise

import pytest
import torch
from checks import (
    assert_all_as_precise,
    assert_bit_equal,
    check_compile,
    check_deterministic,
    check_error,
    check_layouts,
    in_double,
    opcheck,
    plain_and_exact,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st

from avskernels import dynamic_mask_conv
from avskernels._dynamic_mask_conv_algebra import num_params
from avskernels.testing import assert_as_precise, assert_close

# (images, queries, channels, height, width, hidden)
CASES = {
    "minimal": (1, 1, 1, 1, 1, (8, 8)),
    "no query": (2, 0, 8, 5, 5, (8, 8)),
    "no image": (0, 3, 8, 5, 5, (8, 8)),
    "no pixel": (1, 3, 8, 0, 5, (8, 8)),
    "one below a vector": (1, 2, 8, 3, 5, (8, 8)),
    "exact tile": (1, 2, 8, 8, 6, (8, 8)),
    "tile + 1": (1, 2, 8, 7, 7, (8, 8)),
    "odd primes": (2, 3, 7, 13, 11, (5, 3)),
    "several blocks": (1, 2, 8, 41, 43, (8, 8)),
    "plain filter": (2, 5, 9, 6, 7, ()),
    "one wide layer": (1, 2, 6, 5, 9, (17,)),
    "three layers": (1, 2, 4, 5, 9, (4, 9, 2)),
    "two groups of queries": (2, 11, 3, 5, 12, (8, 8)),
    "sqd": (2, 5, 256, 14, 14, (8, 8)),
}

# What takes every path through a kernel, for each instruction set.
LEVEL_CASES = ["odd primes", "several blocks", "three layers", "two groups of queries", "sqd"]


def sample(
    images,
    queries,
    channels,
    height,
    width,
    hidden=(8, 8),
    dtype=torch.float32,
    points=True,
    seed=0,
):
    """Positional arguments of the operator; masks are of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    features = normal(images, channels, height, width).to(dtype)
    params = normal(images, queries, num_params(channels, hidden, points)) / 3
    reference_points = (normal(images, queries, 2) * 2 + 1).to(wide) if points else None
    scale = (normal(images, queries).abs() / 8).to(wide) if points else None
    return features, params.to(dtype), reference_points, scale, None, hidden, 2.0, True


def oracle(features, params, points, scale, image_index, hidden, stride, coords_first):
    """One query at a time, one matrix product a layer, in float64."""
    features, params = features.double(), params.double()
    channels, height, width = features.shape[1:]
    masks = torch.empty(*params.shape[:-1], height, width, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in params.shape[:-1])).reshape(
        -1, params.dim() - 1
    ):
        query = tuple(index.tolist())
        image = query[0] if image_index is None else int(image_index[query])
        rows = features[image].reshape(channels, -1)
        if points is not None:
            centre = torch.tensor(
                [[x, y] for y in range(height) for x in range(width)], dtype=torch.float64
            ).reshape(-1, 2)
            relative = (points[query].double() - (centre * stride + stride / 2)).T
            relative = relative * (1 if scale is None else scale[query].double())
            rows = torch.cat([relative, rows] if coords_first else [rows, relative])
        weights, biases = params[query], []
        widths = [len(rows), *hidden, 1]
        position = sum(a * b for a, b in pairwise(widths))
        biases, weights = weights[position:], weights[:position]
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            rows = rows.clamp(min=0) if layer else rows
            rows = weights[: inputs * outputs].view(outputs, inputs) @ rows
            rows = rows + biases[:outputs, None]
            weights, biases = weights[inputs * outputs :], biases[outputs:]
        masks[query] = rows.view(height, width)
    return masks


def operator(*args):
    return torch.ops.avskernels.dynamic_mask_conv(*args)


def plain(features, params, points, scale, image_index, hidden, stride, coords_first):
    return dynamic_mask_conv(
        features,
        params,
        hidden=hidden,
        reference_points=points,
        coord_scale=1.0 if scale is None else scale,
        image_index=image_index,
        stride=stride,
        coords="first" if coords_first else "last",
        backend="reference",
    )


@pytest.mark.parametrize("points", [True, False], ids=["coordinates", "no coordinates"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_oracle(case, points):
    args = sample(*case, points=points)
    expected = oracle(*args)
    reference = plain(*args) if expected.numel() else expected  # torch convolves no empty map
    assert_as_precise(operator(*args), reference, expected)


@pytest.mark.parametrize("case", LEVEL_CASES)
def test_every_level_matches_oracle(case, isa):
    args = sample(*CASES[case])
    assert_as_precise(operator(*args), plain(*args), oracle(*args))


@pytest.mark.parametrize("name", ["no query", "no image", "no pixel"])
def test_gradients_of_nothing_are_zero(name):
    _, grads = run_with_grads(operator, sample(*CASES[name]))
    assert [grad.shape for grad in grads] == [arg.shape for arg in sample(*CASES[name])[:3]]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("case", LEVEL_CASES)
def test_gradients_of_every_level_match_reference(case, isa):
    check_gradients(CASES[case])


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("no ")])
def test_gradients_match_reference(case):
    check_gradients(CASES[case])


def check_gradients(case):
    for dtype in (torch.float64, torch.float32):
        *tensors, scale, index, hidden, stride, coords_first = sample(*case, dtype=dtype)
        rest = (scale, index, hidden, stride, coords_first)
        assert_all_as_precise(
            run_with_grads(lambda *t, rest=rest: operator(*t, *rest), tensors),
            *plain_and_exact(lambda *t, rest=rest: plain(*t, *rest), tensors),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, isa):
    args = sample(2, 3, 8, 9, 11, dtype=dtype)
    assert_as_precise(operator(*args), plain(*args), oracle(*args))
    actual = run_with_grads(operator, args)[1]
    expected = run_with_grads(operator, in_double(args))[1]
    for one, other in zip(actual[:2], expected[:2], strict=True):
        size = other.abs().max()
        assert_close(one / size, other / size, dtype)


@given(
    images=st.integers(0, 3),
    queries=st.integers(0, 4),
    channels=st.integers(1, 20),
    height=st.integers(1, 9),
    width=st.integers(1, 30),
    hidden=st.lists(st.integers(1, 11), max_size=3).map(tuple),
    points=st.booleans(),
    seed=st.integers(0, 99),
)
def test_matches_reference(images, queries, channels, height, width, hidden, points, seed):
    args = sample(images, queries, channels, height, width, hidden, torch.float64, points, seed)
    actual = dynamic_mask_conv(*args[:2], hidden=hidden, reference_points=args[2], stride=3)
    expected = dynamic_mask_conv(
        *args[:2], hidden=hidden, reference_points=args[2], stride=3, backend="reference"
    )
    assert_close(actual, expected, torch.float64)


def test_gradcheck():
    features, params, points, scale, *_ = sample(2, 2, 3, 3, 5, (3, 2), torch.float64)
    for keywords in ({"hidden": (3, 2)}, {"hidden": (3, 2), "coord_scale": scale}):
        torch.autograd.gradcheck(
            lambda f, p, r, keywords=keywords: dynamic_mask_conv(
                f, p, reference_points=r, stride=1.5, **keywords
            ),
            tuple(tensor.requires_grad_() for tensor in (features, params, points)),
        )


def test_generic_checks():
    args = sample(2, 3, 5, 7, 8, (4, 3))
    opcheck(
        "dynamic_mask_conv",
        tuple(
            arg.clone().requires_grad_() if isinstance(arg, torch.Tensor) and i < 3 else arg
            for i, arg in enumerate(args)
        ),
    )
    opcheck("_dynamic_mask_conv_backward", (torch.randn(2, 3, 7, 8), *args))
    check_deterministic(operator, args)
    check_deterministic(operator, sample(1, 3, 8, 40, 41))
    check_layouts(operator, args)
    check_compile(
        lambda f, p, r: dynamic_mask_conv(f, p, reference_points=r),
        [sample(2, 3, 8, 5, 6)[:3], sample(3, 4, 8, 7, 5)[:3]],
    )


def test_gradient_layouts():
    args = sample(2, 3, 5, 7, 8, (4, 3))
    grad = torch.randn(2, 3, 7, 8)

    def backward(*args):
        with torch.no_grad():
            return torch.ops.avskernels._dynamic_mask_conv_backward(*args)

    check_layouts(backward, (grad, *args))
    expanded = torch.ones(()).expand(2, 3, 7, 8)
    assert_bit_equal(backward(expanded, *args), backward(torch.ones(2, 3, 7, 8), *args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3, 4, 5)}, "expected features [B, C, H, W], got [3, 4, 5]"),
        ({1: torch.zeros(1, 3, 51)}, "expected params [2, Q, 51], got [1, 3, 51]"),
        ({1: torch.zeros(2, 3, 7)}, "expected params [2, Q, 51], got [2, 3, 7]"),
        ({2: None, 3: None}, "expected params [2, Q, 43], got [2, 3, 51]"),
        ({0: torch.zeros(2, 0, 7, 8)}, "expected at least one channel, got [2, 0, 7, 8]"),
        (
            {1: torch.zeros(2, 3, 51, dtype=torch.float64)},
            "expected params of torch.float32, got torch.float64",
        ),
        (
            {0: torch.zeros(2, 5, 7, 8, dtype=torch.int32)},
            "expected features of floating point, got torch.int32",
        ),
        ({2: torch.zeros(2, 2, 2)}, "expected reference_points [2, 3, 2], got [2, 2, 2]"),
        (
            {3: torch.zeros(2, 3, dtype=torch.float64)},
            "expected coord_scale of torch.float32, got torch.float64",
        ),
        ({5: (4, 0)}, "expected hidden widths of at least 1, got [4, 0]"),
        ({4: torch.zeros(3, dtype=int)}, "expected params [Q, 51], got [2, 3, 51]"),
        (
            {1: torch.zeros(3, 51), 4: torch.zeros(3)},
            "expected image_index of torch.int64, got torch.float32",
        ),
    ],
)
def test_errors(change, message):
    args = list(sample(2, 3, 5, 7, 8, (4, 3)))
    for position, value in change.items():
        args[position] = value
    check_error(operator, args, f"dynamic_mask_conv: {message}")


def test_unknown_coords():
    with pytest.raises(ValueError, match="expected coords to be one of"):
        dynamic_mask_conv(*sample(1, 1, 1, 1, 1, points=False)[:2], coords="middle")
