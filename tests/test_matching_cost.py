import functools
import math

import pytest
import torch
from checks import check_compile, check_deterministic, check_layouts, opcheck

import avskernels
from avskernels import MatchingWeights
from avskernels.matching_cost import _matching_cost_algebra
from avskernels.testing import assert_close

# (images, queries, frames, classes, targets, height, width)
CASES = {
    "minimal": (1, 1, 1, 1, 1, 1, 1),
    "no image": (0, 2, 1, 3, 2, 4, 4),
    "no query": (2, 0, 1, 3, 2, 4, 4),
    "no target": (2, 3, 1, 3, 0, 4, 4),
    "no pixel": (1, 2, 1, 3, 2, 0, 4),
    "one below a vector": (1, 3, 1, 2, 4, 3, 5),
    "exact vectors": (2, 4, 2, 3, 8, 16, 16),
    "vector + 1": (1, 5, 1, 3, 17, 1, 17),
    "more targets than queries": (2, 3, 2, 5, 40, 9, 7),
    "odd primes": (2, 7, 3, 7, 13, 11, 13),
    "several blocks": (1, 3, 1, 2, 2, 47, 61),
    "sqd": (2, 5, 5, 71, 2, 56, 56),
}
NAMES = (
    "class_logits",
    "boxes",
    "mask_logits",
    "target_labels",
    "target_boxes",
    "target_masks",
)


def sample(b, n, t, k, j, h, w, dtype=torch.float32, mask_dtype=torch.bool, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    masks = normal(b, j, t, h, w) > 0.3
    if mask_dtype.is_floating_point:
        masks = normal(b, j, t, h, w).sigmoid()
    return (
        (2 * normal(b, n, t, k)).to(dtype),
        normal(b, n, t, 4).sigmoid().to(dtype),
        (3 * normal(b, n, t, h, w)).to(dtype),
        torch.randint(0, k, (b, j), generator=generator),
        normal(b, j, t, 4).sigmoid().to(dtype),
        masks.to(mask_dtype),
    )


def options(b, n, t, k, j, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "num_targets": torch.randint(0, j + 1, (b,), generator=generator),
        "valid": torch.rand((b, j, t), generator=generator) < 0.7,
        "labelled": torch.rand((b, t), generator=generator) < 0.7,
    }


def oracle(tensors, weights, class_cost="focal", mask_cost="focal", alpha=0.25, gamma=2.0, **given):
    """Compute every cost on its own, in float64, from probabilities."""
    logits, boxes, masks, labels, target_boxes, target_masks = tensors
    images, queries, frames = masks.shape[:3]
    count = labels.shape[1]
    cost = torch.zeros(images, queries, count, dtype=torch.float64)
    one, zero = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)

    def losses(x):  # of truth 1 and of truth 0
        p, q = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(x))
        to_one, to_zero = torch.log1p(torch.exp(-x)), torch.log1p(torch.exp(x))
        return one * q**gamma * to_one, zero * p**gamma * to_zero

    def corners(box):
        cx, cy, w, h = box.tolist()
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    def giou(a, b):
        (ax, ay, au, av), (bx, by, bu, bv) = corners(a), corners(b)
        inter = max(0, min(au, bu) - max(ax, bx)) * max(0, min(av, bv) - max(ay, by))
        union = (au - ax) * (av - ay) + (bu - bx) * (bv - by) - inter
        hull = (max(au, bu) - min(ax, bx)) * (max(av, bv) - min(ay, by))
        return (inter / union if union else 0) - ((hull - union) / hull if hull else 0)

    for b in range(images):
        k = b % labels.shape[0]
        shown = [f for f in range(frames) if "labelled" not in given or given["labelled"][k, f]]
        for n in range(queries):
            for j in range(count):
                if "num_targets" in given and j >= given["num_targets"][k]:
                    cost[b, n, j] = math.inf
                    continue
                seen = [f for f in shown if "valid" not in given or given["valid"][k, j, f]]
                for f in seen:
                    x = logits[b, n, f].double()
                    if class_cost == "softmax":
                        value = -(x - x.logsumexp(0)).exp()[labels[k, j]]
                    else:
                        to_one, to_zero = losses(x[labels[k, j]])
                        value = to_one - to_zero
                    ours, theirs = boxes[b, n, f].double(), target_boxes[k, j, f].double()
                    value = weights.cls * value + weights.l1 * (ours - theirs).abs().sum()
                    cost[b, n, j] += (value - weights.giou * giou(ours, theirs)) / len(seen)
                x = masks[b, n, shown].double().flatten()
                t = target_masks[k, j, shown].double().flatten()
                if mask_cost == "focal":
                    to_one, to_zero = losses(x)
                    pixels = t * to_one + (1 - t) * to_zero
                else:
                    pixels = x.clamp(min=0) - x * t + torch.log1p(torch.exp(-x.abs()))
                p = x.sigmoid()
                dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
                cost[b, n, j] += weights.mask * pixels.sum() / max(1, len(x)) + weights.dice * dice
    return cost


