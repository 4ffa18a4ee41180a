# SPDX-License-Identifier: Apache-2.0
"""What tpavi promises beside its formula: statistics, precisions, large scores, errors."""

import re

import pytest
import torch
from ops.tpavi.cases import CASES, MODES, oracle, run, sample

import avskernels
from avskernels.testing import assert_close


def test_epsilons():
    tensors = sample((2, 6, 3, 2, 3, 5), torch.float64)
    options = {"bn_eps": 0.5, "norm_eps": 0.25, "training": True}
    assert_close(run(tensors, **options), run(tensors, **options, backend="reference"))


@pytest.mark.parametrize("mode", MODES)
def test_running_statistics_follow_the_batch(mode):
    ours, theirs = sample((2, 6, 3, 2, 3, 5)), sample((2, 6, 3, 2, 3, 5))
    run(ours, training=True, momentum=0.3, mode=mode)
    run(theirs, training=True, momentum=0.3, mode=mode, backend="reference")
    for name in ("running_mean", "running_var"):
        assert_close(ours[name], theirs[name].double())
    before = ours["running_mean"].clone()
    run(ours, training=False, mode=mode)
    assert torch.equal(ours["running_mean"], before)


@pytest.mark.parametrize("mode", ["embedded", "gaussian"])
def test_what_all_values_share_costs_no_digits(mode):
    tensors = sample(CASES["odd primes"])
    expected = oracle(tensors, mode, True)
    tensors["g_bias"] += 1e4  # BatchNorm takes it away; the deviation is about 0.1
    tensors["out_bias"] += 1e4
    assert_close(run(tensors, mode=mode, training=True), expected)


def test_aligned_audio_is_returned():
    tensors = sample((2, 6, 3, 2, 3, 5))
    audio, weight, bias = torch.randn(2, 2, 4), torch.randn(6, 4), torch.randn(6)
    fused, aligned = avskernels.tpavi(
        **tensors | {"audio": audio}, align_weight=weight, align_bias=bias
    )
    assert_close(aligned, audio.double() @ weight.T.double() + bias.double())
    assert_close(fused, oracle(tensors | {"audio": aligned}, "dot", False))


def test_large_scores():
    tensors = sample((2, 6, 3, 2, 3, 5))
    tensors["audio"] = 1e4 * tensors["audio"]
    for mode in MODES:
        expected = oracle(tensors, mode, True)
        assert_close(run(tensors, mode=mode, training=True), expected)


@pytest.mark.parametrize("mode", MODES)
def test_equal_scores(mode):
    tensors = sample((1, 37, 19, 5, 7, 11))
    tensors |= {name: torch.zeros_like(tensors[name]) for name in ("audio", "phi_bias")}
    assert_close(run(tensors, mode=mode, training=True), oracle(tensors, mode, True))


@pytest.mark.parametrize("mode", MODES)
def test_nan_stays_in_its_clip(mode):
    tensors = sample(CASES["odd primes"])
    expected = oracle(tensors, mode, False)
    tensors["visual"][1, 2, 3, 4, 5] = torch.nan
    fused = run(tensors, mode=mode)
    assert fused[1].isnan().all()
    assert_close(fused[::2], expected[::2])


def test_half_precision_map_with_float32_parameters():
    tensors = sample((2, 6, 3, 2, 3, 5))
    tensors["visual"] = tensors["visual"].bfloat16()
    fused = run(tensors)
    assert fused.dtype == torch.bfloat16
    assert_close(fused, oracle(tensors, "dot", False))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(tensors), fused)


def test_without_a_required_parameter():
    tensors = sample((2, 6, 3, 2, 3, 5)) | {"g_weight": None}
    with pytest.raises(RuntimeError, match=r"tpavi.*g_weight"):
        run(tensors)
    with pytest.raises(RuntimeError, match="expected g_weight to be a tensor, got NoneType"):
        run(tensors, backend="kernel")


@pytest.mark.parametrize("audio", [True, False], ids=["audio", "visual"])
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("running_mean", (5,), "running_mean [6], got [5]"),
        ("bn_bias", None, "bn_bias in mode 'dot', got None"),
    ],
)
def test_errors_of_the_public_function(audio, name, shape, expected):
    tensors = sample((2, 6, 3, 2, 3, 5))
    tensors |= {name: None if shape is None else torch.zeros(shape)}
    tensors |= {} if audio else {"audio": None}
    with pytest.raises(RuntimeError, match=re.escape(f"tpavi: expected {expected}")):
        run(tensors, training=True)


def test_batch_norm_needs_two_positions():
    tensors = sample((1, 6, 3, 1, 1, 1))
    message = "tpavi: expected at least 2 positions to train BatchNorm on, got 1"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        run(tensors, training=True)


def test_without_audio_no_kernel_runs():
    tensors = sample((2, 6, 3, 2, 3, 5))
    explanation = avskernels.explain(avskernels.tpavi, **tensors)
    assert (explanation.chosen, explanation.refused) == ("C++", ())
    run(tensors, backend="kernel")
    tensors["audio"] = None
    explanation = avskernels.explain(avskernels.tpavi, **tensors)
    assert explanation.chosen == "plain torch"
    assert ("C++", "no audio: the map attends to itself") in explanation.refused
    with pytest.raises(RuntimeError, match="no audio: the map attends to itself"):
        run(tensors, backend="kernel")


def test_the_operator_itself_wants_audio():
    args = [None if name == "audio" else x for name, x in sample((2, 6, 3, 2, 3, 5)).items()]
    with pytest.raises(RuntimeError, match=r"tpavi: expected audio \[B, T, C\]"):
        torch.ops.avskernels.tpavi(*args, False, 1e-5, 1e-5, "dot")


def test_backward_under_autocast_computes_what_it_does_outside():
    tensors = sample((2, 6, 3, 2, 3, 5))
    leaves = [tensors[name].requires_grad_() for name in ("visual", "audio", "g_weight")]
    fused = run(tensors)
    expected = torch.autograd.grad(fused.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(fused.sum(), leaves)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"expected mode to be one of .*, got 'sum'"):
        run(sample((1, 1, 1, 1, 1, 2)), mode="sum")
