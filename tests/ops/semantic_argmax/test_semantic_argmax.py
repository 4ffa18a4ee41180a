# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from checks import check_error
from hypothesis import given
from hypothesis import strategies as st
from ops.semantic_argmax.cases import CASES, ERRORS, assert_labels, oracle_volume, sample
from torch.nn import functional

from avskernels import semantic_argmax
from avskernels.ops.semantic_argmax import plain
from avskernels.testing import assert_close


def test_oracle_resizes_as_torch_does():
    _, logits, _ = sample(1, 3, 2, 7, 9)
    for size in ((28, 36), (23, 5), (3, 4)):
        masks = functional.interpolate(logits.double(), size=size, mode="bilinear")
        volume = oracle_volume(torch.ones(1, 3, 1), logits, size)
        assert_close(volume, masks.sigmoid().sum(1, keepdim=True), torch.float64)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_labels_are_exact(case, dtype):
    check_labels(case, dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_labels_of_plain_torch_are_exact(case):
    probs, logits, size = sample(*case)
    for thresholds in ((0.0, 0.0), (0.03, 0.5)):
        labels, scores = plain.forward(
            probs, logits, *(size or logits.shape[2:]), *thresholds, True, True
        )
        volume = oracle_volume(probs, logits, size, *thresholds)
        assert_labels(labels, volume)
        assert_close(scores, volume.amax(1))


@pytest.mark.parametrize(
    "case", ["odd primes", "enlarged unevenly", "shrunk a little", "many queries"]
)
def test_labels_of_every_level_are_exact(case, isa):
    check_labels(CASES[case], torch.float32)
    check_labels(CASES[case], torch.bfloat16)


def check_labels(case, dtype):
    probs, logits, size = sample(*case, dtype=dtype)
    for thresholds in ((0.0, 0.0), (0.03, 0.5)):
        labels, scores = semantic_argmax(
            probs,
            logits,
            size=size,
            class_threshold=thresholds[0],
            mask_threshold=thresholds[1],
            return_scores=True,
        )
        volume = oracle_volume(probs, logits, size, *thresholds)
        assert_labels(labels, volume)
        assert_close(scores, volume.amax(1))
        alone = semantic_argmax(
            probs, logits, size=size, class_threshold=thresholds[0], mask_threshold=thresholds[1]
        )
        assert torch.equal(alone, labels)


@given(
    images=st.integers(0, 2),
    queries=st.integers(0, 40),
    classes=st.integers(1, 80),
    height=st.integers(1, 9),
    width=st.integers(1, 40),
    size=st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    thresholds=st.sampled_from([(0.0, 0.0), (0.02, 0.4), (-1.0, 0.3)]),
    activation=st.sampled_from(["sigmoid", "none"]),
    seed=st.integers(0, 99),
)
def test_matches_oracle(
    images, queries, classes, height, width, size, thresholds, activation, seed
):
    probs, logits, _ = sample(images, queries, classes, height, width, seed=seed)
    labels = semantic_argmax(
        probs,
        logits,
        size=size,
        class_threshold=thresholds[0],
        mask_threshold=thresholds[1],
        activation=activation,
    )
    assert_labels(labels, oracle_volume(probs, logits, size, *thresholds, activation == "sigmoid"))


def test_reference_is_the_same_definition():
    probs, logits, size = sample(2, 5, 9, 7, 9, (28, 36), dtype=torch.float64)
    keywords = {"size": size, "class_threshold": 0.1, "mask_threshold": 0.5, "return_scores": True}
    labels, scores = semantic_argmax(probs, logits, backend="reference", **keywords)
    volume = oracle_volume(probs, logits, size, 0.1, 0.5)
    assert_labels(labels, volume)
    assert_close(scores, volume.amax(1))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("args", "message"), [entry[1:] for entry in ERRORS], ids=[entry[0] for entry in ERRORS]
)
def test_errors_of_the_public_function(args, message, backend):
    size = args[2:4]
    check_error(
        lambda probs, logits: semantic_argmax(probs, logits, size=size, backend=backend),
        args[:2],
        f"semantic_argmax: {message}",
    )


def test_unknown_activation():
    with pytest.raises(ValueError, match="expected activation to be one of"):
        semantic_argmax(*sample(1, 1, 1, 1, 1)[:2], activation="softmax")
