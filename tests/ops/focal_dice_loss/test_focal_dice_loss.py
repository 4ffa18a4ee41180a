# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from checks import check_error, opcheck
from ops.focal_dice_loss.cases import CASES, SETTINGS, oracle, public, sample

import avskernels
from avskernels.core.testing import assert_as_precise, assert_close
from avskernels.ops.focal_dice_loss import plain


def with_gradient(function, logits, *args, **settings):
    logits = logits.detach().requires_grad_()
    mask_loss, dice_loss = function(logits, *args, **settings)
    weights = torch.arange(1, mask_loss.numel() + 1, device=logits.device).view(mask_loss.shape)
    total = (weights * mask_loss).sum() + (dice_loss / weights).sum()
    grad = torch.zeros_like(logits)  # where nothing is matched, an oracle has no gradient
    if total.requires_grad:
        (grad,) = torch.autograd.grad(total, logits)
    return mask_loss.detach(), dice_loss.detach(), grad


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
    for one, other in zip(plain.forward(*args), expected, strict=True):
        assert_close(one, other.double())
    grads = torch.linspace(0.5, 1.5, 2 * args[2].numel()).view(2, *args[2].shape)
    args = (*grads, *args[:4], expected[2], *settings)
    expected = torch.ops.avskernels._focal_dice_loss_backward(*args)
    assert_close(plain.backward(*args), expected.double())


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


def test_autocast_leaves_precision_alone():
    logits, *args = sample(*CASES["odd primes"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = public(logits, *args)
    for one, other in zip(actual, public(logits, *args), strict=True):
        assert torch.equal(one, other)


def test_backward_operator():
    args = sample(*CASES["odd primes"])
    sums = torch.ops.avskernels.focal_dice_loss(*args, "bce", 0.3, 1.5)[2]
    grads = torch.rand(2, *args[2].shape)
    opcheck("_focal_dice_loss_backward", (*grads, *args, sums, "bce", 0.3, 1.5))
    message = "_focal_dice_loss_backward: expected sums [3, 7, 3], got [3, 7, 2]"
    wrong = (*grads, *args, sums[..., :2], "bce", 0.3, 1.5)
    check_error(torch.ops.avskernels._focal_dice_loss_backward, wrong, message)


def test_columns_out_of_range():
    logits, masks, columns, _ = sample(2, 4, 2, 1, 9, 9)
    columns[1, 2] = 2
    with pytest.raises(RuntimeError) as error:
        avskernels.focal_dice_loss(logits, masks, columns)
    assert str(error.value) == "focal_dice_loss: expected columns below 2, got 2"


def test_unknown_loss():
    with pytest.raises(ValueError, match=r"expected mask_loss to be one of .*, got 'l2'"):
        avskernels.focal_dice_loss(*sample(1, 1, 1, 1, 1, 1)[:3], mask_loss="l2")
