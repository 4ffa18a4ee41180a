import pytest
import torch
from checks import check_compile, check_deterministic, check_error, check_layouts, opcheck
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import avskernels
from avskernels import semantic_argmax
from avskernels.testing import assert_close

# (images, queries, classes, height, width, size)
CASES = {
    "minimal": (1, 1, 1, 1, 1, None),
    "no image": (0, 3, 4, 5, 5, None),
    "no query": (2, 0, 4, 5, 5, (7, 3)),
    "no pixel": (1, 3, 4, 0, 5, None),
    "no pixel wanted": (1, 3, 4, 5, 5, (0, 5)),
    "one below a vector": (1, 3, 15, 3, 5, None),
    "exact tile": (2, 4, 16, 8, 6, None),
    "tile + 1": (1, 5, 17, 7, 7, None),
    "odd primes": (2, 7, 67, 13, 11, None),
    "enlarged": (2, 5, 9, 7, 9, (28, 36)),
    "enlarged unevenly": (1, 3, 9, 7, 5, (23, 101)),
    "one pixel enlarged": (1, 3, 9, 1, 1, (5, 40)),
    "shrunk": (1, 4, 9, 50, 61, (17, 19)),
    "shrunk a little": (1, 4, 9, 20, 61, (19, 60)),
    "many queries": (1, 33, 40, 9, 8, None),
    "sqd": (2, 5, 71, 28, 28, (56, 56)),
}


def sample(images, queries, classes, height, width, size=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(images, queries, classes, generator=generator).softmax(-1)
    logits = torch.randn(images, queries, height, width, generator=generator) * 3
    return probs.to(dtype), logits.to(dtype), size


def oracle_volume(probs, logits, size, class_threshold=0.0, mask_threshold=0.0, sigmoid=True):
    """Scores [B, K, H, W] in float64, one query at a time, and the resize written out."""
    probs, masks = probs.double(), logits.double()
    height, width = size or logits.shape[2:]
    if size is not None and 0 not in masks.shape[2:]:
        for dim, count in ((2, height), (3, width)):
            length = masks.shape[dim]
            at = (torch.arange(count, dtype=torch.float64) + 0.5) * (length / max(count, 1)) - 0.5
            at = at.clamp(min=0)
            low = at.floor().long().clamp(max=length - 1)
            high = (low + 1).clamp(max=length - 1)
            share = (at - low).view([-1] + [1] * (3 - dim))
            masks = masks.index_select(dim, low) * (1 - share) + share * masks.index_select(
                dim, high
            )
    masks = 1 / (1 + (-masks).exp()) if sigmoid else masks
    volume = torch.zeros(len(probs), probs.shape[2], height, width, dtype=torch.float64)
    for n in range(probs.shape[1]):
        share = probs[:, n, :, None, None]
        mask = masks[:, n, None]
        volume += torch.where((share > class_threshold) & (mask > mask_threshold), share * mask, 0)
    return volume


def assert_labels(labels, volume):
    """Labels are the float64 ones unless the two best scores are within 1e-6 relative."""
    assert labels.dtype == torch.int64
    assert labels.shape == (volume.shape[0], *volume.shape[2:])
    expected = volume.argmax(1)
    best = volume.amax(1)
    chosen = volume.gather(1, labels.unsqueeze(1)).squeeze(1)
    wrong = (labels != expected) & (best - chosen > 1e-6 * best.abs())
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} labels differ"


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


def test_generic_checks():
    probs, logits, _ = sample(2, 3, 9, 7, 8)
    args = (probs, logits, 14, 13, 0.1, 0.4, True, True)
    opcheck("semantic_argmax", args)
    opcheck("semantic_argmax", (probs, logits, 7, 8, 0.1, 0.4, False, False))

    def scores(probs, logits):
        return semantic_argmax(probs, logits, size=(14, 13), return_scores=True)

    check_deterministic(scores, args[:2])
    check_layouts(scores, args[:2])
    check_compile(
        lambda p, m: semantic_argmax(p, m, size=(2 * m.shape[2], 9)),
        [sample(2, 3, 9, 7, 8)[:2], sample(1, 4, 6, 5, 9)[:2]],
    )


@pytest.mark.parametrize(
    ("probs", "masks", "size", "message"),
    [
        ((1, 2, 3), (1, 2, 4), (4, 4), "expected mask_logits [B, N, H, W], got [1, 2, 4]"),
        ((1, 3, 3), (1, 2, 4, 4), (4, 4), "expected class_probs [1, 2, K], got [1, 3, 3]"),
        ((1, 2, 0), (1, 2, 4, 4), (4, 4), "expected at least one class, got [1, 2, 0]"),
        ((1, 2, 3), (1, 2, 4, 4), (-1, 4), "expected a size of at least 0, got [-1, 4]"),
        (
            (1, 2, 3),
            (1, 2, 0, 4),
            (4, 4),
            "expected masks that are not empty, got [1, 2, 0, 4]",
        ),
    ],
)
def test_shape_errors(probs, masks, size, message):
    check_error(
        lambda p, m: semantic_argmax(p, m, size=size),
        (torch.zeros(probs), torch.zeros(masks)),
        f"semantic_argmax: {message}",
    )


def test_dtype_errors():
    check_error(
        semantic_argmax,
        (torch.zeros(1, 2, 3, dtype=torch.float64), torch.zeros(1, 2, 4, 4)),
        "semantic_argmax: expected class_probs of torch.float32, got torch.float64",
    )
    check_error(
        semantic_argmax,
        (torch.zeros(1, 2, 3, dtype=int), torch.zeros(1, 2, 4, 4, dtype=int)),
        "semantic_argmax: expected mask_logits of floating point, got torch.int64",
    )


def test_unknown_activation():
    with pytest.raises(ValueError, match="expected activation to be one of"):
        avskernels.semantic_argmax(*sample(1, 1, 1, 1, 1)[:2], activation="softmax")
