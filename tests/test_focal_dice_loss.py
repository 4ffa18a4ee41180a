import pytest
import torch
from checks import (
    check_compile,
    check_deterministic,
    check_error,
    check_layouts,
    opcheck,
)

import avskernels
from avskernels.focal_dice_loss import (
    _focal_dice_loss_algebra,
    _focal_dice_loss_backward_algebra,
)
from avskernels.testing import assert_as_precise, assert_close

# (images, queries, targets, frames, height, width)
CASES = {
    "minimal": (1, 1, 1, 1, 1, 1),
    "no image": (0, 2, 1, 1, 4, 4),
    "no query": (2, 0, 1, 1, 4, 4),
    "no target": (2, 3, 0, 1, 4, 4),
    "no pixel": (1, 2, 2, 1, 0, 4),
    "one below a vector": (1, 3, 4, 1, 3, 5),
    "exact vectors": (2, 4, 3, 2, 16, 16),
    "vector + 1": (1, 5, 2, 1, 1, 17),
    "odd primes": (3, 7, 5, 3, 11, 13),
    "several blocks": (1, 3, 2, 1, 47, 61),
    "sqd": (4, 5, 3, 5, 56, 56),
}


def sample(b, n, j, t, h, w, dtype=torch.float32, mask_dtype=torch.bool, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(b, n, t, h, w, generator=generator, dtype=torch.float64)
    masks = torch.randn(b, j, t, h, w, generator=generator, dtype=torch.float64)
    masks = masks.sigmoid() if mask_dtype.is_floating_point else masks > 0.3
    columns = torch.full((b, n), -1)
    for image in range(b):
        rows = torch.randperm(n, generator=generator)[: min(n, j)]
        columns[image, rows] = torch.randperm(j, generator=generator)[: len(rows)]
    labelled = torch.rand(b, t, generator=generator) < 0.7
    return logits.to(dtype), masks.to(mask_dtype), columns, labelled


def oracle(logits, masks, columns, labelled, mask_loss="focal", alpha=0.25, gamma=2.0):
    """Compute one pair at a time in float64, from probabilities."""
    one, zero = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    losses = []
    for b in range(columns.shape[0]):
        k = b % masks.shape[0]
        for n in range(columns.shape[1]):
            if columns[b, n] < 0:
                losses.append(torch.zeros(2, dtype=torch.float64))
                continue
            shown = slice(None) if labelled is None else labelled[k].nonzero().flatten()
            x = logits[b, n, shown].double().flatten()
            t = masks[k, columns[b, n], shown].double().flatten()
            p, q = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(x))
            to_one, to_zero = torch.log1p(torch.exp(-x)), torch.log1p(torch.exp(x))
            if mask_loss == "focal":
                to_one, to_zero = one * q**gamma * to_one, zero * p**gamma * to_zero
            pixels = (t * to_one + (1 - t) * to_zero).sum() / max(1, len(x))
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            losses.append(torch.stack([pixels, dice]))
    stacked = torch.stack(losses) if losses else torch.zeros(0, 2, dtype=torch.float64)
    return stacked.view(*columns.shape, 2).unbind(-1)


def with_gradient(function, logits, *args, **settings):
    logits = logits.detach().requires_grad_()
    mask_loss, dice_loss = function(logits, *args, **settings)
    weights = torch.arange(1, mask_loss.numel() + 1, device=logits.device).view(mask_loss.shape)
    total = (weights * mask_loss).sum() + (dice_loss / weights).sum()
    grad = torch.zeros_like(logits)  # where nothing is matched, an oracle has no gradient
    if total.requires_grad:
        (grad,) = torch.autograd.grad(total, logits)
    return mask_loss.detach(), dice_loss.detach(), grad


def public(logits, masks, columns, labelled, **settings):
    return avskernels.focal_dice_loss(logits, masks, columns, labelled=labelled, **settings)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"], indirect=True)
def test_matches_the_oracle(case, dtype, mask_dtype, isa):
    logits, *args = sample(*case, dtype=dtype, mask_dtype=mask_dtype)
    actual = with_gradient(public, logits, *args, backend="kernel")
    expected = with_gradient(oracle, logits.double(), *args)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        assert_close(one, other)


SETTINGS = [
    {"mask_loss": "bce"},
    {"alpha": 0.4, "gamma": 1.5},
    {"alpha": -1.0, "gamma": 0.0},
    {"gamma": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float64])
def test_settings(settings, mask_dtype):
    logits, masks, columns, _ = sample(*CASES["odd primes"], torch.float64, mask_dtype)
    expected = with_gradient(oracle, logits, masks, columns, None, **settings)
    actual = with_gradient(public, logits, masks, columns, None, **settings)
    reference = with_gradient(public, logits, masks, columns, None, **settings, backend="reference")
    for one, two, other in zip(actual, reference, expected, strict=True):
        assert_close(one, other)
        assert_close(two, other)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("settings", [("bce", 0.25, 2.0), ("focal", 0.4, 1.5)], ids=str)
