# SPDX-License-Identifier: Apache-2.0
"""What dynamic_mask_conv is known to go wrong on, and the conventions of published heads."""

import pytest
import torch
from checks import assert_bit_equal, in_double, run_with_grads
from ops.dynamic_mask_conv.cases import operator, oracle, sample

from avskernels import dynamic_mask_conv
from avskernels.ops.dynamic_mask_conv.operator import OPERATOR
from avskernels.testing import assert_close


@pytest.mark.parametrize("hidden", [(8, 8), ()])
def test_query_list_is_the_batch_form_in_another_order(hidden, isa):
    features, params, points, scale, *_ = sample(3, 4, 6, 9, 10, hidden, torch.float64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    listed = [tensor.flatten(0, 1)[order] for tensor in (params, points, scale)]
    image_index = torch.arange(3).repeat_interleave(4)[order]
    batch, batch_grads = run_with_grads(
        lambda f, p, r: operator(f, p, r, scale, None, hidden, 2.0, True).flatten(0, 1)[order],
        (features, params, points),
    )
    lists, list_grads = run_with_grads(
        lambda f, p, r: operator(f, p, r, listed[2], image_index, hidden, 2.0, True),
        (features, *listed[:2]),
    )
    assert_close(lists[0], batch[0], torch.float64)
    assert_close(list_grads[0], batch_grads[0], torch.float64)
    for one, other in zip(list_grads[1:], batch_grads[1:], strict=True):
        assert_close(one, other.flatten(0, 1)[order], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("points", [True, False], ids=["coordinates", "no coordinates"])
def test_plain_filter_is_a_matrix_product_of_the_blas(points, dtype, monkeypatch):
    args = sample(2, 5, 9, 6, 7, (), dtype, points)
    expected = oracle(*args), run_with_grads(operator, in_double(args))[1]
    monkeypatch.setattr(OPERATOR, "overload", None)  # has no part in this

    def plain(features, params, points):
        return dynamic_mask_conv(
            features,
            params,
            hidden=(),
            reference_points=points,
            coord_scale=1.0 if points is None else args[3],
            stride=2,
            coords="first",
        )

    masks, grads = run_with_grads(plain, args[:3])
    assert_close(masks[0], expected[0], dtype)
    for one, other in zip(grads, expected[1], strict=False):
        size = other.abs().max()
        assert_close(one / size, other / size, dtype)


def test_query_list_may_leave_images_out():
    features, params, points, *_ = sample(3, 2, 4, 5, 5)
    arguments = (params[0], points[0], None, torch.tensor([2, 2]), (8, 8), 4.0, False)
    masks, grads = run_with_grads(operator, (features, *arguments))
    assert_close(masks[0], oracle(features, *arguments))
    assert not grads[0][:2].any() and grads[0][2].any()
    nobody = torch.tensor([], dtype=torch.int64)
    empty = operator(features, params[0, :0, :5], None, None, nobody, (), 4.0, False)
    assert empty.shape == (0, 5, 5)


def test_features_may_be_every_other_channel(isa):
    # Planes are contiguous, their distance is not their size; more than a tile of pixels each.
    args = sample(2, 3, 8, 9, 23)
    features = torch.full((4, 16, 9, 23), 7.0)[::2, ::2].copy_(args[0])
    assert_bit_equal(operator(features, *args[1:]), operator(*args))


def test_params_may_be_a_strided_slice(isa):
    args = sample(2, 3, 8, 5, 7)
    wide = torch.randn(2, 6, 400)
    wide[:, ::2, 20 : 20 + args[1].shape[-1]] = args[1]
    params = wide[:, ::2, 20 : 20 + args[1].shape[-1]]
    assert_bit_equal(operator(args[0], params, *args[2:]), operator(*args))


@pytest.mark.parametrize("origin", [0.0, 1e4])
def test_far_coordinates(origin, isa):
    # Half precision too: the difference of two pixel positions is taken in float32.
    for dtype in (torch.float32, torch.bfloat16):
        features, params, points, *_ = sample(1, 3, 8, 6, 50, dtype=dtype)
        points = (points + origin).float()
        args = (features, params, points, None, None, (8, 8), 4.0, False)
        expected = oracle(*args)
        size = expected.abs().max()
        assert_close(operator(*args) / size, expected / size, dtype)


def test_relu_has_no_gradient_at_zero(isa):
    features = torch.ones(1, 1, 3, 4, requires_grad=True)
    # Hidden units x - 1 (exactly 0) and x; the mask is their sum.
    params = torch.tensor([[[1.0, 1.0, 1.0, 1.0, -1.0, 0.0, 0.0]]], requires_grad=True)
    masks = operator(features, params, None, None, None, (2,), 4.0, False)
    grad_features, grad_params = torch.autograd.grad(masks.sum(), (features, params))
    assert torch.equal(grad_features, torch.ones(1, 1, 3, 4))
    assert grad_params.flatten().tolist() == [0, 12, 0, 12, 0, 12, 12]


@pytest.mark.parametrize("where", [slice(None), 0], ids=["everywhere", "in one weight"])
@pytest.mark.parametrize("hidden", [(8, 8), (5,)])
def test_nan_filter_poisons_only_its_own_query(hidden, where, isa):
    args = sample(1, 3, 8, 9, 10, hidden)
    clean, (_, clean_grad, _) = run_with_grads(operator, args)
    poisoned = args[1].clone()
    poisoned[0, 1, where] = torch.nan
    masks, (_, grad, _) = run_with_grads(operator, (args[0], poisoned, *args[2:]))
    assert masks[0][0, 1].isnan().all()
    others = [0, 2]
    assert_bit_equal(masks[0][0, others], clean[0][0, others])
    assert_bit_equal(grad[0, others], clean_grad[0, others])


def test_conventions_of_published_heads():
    features, params, points, *_ = sample(1, 2, 8, 4, 5)
    sizes = torch.tensor([[64.0, 128.0]])
    # AdelaiDet: coordinates in front, divided by the size of interest; the weights move along.
    weight = params[..., :80].view(1, 2, 8, 10)
    moved = torch.cat([weight[..., 2:], weight[..., :2]], -1).flatten(2)
    assert_close(
        dynamic_mask_conv(
            features, params, reference_points=points, coords="first", coord_scale=1 / sizes
        ),
        dynamic_mask_conv(
            features,
            torch.cat([moved, params[..., 80:]], -1),
            reference_points=points,
            coord_scale=1 / sizes,
        ).double(),
    )
    assert_close(
        dynamic_mask_conv(features, params, reference_points=points, coord_scale=0.25, stride=8),
        oracle(features, params, points, torch.full((1, 2), 0.25), None, (8, 8), 8.0, False),
    )


@pytest.mark.parametrize("hidden", [(8, 8), ()])
def test_autocast_runs_in_float32(hidden):
    features, params, points, *_ = sample(1, 2, 8, 4, 5, hidden)
    features, points = features.bfloat16(), points + 1000
    with torch.autocast("cpu", torch.bfloat16):
        masks = dynamic_mask_conv(features, params, hidden=hidden, reference_points=points)
    expected = oracle(features, params, points, None, None, hidden, 4.0, False)
    assert masks.dtype == torch.float32
    assert_close(masks / 1000, expected / 1000)


def test_image_that_is_not_there(isa):
    args = (torch.zeros(2, 1, 3, 3), torch.zeros(2, 2), None, None, torch.tensor([0, 2]), (), 4.0)
    with pytest.raises(RuntimeError) as error:
        operator(*args, False)
    assert str(error.value) == "dynamic_mask_conv: expected image_index in 0..1, got 0..2"