@functools.cache
def sample_and_expected(case, dtype, mask_dtype):
    tensors, given = sample(*case, dtype=dtype, mask_dtype=mask_dtype), options(*case)
    given["weights"] = MatchingWeights(1.5, 2.5, 0.5, 3.0, 4.0)
    if dtype == torch.float64:
        given |= {"class_cost": "softmax", "mask_cost": "bce"}
    return tensors, given, oracle(tensors, **given)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
def test_matches_the_oracle(case, dtype, mask_dtype):
    tensors, given, expected = sample_and_expected(case, dtype, mask_dtype)
    cost = avskernels.matching_cost(*tensors, **given, backend="kernel")
    assert cost.dtype == dtype
    assert_close(cost, expected)


@pytest.mark.parametrize("case", ["odd primes", "several blocks", "more targets than queries"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ["portable", "avx2"], indirect=True)
def test_lower_levels_match_the_oracle(case, dtype, isa):
    tensors, given, expected = sample_and_expected(CASES[case], dtype, torch.bool)
    assert_close(avskernels.matching_cost(*tensors, **given), expected)


SETTINGS = [
    {"weights": (1, 0, 0, 0, 0)},
    {"weights": (0, 1, 0, 0, 0)},
    {"weights": (0, 0, 1, 0, 0)},
    {"weights": (0, 0, 0, 1, 0)},
    {"weights": (0, 0, 0, 0, 1)},
    {"weights": (0, 0, 0, 1, 0), "mask_cost": "bce"},
    {"weights": (0, 0, 0, 1, 1), "mask_cost": "bce"},
    {"weights": (1, 0, 0, 0, 0), "class_cost": "softmax"},
    {"alpha": 0.4, "gamma": 1.5},
    {"alpha": -1.0, "gamma": 0.0},
    {"gamma": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float32])
def test_settings(settings, mask_dtype):
    case = CASES["odd primes"]
    tensors = sample(*case, mask_dtype=mask_dtype)
    settings = {**settings, "weights": MatchingWeights(*settings.get("weights", (2, 5, 2, 5, 2)))}
    expected = oracle(tensors, **settings)
    assert_close(avskernels.matching_cost(*tensors, **settings), expected)
    reference = avskernels.matching_cost(*tensors, **settings, backend="reference")
    assert_close(reference, expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("names", [("focal", "bce"), ("softmax", "focal")])
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_the_version_for_other_devices(case, names, gamma):
    args = (*sample(*case), *options(*case).values(), 2.0, 5.0, 1.0, 4.0, 3.0, *names, 0.3, gamma)
    expected = torch.ops.avskernels.matching_cost(*args)
    assert_close(_matching_cost_algebra(*args), expected.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(dtype):
    tensors = sample(*CASES["odd primes"], dtype=dtype)
    cost = avskernels.matching_cost(*tensors)
    assert cost.dtype == torch.float32
    assert_close(cost, oracle(tensors, MatchingWeights()))


def test_stacked_layers_share_their_targets():
    case = CASES["exact vectors"]
    first, second = sample(*case), sample(*case, seed=1)
    given = options(*case)
    stacked = [torch.cat([a, b]) for a, b in zip(first[:3], second[:3], strict=True)]
    cost = avskernels.matching_cost(*stacked, *first[3:], **given)
    for layer, tensors in zip(cost.chunk(2), (first[:3], second[:3]), strict=True):
        assert torch.equal(layer, avskernels.matching_cost(*tensors, *first[3:], **given))


def test_terms_that_are_off_need_no_tensors():
    tensors = sample(*CASES["odd primes"])
    logits, boxes, masks, labels, target_boxes, target_masks = tensors
    full = avskernels.matching_cost(*tensors, weights=(2, 5, 2, 0, 0))
    detr = avskernels.matching_cost(logits, boxes, None, labels, target_boxes, None)
    assert torch.equal(full, detr)
    full = avskernels.matching_cost(*tensors, weights=(2, 0, 0, 5, 2))
    mask2former = avskernels.matching_cost(logits, None, masks, labels, None, target_masks)
    assert torch.equal(full, mask2former)


def test_sampled_points():
    tensors = list(sample(*CASES["odd primes"], mask_dtype=torch.float32))
    whole = avskernels.matching_cost(*tensors)
    tensors[2], tensors[5] = tensors[2].flatten(3), tensors[5].flatten(3)
    assert_close(avskernels.matching_cost(*tensors), whole.double())


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("mask_cost", ["focal", "bce"])
@pytest.mark.parametrize("level", [100.0, -100.0])
def test_saturated_logits_and_full_masks(mask_dtype, mask_cost, level):
    tensors = list(sample(1, 2, 1, 2, 3, 5, 7, mask_dtype=mask_dtype))
    tensors[0].fill_(level)
    tensors[2].fill_(level)
    tensors[5][:, 0], tensors[5][:, 1] = 0, 1
    cost = avskernels.matching_cost(*tensors, mask_cost=mask_cost)
    assert cost.isfinite().all()
    assert_close(cost, oracle(tensors, MatchingWeights(), mask_cost=mask_cost))


def test_degenerate_boxes():
    boxes = torch.tensor([[0.5, 0.5, 0, 0], [0.2, 0.2, 0, 0], [0.5, 0.5, 0.4, 0.4], [0, 0, 0, 1]])
    boxes = boxes.view(1, 4, 1, 4)
    weights = MatchingWeights(0, 0, 1, 0, 0)
    cost = avskernels.matching_cost(None, boxes, None, None, boxes, None, weights=weights)[0]
    assert cost.isfinite().all()
    assert torch.equal(cost.diagonal(), torch.tensor([0.0, 0.0, -1.0, 0.0]))
    assert cost[0, 1] == 1
    wrong = boxes * torch.tensor([1, 1, -1, 1])
    assert avskernels.matching_cost(None, wrong, None, None, boxes, None).isfinite().all()


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_prediction_is_its_own_affair(position, value):
    tensors = list(sample(2, 4, 2, 3, 5, 9, 9))
    expected = avskernels.matching_cost(*tensors)
    tensors[position][1, 2, 0] = value
    cost = avskernels.matching_cost(*tensors)
    others = [n for n in range(4) if n != 2]
    assert torch.equal(cost[0], expected[0])
    assert torch.equal(cost[1, others], expected[1, others])
    assert not (cost[1, 2] < math.inf).any()
    columns = avskernels.linear_assignment(cost)
    assert columns[1, 2] == -1
    assert (columns[1, others] >= 0).all()


def test_padding_does_not_matter():
    case = CASES["exact vectors"]
    tensors = sample(*case)
    num_targets = torch.tensor([3, 0])
    expected = avskernels.matching_cost(*tensors, num_targets=num_targets)
    assert expected[0, :, :3].isfinite().all()
    assert (expected[0, :, 3:] == math.inf).all()
    assert (expected[1] == math.inf).all()
    tensors[3][:, 3:] = -7
    tensors[4][1] = math.nan
    assert torch.equal(avskernels.matching_cost(*tensors, num_targets=num_targets), expected)


def test_generic_checks():
    tensors = sample(*CASES["odd primes"])
    given = options(*CASES["odd primes"])
    args = (*tensors, *given.values(), 2.0, 5.0, 1.0, 4.0, 3.0, "softmax", "bce", 0.3, 1.0)
    opcheck("matching_cost", args)
    opcheck("matching_cost", (*[None] * 2, tensors[2], *[None] * 2, tensors[5], *args[6:]))
    named = ("num_targets", "valid", "labelled")

    def public(*tensors):
        given = dict(zip(named, tensors[6:], strict=True))
        return avskernels.matching_cost(*tensors[:6], **given, gamma=1.5)

    check_deterministic(public, args[:9])
    check_layouts(public, args[:9])
    check_compile(avskernels.matching_cost, [tensors, sample(*CASES["vector + 1"])])


def test_autocast_leaves_precision_alone():
    tensors = sample(*CASES["odd primes"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = avskernels.matching_cost(*tensors)
    assert torch.equal(cost, avskernels.matching_cost(*tensors))