def test_the_version_for_other_devices(case, settings):
    args = (*sample(*case), *settings)
    expected = torch.ops.avskernels.focal_dice_loss(*args)
    for one, other in zip(_focal_dice_loss_algebra(*args), expected, strict=True):
        assert_close(one, other.double())
    grads = torch.linspace(0.5, 1.5, 2 * args[2].numel()).view(2, *args[2].shape)
    args = (*grads, *args[:4], expected[2], *settings)
    expected = torch.ops.avskernels._focal_dice_loss_backward(*args)
    assert_close(_focal_dice_loss_backward_algebra(*args), expected.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    logits, *args = sample(*CASES["odd primes"], dtype=dtype)
    actual = with_gradient(public, logits, *args)
    same = with_gradient(public, logits, *args, backend="reference")
    expected = with_gradient(oracle, logits.double(), *args)
    assert actual[0].dtype == actual[1].dtype == torch.float32
    assert_close(actual[0], expected[0])
    assert_close(actual[1], expected[1])
    assert_as_precise(actual[2], same[2], expected[2])


@pytest.mark.parametrize("settings", [{}, *SETTINGS], ids=str)
def test_gradcheck(settings):
    logits, *args = sample(2, 3, 2, 2, 3, 7, torch.float64, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: tuple(public(x, *args, **settings)), (logits.requires_grad_(),)
    )


@pytest.mark.parametrize("level", [100.0, -100.0])
@pytest.mark.parametrize("mask_loss", ["focal", "bce"])
def test_saturated_logits_and_full_masks(level, mask_loss):
    logits, masks, _, _ = sample(1, 3, 3, 1, 5, 7)
    logits.fill_(level)
    masks[:, 0], masks[:, 1] = False, True
    args = masks, torch.arange(3).unsqueeze(0), None
    actual = with_gradient(public, logits, *args, mask_loss=mask_loss)
    expected = with_gradient(oracle, logits.double(), *args, mask_loss=mask_loss)
    for one, other in zip(actual, expected, strict=True):
        assert one.isfinite().all()
        assert_close(one, other)


def test_unmatched_predictions_get_nothing():
    logits, masks, columns, _ = sample(2, 6, 2, 1, 9, 9)
    columns[1] = -1
    logits[1] = torch.nan
    logits[0, columns[0] < 0] = torch.nan
    mask_loss, dice_loss, grad = with_gradient(public, logits, masks, columns, None)
    matched = columns >= 0
    assert (mask_loss[~matched] == 0).all()
    assert (dice_loss[~matched] == 0).all()
    assert (grad[~matched] == 0).all()
    assert (mask_loss[matched] > 0).all()
    assert grad[matched].abs().sum() > 0


def test_several_predictions_may_share_a_target():
    logits, masks, _, labelled = sample(2, 6, 2, 2, 9, 9)
    args = masks, torch.tensor([[0, 0, 1, 0, 1, -5]]).repeat(2, 1), labelled
    for one, other in zip(public(logits, *args), oracle(logits, *args), strict=True):
        assert_close(one, other)


def test_stacked_layers_share_their_targets():
    logits, masks, columns, labelled = sample(2, 4, 3, 2, 9, 9)
    stacked = public(torch.cat([logits, -logits]), masks, columns.repeat(2, 1), labelled)
    for layer, x in enumerate((logits, -logits)):
        for whole, part in zip(stacked, public(x, masks, columns, labelled), strict=True):
            assert torch.equal(whole.chunk(2)[layer], part)


def test_generic_checks():
    logits, masks, columns, labelled = sample(*CASES["odd primes"])
    args = (logits, masks, columns, labelled, "focal", 0.3, 1.5)
    op = torch.ops.avskernels.focal_dice_loss
    opcheck("focal_dice_loss", (logits.clone().requires_grad_(), *args[1:]))
    check_deterministic(lambda *a: op(*a)[:2], args)
    check_layouts(lambda *a: op(*a)[:2], args)
    check_compile(public, [args[:4], sample(*CASES["vector + 1"])])
    sums = op(*args)[2]
    grads = torch.rand(2, *columns.shape)
    opcheck("_focal_dice_loss_backward", (*grads, *args[:4], sums, "bce", 0.3, 1.5))


def test_autocast_leaves_precision_alone():
    logits, *args = sample(*CASES["odd primes"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = public(logits, *args)
    for one, other in zip(actual, public(logits, *args), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("position", "tensor", "message"),
    [
        (0, torch.zeros(2, 3, 4), "expected mask_logits [B, N, T, ...], got [2, 3, 4]"),
        (
            0,
            torch.zeros(2, 4, 1, 9, 9).long(),
            "expected mask_logits of floating point, got torch.int64",
        ),
        (
            1,
            torch.zeros(2, 2, 1, 9, 8),
            "expected target_masks [B, J, 1, 9, 9], got [2, 2, 1, 9, 8]",
        ),
        (2, torch.zeros(2, 3).long(), "expected columns [2, 4], got [2, 3]"),
        (2, torch.zeros(2, 4), "expected columns of torch.int64, got torch.float32"),
        (3, torch.zeros(2, 2).bool(), "expected labelled [2, 1], got [2, 2]"),
        (
            1,
            torch.zeros(3, 2, 1, 9, 9),
            "expected a number of target images that divides 2, got 3",
        ),
    ],
)
def test_errors(position, tensor, message):
    args = list(sample(2, 4, 2, 1, 9, 9))
    args[position] = tensor
    args += ["focal", 0.25, 2.0]
    check_error(torch.ops.avskernels.focal_dice_loss, args, f"focal_dice_loss: {message}")


def test_columns_out_of_range():
    logits, masks, columns, _ = sample(2, 4, 2, 1, 9, 9)
    columns[1, 2] = 2
    with pytest.raises(RuntimeError) as error:
        avskernels.focal_dice_loss(logits, masks, columns)
    assert str(error.value) == "focal_dice_loss: expected columns below 2, got 2"


def test_unknown_loss():
    with pytest.raises(ValueError, match=r"expected mask_loss to be one of .*, got 'l2'"):
        avskernels.focal_dice_loss(*sample(1, 1, 1, 1, 1, 1)[:3], mask_loss="l2")
