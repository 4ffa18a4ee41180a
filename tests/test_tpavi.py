import pytest
import torch
from checks import (
    assert_all_as_precise,
    check_compile,
    check_deterministic,
    check_large_outputs,
    check_layouts,
    opcheck,
    plain_and_exact,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st

import avskernels
from avskernels._tpavi_algebra import Parameters
from avskernels.testing import assert_close

# (batch, channels, inner channels, frames, height, width)
CASES = {
    "minimal": (1, 1, 1, 1, 1, 2),
    "empty batch": (0, 4, 2, 3, 3, 3),
    "no pixels": (2, 4, 2, 3, 0, 3),
    "one pixel a frame": (2, 6, 3, 2, 1, 1),
    "one below a vector": (2, 15, 7, 1, 3, 5),
    "exact tile": (1, 16, 8, 8, 8, 8),
    "tile + 1": (2, 17, 9, 9, 1, 29),
    "odd primes": (3, 37, 19, 5, 7, 11),
    "several blocks": (1, 259, 3, 2, 2, 331),
}
MODES = ("dot", "embedded", "gaussian", "concatenate")
DTYPES = [torch.float32, torch.float64]
NAMES = ("visual", "audio", *Parameters._fields)


def sample(case, dtype=torch.float32, seed=0, norms=True):
    """Return all tensor arguments by name."""
    batch, channels, inner, frames, height, width = case
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, size=1.0, shift=0.0):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (size * values + shift).to(dtype)

    down, up = channels**-0.5, inner**-0.5
    tensors = {
        "visual": randn(batch, channels, frames, height, width),
        "audio": randn(batch, frames, channels),
        "theta_weight": randn(inner, channels, size=down),
        "theta_bias": randn(inner),
        "phi_weight": randn(inner, channels, size=down),
        "phi_bias": randn(inner),
        "g_weight": randn(inner, channels, size=down),
        "g_bias": randn(inner),
        "out_weight": randn(channels, inner, size=up),
        "out_bias": randn(channels),
        "concat_weight": randn(1, 2 * inner, size=up),
        "concat_bias": randn(1),
        "bn_weight": randn(channels),
        "bn_bias": randn(channels),
        "running_mean": randn(channels),
        "running_var": randn(channels).square() + 0.5,
        "norm_weight": randn(channels),
        "norm_bias": randn(channels),
    }
    if not norms:
        tensors |= dict.fromkeys(NAMES[12:])
    return tensors


def run(tensors, **options):
    return avskernels.tpavi(**tensors, **options)[0]


def small_run(names, tensors, **options):
    """The block as a function of the tensors named, the others in the precision of those."""

    def function(*values):
        others = {n: t if t is None else t.to(values[0].dtype) for n, t in tensors.items()}
        return run(others | dict(zip(names, values, strict=True)), **options)

    return function


def differentiable(tensors):
    """The names of the tensors that have a gradient, in order."""
    return [n for n, t in tensors.items() if t is not None and not n.startswith("running")]


def oracle(tensors, mode, training):
    """The definition in float64, one clip at a time."""
    t = {name: None if value is None else value.double() for name, value in tensors.items()}
    visual = t["visual"]
    batch, *_, height, width = visual.shape
    pixels = visual.flatten(2).mT  # [B, THW, C]
    audio = t["audio"]
    source = pixels if audio is None else audio.repeat_interleave(height * width, 1)
    result = torch.zeros_like(pixels)
    for b in range(batch):
        g = pixels[b] @ t["g_weight"].T + t["g_bias"]
        theta, phi = pixels[b], source[b]
        if mode != "gaussian":
            theta = theta @ t["theta_weight"].T + t["theta_bias"]
            phi = phi @ t["phi_weight"].T + t["phi_bias"]
        if len(g) == 0:
            continue
        if mode == "concatenate":
            on_visual, on_audio = t["concat_weight"].view(2, -1)
            rows = (theta @ on_visual)[:, None] + (phi @ on_audio)[None] + t["concat_bias"]
            rows = rows.clamp(min=0)
        else:
            rows = theta @ phi.T
        if mode in ("embedded", "gaussian"):
            rows = (rows - rows.amax(1, keepdim=True)).exp()
            rows = rows / rows.sum(1, keepdim=True)
        else:
            rows = rows / len(rows)
        result[b] = rows @ g @ t["out_weight"].T + t["out_bias"]
    if t["bn_weight"] is not None:
        mean, variance = t["running_mean"], t["running_var"]
        if training:
            mean, variance = result.mean((0, 1)), result.var((0, 1), correction=0)
        result = (result - mean) / (variance + 1e-5).sqrt() * t["bn_weight"] + t["bn_bias"]
    result = result + pixels
    if t["norm_weight"] is not None:
        centred = result - result.mean(2, keepdim=True)
        deviation = (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
        result = centred / deviation * t["norm_weight"] + t["norm_bias"]
    return result.mT.reshape(visual.shape)


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norms", [True, False], ids=["normalised", "plain"])
def test_gradcheck(mode, norms):
    tensors = sample((2, 4, 2, 2, 2, 2), torch.float64, norms=norms)
    names = differentiable(tensors)
    values = [tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(small_run(names, tensors, mode=mode, training=True), values)


@pytest.mark.parametrize("mode", MODES)
def test_generic_checks(mode):
    tensors = sample((2, 9, 5, 3, 7, 11))
    op = torch.ops.avskernels.tpavi
    args = (*tensors.values(), True, 1e-4, 1e-3, mode)
    check_deterministic(op, args)
    leaves = (t.requires_grad_(not n.startswith("running")) for n, t in tensors.items())
    opcheck("tpavi", (*leaves, True, 1e-4, 1e-3, mode))


@pytest.mark.parametrize("mode", MODES)
def test_layouts(mode):
    tensors = sample((2, 9, 5, 3, 7, 11))
    names, options = differentiable(tensors), {"mode": mode, "training": True}
    values = [tensors[name] for name in names]
    plain, exact = plain_and_exact(
        small_run(names, tensors, **options, backend="reference"), values
    )
    check_layouts(
        small_run(names, tensors, **options),
        values,  # BLAS sees the strides of the parameters
        compare=lambda actual, _: assert_all_as_precise(actual, plain, exact),
    )


def test_compiles():
    samples = [sample((2, 6, 3, 2, 3, 5)), sample((3, 8, 5, 4, 5, 7))]
    names = [name for name in NAMES if not name.startswith("running")]
    check_compile(
        lambda *values: avskernels.tpavi(**dict(zip(names, values, strict=True)), training=True),
        [[tensors[name] for name in names] for tensors in samples],
    )
