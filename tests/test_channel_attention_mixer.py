import pytest
import torch
from checks import (
    assert_all_as_precise,
    check_compile,
    check_deterministic,
    check_error,
    check_large_outputs,
    check_layouts,
    opcheck,
    plain_and_exact,
    run_with_grads,
)
from hypothesis import given
from hypothesis import strategies as st

import avskernels
from avskernels.testing import assert_as_precise, assert_close

# (batch, heads, channels, height, width)
CASES = {
    "minimal": (1, 1, 1, 1, 1),
    "empty batch": (0, 2, 4, 3, 3),
    "no pixels": (2, 2, 4, 0, 3),
    "one pixel": (3, 2, 6, 1, 1),
    "one below a vector": (2, 3, 15, 3, 5),
    "exact tile": (3, 8, 16, 16, 16),
    "tile + 1": (2, 17, 17, 1, 257),
    "odd primes": (3, 1, 37, 13, 31),
    "several blocks": (3, 3, 132, 2, 641),
}
DTYPES = [torch.float32, torch.float64]
RELEASED = {"softmax": True, "gate": "sigmoid"}
PAPER = {"softmax": False, "gate": "residual"}
FORMULAS = [
    RELEASED,
    PAPER,
    {"softmax": True, "gate": "residual"},
    {"softmax": False, "gate": "sigmoid"},
]
IDS = ["released", "paper", "softmax-residual", "linear-sigmoid"]
NAMES = ("k_weight", "v_weight", "out_weight", "out_bias", "k_bias", "v_bias")


def sample(case, dtype=torch.float32, seed=0, masked=False):
    """Return (features, query, k_weight, v_weight, out_weight, out_bias, k_bias, v_bias), mask."""
    batch, _, channels, height, width = case
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = [randn(channels, channels) / channels**0.5 for _ in range(3)]
    biases = [randn(channels) for _ in range(3)]
    tensors = (randn(batch, channels, height, width), randn(batch, channels), *weights, *biases)
    mask = torch.rand(batch, height, width, generator=generator) < 0.6 if masked else None
    return tensors, mask


def oracle(tensors, mask, num_heads, softmax, gate):
    """The definition in float64, one sample and head at a time, over the pixels that count."""
    features, query, k_weight, v_weight, out_weight, out_bias, k_bias, v_bias = (
        t.double() for t in tensors
    )
    mixed = torch.zeros_like(features)
    for b in range(len(features)):
        pixels = features[b].flatten(1)  # [C, N]
        counted = pixels if mask is None else pixels[:, mask[b].flatten()]
        if mask is not None and counted.shape[1] == 0:
            mixed[b] = 0 if gate == "sigmoid" else features[b]
            continue
        keys, values = k_weight @ counted + k_bias[:, None], v_weight @ counted + v_bias[:, None]
        pooled = []
        for head in torch.arange(features.shape[1]).chunk(num_heads):
            weights = query[b, head] @ keys[head] / len(head) ** 0.5
            if softmax and len(weights):
                weights = (weights - weights.max()).exp()
                weights = weights / weights.sum()
            pooled.append(values[head] @ weights)
        value = out_weight @ torch.cat(pooled) + out_bias
        if gate == "sigmoid":
            mixed[b] = features[b] / (1 + (-value).exp())[:, None, None]
        else:
            mixed[b] = features[b] * (1 + value)[:, None, None]
    return mixed


def run(tensors, mask, num_heads, softmax=True, gate="sigmoid", backend=None):
    features, query, *parameters = tensors
    k_weight, v_weight, out_weight, out_bias, k_bias, v_bias = parameters
    return avskernels.channel_attention_mixer(
        features,
        query,
        k_weight,
        v_weight,
        out_weight,
        out_bias,
        k_bias=k_bias,
        v_bias=v_bias,
        mask=mask,
        num_heads=num_heads,
        softmax=softmax,
        gate=gate,
        backend=backend,
    )


