"""The passes of tpavi over the map: what they compute in plain torch, and their results' shapes."""

import torch


def scores_and_sums(visual, keys, offsets):
    """Return key . x + offset of every pixel, and the sum of each frame's pixels."""
    scores = torch.bmm(keys, visual.flatten(2).to(keys.dtype))
    if offsets is not None:
        scores += offsets.unsqueeze(2)
    return scores, visual.sum((3, 4), dtype=keys.dtype).mT.contiguous()


@torch.library.register_fake("avskernels::_tpavi_scores")
def _scores_fake(visual, keys, offsets):
    batch, channels, frames, height, width = visual.shape
    return (
        keys.new_empty(batch, keys.shape[1], frames * height * width),
        keys.new_empty(batch, frames, channels),
    )


def scores_and_sums_backward_(grad_visual, visual, keys, grad_scores, grad_sums):
    """Add to ``grad_visual`` what goes through scores and sums; return the keys' gradient."""
    through_scores = torch.bmm(keys.mT, grad_scores).view_as(visual)
    grad_visual.add_(through_scores.add_(grad_sums.mT[:, :, :, None, None]))
    return torch.bmm(grad_scores, visual.flatten(2).to(keys.dtype).mT)


@torch.library.register_fake("avskernels::_tpavi_scores_backward")
def _scores_backward_fake(grad_visual, visual, keys, grad_scores, grad_sums):
    return keys.new_empty(keys.shape)


def _mixed(visual, weights, values, shift):
    return torch.baddbmm(visual.flatten(2).to(shift.dtype) + shift.unsqueeze(1), values.mT, weights)


def fuse(visual, weights, values, shift, norm_weight, norm_bias, norm_eps):
    """Add the factored y to the map and normalise each pixel over its channels."""
    mixed = _mixed(visual, weights, values, shift)
    fused = visual.new_empty(visual.shape)
    if norm_weight is None:
        fused.flatten(2).copy_(mixed)
        return fused, shift.new_empty(len(visual), 0), shift.new_empty(len(visual), 0)
    mean = mixed.mean(1, keepdim=True)
    rstd = (mixed.sub_(mean).square().mean(1, keepdim=True) + norm_eps).rsqrt()
    mixed.mul_(rstd).mul_(norm_weight.unsqueeze(1)).add_(norm_bias.unsqueeze(1))
    fused.flatten(2).copy_(mixed)
    return fused, mean.squeeze(1), rstd.squeeze(1)


@torch.library.register_fake("avskernels::_tpavi_fuse")
def _fuse_fake(visual, weights, values, shift, norm_weight, norm_bias, norm_eps):
    batch, _, positions = weights.shape
    normalised = 0 if norm_weight is None else positions
    return (
        visual.new_empty(visual.shape),
        weights.new_empty(batch, normalised),
        weights.new_empty(batch, normalised),
    )


def fuse_backward(grad, visual, weights, values, shift, norm_weight, mean, rstd):
    """Return the gradients of :func:`fuse`, for the map only what passes the addition."""
    grads = grad.flatten(2).to(shift.dtype)
    grad_norm_weight = grad_norm_bias = torch.zeros_like(shift)
    if norm_weight is not None:
        normalised = _mixed(visual, weights, values, shift)
        normalised.sub_(mean.unsqueeze(1)).mul_(rstd.unsqueeze(1))
        grad_norm_weight, grad_norm_bias = (grads * normalised).sum((0, 2)), grads.sum((0, 2))
        grads = grads * norm_weight.unsqueeze(1)
        along = (grads * normalised).mean(1, keepdim=True)
        grads -= grads.mean(1, keepdim=True) + normalised.mul_(along)
        grads *= rstd.unsqueeze(1)
    grad_visual = visual.new_empty(visual.shape)
    grad_visual.flatten(2).copy_(grads)
    return (
        grad_visual,
        torch.bmm(values, grads),
        torch.bmm(weights, grads.mT),
        grads.sum((0, 2)),
        grad_norm_weight,
        grad_norm_bias.clone(),
    )


@torch.library.register_fake("avskernels::_tpavi_fuse_backward")
def _fuse_backward_fake(grad, visual, weights, values, shift, norm_weight, mean, rstd):
    return (
        visual.new_empty(visual.shape),
        weights.new_empty(weights.shape),
        values.new_empty(values.shape),
        *(shift.new_empty(shift.shape) for _ in range(3)),
    )