def assert_all_close(actual, expected):
    """Compare (outputs, gradients) of two runs."""
    for ours, theirs in zip(actual, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("formula", FORMULAS, ids=IDS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_matches_oracle(case, formula, masked):
    for dtype in DTYPES:
        tensors, mask = sample(case, dtype, masked=masked)
        expected = oracle(tensors, mask, case[1], **formula)
        reference = run(tensors, mask, case[1], **formula, backend="reference")
        assert_as_precise(run(tensors, mask, case[1], **formula), reference, expected)
        if dtype == torch.float64:
            assert_close(reference, expected)


@pytest.mark.parametrize("formula", FORMULAS[:2], ids=IDS[:2])
def test_every_instruction_set(formula, isa):
    for dtype in (*DTYPES, torch.bfloat16, torch.float16):
        tensors, mask = sample((2, 4, 36, 13, 31), dtype, masked=True)
        assert_all_as_precise(
            run_with_grads(lambda *t, m=mask: run(t, m, 4, **formula), tensors),
            *plain_and_exact(
                lambda *t, m=mask: run(t, m, 4, **formula, backend="reference"), tensors
            ),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_outputs(dtype, isa):
    weights = [torch.randn(3, 3) for _ in range(3)]
    features = torch.randn(2, 3, 1024, 2752 // dtype.itemsize).to(dtype)
    check_large_outputs(
        lambda x, q: avskernels.channel_attention_mixer(x, q, *weights, None, num_heads=3),
        [features, torch.randn(2, 3)],
    )


@given(
    shape=st.tuples(
        st.integers(0, 3),
        st.integers(1, 5),
        st.integers(1, 8),
        st.integers(1, 20),
        st.integers(1, 20),
    ),
    formula=st.sampled_from(FORMULAS),
    masked=st.booleans(),
)
def test_gradients_match_reference(shape, formula, masked):
    batch, heads, head_channels, height, width = shape
    case = (batch, heads, heads * head_channels, height, width)
    tensors, mask = sample(case, torch.float64, masked=masked)
    actual = run_with_grads(lambda *t: run(t, mask, heads, **formula), tensors)
    expected = run_with_grads(
        lambda *t: run(t, mask, heads, **formula, backend="reference"), tensors
    )
    for one, other in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("formula", FORMULAS, ids=IDS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_gradcheck(formula, masked):
    tensors, mask = sample((2, 2, 4, 2, 3), torch.float64, masked=masked)
    tensors = tuple(t.requires_grad_() for t in tensors)
    assert torch.autograd.gradcheck(lambda *t: run(t, mask, 2, **formula), tensors)


@pytest.mark.parametrize("formula", FORMULAS[:2], ids=IDS[:2])
def test_generic_checks(formula):
    tensors, mask = sample((3, 3, 36, 13, 31), masked=True)
    op = torch.ops.avskernels.channel_attention_mixer
    args = (*tensors, mask, 3, *formula.values())
    check_deterministic(op, args)
    check_layouts(op, args, compare=assert_all_close)  # BLAS sees the strides of the parameters
    opcheck("channel_attention_mixer", (*(t.requires_grad_() for t in tensors), *args[8:]))
    check_compile(
        lambda *t: run(t, None, 3, **formula),
        [sample((2, 3, 6, 4, 5))[0], sample((3, 3, 9, 5, 2))[0]],
    )


def test_channels_last():
    tensors, _ = sample((2, 2, 6, 5, 7))
    layout = tensors[0].contiguous(memory_format=torch.channels_last)
    assert torch.equal(run((layout, *tensors[1:]), None, 2), run(tensors, None, 2))


def test_no_weights_is_the_paper():
    (features, query, *_), _ = sample((2, 2, 6, 5, 7))
    eye, zero = torch.eye(6), torch.zeros(6)
    mixed = run((features, query, *[None] * 6), None, 2, **PAPER)
    assert_close(
        mixed, oracle((features, query, eye, eye, eye, zero, zero, zero), None, 2, **PAPER)
    )


def test_negative_gate_turns_the_sign():
    features = torch.ones(1, 2, 2, 2)
    query = torch.full((1, 2), -1.0)
    mixed = run((features, query, *[None] * 6), None, 2, **PAPER)
    assert torch.equal(mixed, torch.full_like(features, -3.0))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits(size):
    (features, query, *rest), _ = sample((2, 2, 6, 5, 7))
    tensors = (features, size * query, *rest)
    assert_close(run(tensors, None, 2), oracle(tensors, None, 2, **RELEASED))


@pytest.mark.parametrize("formula", FORMULAS, ids=IDS)
def test_fully_masked_map_has_gate_zero(formula):
    tensors, mask = sample((2, 2, 6, 5, 7), masked=True)
    mask[1] = False
    (mixed,), grads = run_with_grads(lambda *t: run(t, mask, 2, **formula), tensors)
    expected = torch.zeros_like(mixed[1]) if formula["gate"] == "sigmoid" else tensors[0][1]
    assert torch.equal(mixed[1], expected)
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][1].any()


def test_half_precision_map_with_float32_parameters():
    tensors, _ = sample((2, 2, 6, 5, 7))
    half = (tensors[0].bfloat16(), *tensors[1:])
    mixed = run(half, None, 2)
    assert mixed.dtype == torch.bfloat16
    assert_close(mixed, oracle(half, None, 2, **RELEASED))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(half, None, 2), mixed)


def test_nan_stays_in_its_sample():
    (features, *rest), _ = sample((2, 2, 6, 5, 7))
    features[0, 3, 2, 2] = float("nan")
    mixed = run((features, *rest), None, 2)
    assert mixed[0].isnan().all()
    assert mixed[1].isfinite().all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": (2, 4, 5)}, "expected features [B, C, H, W], got [2, 4, 5]"),
        ({"query": (2, 3)}, "expected query [2, 4], got [2, 3]"),
        (
            {"v_weight": (4, 8)},
            "expected v_weight [4, 4], got [4, 8]",
        ),
        ({"k_bias": (8,)}, "expected k_bias [4], got [8]"),
    ],
)
def test_shape_errors(changed, message):
    shapes = {"features": (2, 4, 3, 5), "query": (2, 4)}
    shapes |= {name: (4, 4) if name.endswith("weight") else (4,) for name in NAMES}
    tensors = [torch.zeros(shape) for shape in (shapes | changed).values()]
    message = f"channel_attention_mixer: {message}"
    check_error(lambda *t: run(t, None, 2), tensors, message)
    op = torch.ops.avskernels.channel_attention_mixer
    check_error(op, [*tensors, None, 2, True, "sigmoid"], message)


def test_heads_that_do_not_divide():
    tensors, _ = sample((2, 2, 6, 5, 7))
    message = "channel_attention_mixer: expected num_heads to divide 6 channels, got 4"
    check_error(lambda *t: run(t, None, 4), tensors, message)
    op = torch.ops.avskernels.channel_attention_mixer
    check_error(op, [*tensors, None, 4, True, "sigmoid"], message)


def test_mask_errors():
    tensors, mask = sample((2, 2, 6, 5, 7), masked=True)
    message = "channel_attention_mixer: expected mask [2, 5, 7], got [2, 7, 5]"
    check_error(lambda m, *t: run(t, m, 2), (mask.mT, *tensors), message)
    message = "channel_attention_mixer: expected mask of torch.bool, got torch.int64"
    check_error(lambda m, *t: run(t, m, 2), (mask.long(), *tensors), message)


def test_unknown_gate():
    tensors, _ = sample((1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"expected gate to be one of .*, got 'tanh'"):
        run(tensors, None, 1, gate="tanh")
