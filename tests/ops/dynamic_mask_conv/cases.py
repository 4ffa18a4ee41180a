# SPDX-License-Identifier: Apache-2.0
"""Samples of dynamic_mask_conv, its oracle, and what every operator is checked on."""

from itertools import pairwise

import torch

from avskernels import dynamic_mask_conv
from avskernels.ops.dynamic_mask_conv.plain import num_params

OP = "dynamic_mask_conv"

# (images, queries, channels, height, width, hidden)
CASES = {
    "minimal": (1, 1, 1, 1, 1, (8, 8)),
    "no query": (2, 0, 8, 5, 5, (8, 8)),
    "no image": (0, 3, 8, 5, 5, (8, 8)),
    "no pixel": (1, 3, 8, 0, 5, (8, 8)),
    "one below a vector": (1, 2, 8, 3, 5, (8, 8)),
    "exact tile": (1, 2, 8, 8, 6, (8, 8)),
    "tile + 1": (1, 2, 8, 7, 7, (8, 8)),
    "odd primes": (2, 3, 7, 13, 11, (5, 3)),
    "several blocks": (1, 2, 8, 41, 43, (8, 8)),
    "plain filter": (2, 5, 9, 6, 7, ()),
    "one wide layer": (1, 2, 6, 5, 9, (17,)),
    "three layers": (1, 2, 4, 5, 9, (4, 9, 2)),
    "two groups of queries": (2, 11, 3, 5, 12, (8, 8)),
    "sqd": (2, 5, 256, 14, 14, (8, 8)),
}


def sample(
    images,
    queries,
    channels,
    height,
    width,
    hidden=(8, 8),
    dtype=torch.float32,
    points=True,
    seed=0,
):
    """Positional arguments of the operator; masks are of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    features = normal(images, channels, height, width).to(dtype)
    params = normal(images, queries, num_params(channels, hidden, points)) / 3
    reference_points = (normal(images, queries, 2) * 2 + 1).to(wide) if points else None
    scale = (normal(images, queries).abs() / 8).to(wide) if points else None
    return features, params.to(dtype), reference_points, scale, None, hidden, 2.0, True


def oracle(features, params, points, scale, image_index, hidden, stride, coords_first):
    """One query at a time, one matrix product a layer, in float64."""
    features, params = features.double(), params.double()
    channels, height, width = features.shape[1:]
    masks = torch.empty(*params.shape[:-1], height, width, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in params.shape[:-1])).reshape(
        -1, params.dim() - 1
    ):
        query = tuple(index.tolist())
        image = query[0] if image_index is None else int(image_index[query])
        rows = features[image].reshape(channels, -1)
        if points is not None:
            centre = torch.tensor(
                [[x, y] for y in range(height) for x in range(width)], dtype=torch.float64
            ).reshape(-1, 2)
            relative = (points[query].double() - (centre * stride + stride / 2)).T
            relative = relative * (1 if scale is None else scale[query].double())
            rows = torch.cat([relative, rows] if coords_first else [rows, relative])
        weights, biases = params[query], []
        widths = [len(rows), *hidden, 1]
        position = sum(a * b for a, b in pairwise(widths))
        biases, weights = weights[position:], weights[:position]
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            rows = rows.clamp(min=0) if layer else rows
            rows = weights[: inputs * outputs].view(outputs, inputs) @ rows
            rows = rows + biases[:outputs, None]
            weights, biases = weights[inputs * outputs :], biases[outputs:]
        masks[query] = rows.view(height, width)
    return masks


def operator(*args):
    return torch.ops.avskernels.dynamic_mask_conv(*args)


def plain(features, params, points, scale, image_index, hidden, stride, coords_first):
    return dynamic_mask_conv(
        features,
        params,
        hidden=hidden,
        reference_points=points,
        coord_scale=1.0 if scale is None else scale,
        image_index=image_index,
        stride=stride,
        coords="first" if coords_first else "last",
        backend="reference",
    )


def arguments(dtype):
    return sample(2, 5, 9, 17, 19, dtype=dtype)


GENERIC = [sample(2, 3, 5, 7, 8, (4, 3)), sample(1, 3, 8, 40, 41)]


def with_points(features, params, points):
    return dynamic_mask_conv(features, params, reference_points=points)


def filtered(features, params, points):
    return dynamic_mask_conv(features, params, hidden=(), reference_points=points)


COMPILED = [
    (function, [sample(2, 3, 8, 5, 6, hidden)[:3], sample(3, 4, 8, 7, 5, hidden)[:3]])
    for function, hidden in ((with_points, (8, 8)), (filtered, ()))
]


def with_scale(scale):
    def masks(features, params, points):
        return dynamic_mask_conv(
            features, params, hidden=(3, 2), reference_points=points, stride=1.5, coord_scale=scale
        )

    return masks


EXACT = sample(2, 2, 3, 3, 5, (3, 2), torch.float64)
GRADCHECK = [(with_scale(scale), EXACT[:3]) for scale in (1.0, EXACT[3])]


def wrong(**changes):
    """Arguments of which some are others."""
    names = "features", "params", "points", "scale", "image_index", "hidden", "stride", "first"
    return tuple((dict(zip(names, GENERIC[0], strict=True)) | changes).values())


LISTED = torch.zeros(3, dtype=torch.int64)
ERRORS = [
    (
        "features",
        wrong(features=torch.zeros(3, 4, 5)),
        "expected features [B, C, H, W], got [3, 4, 5]",
    ),
    (
        "features' dtype",
        wrong(features=torch.zeros(2, 5, 7, 8, dtype=torch.int32)),
        "expected features of floating point, got torch.int32",
    ),
    (
        "no channel",
        wrong(features=torch.zeros(2, 0, 7, 8)),
        "expected at least one channel, got [2, 0, 7, 8]",
    ),
    (
        "params of other images",
        wrong(params=torch.zeros(1, 3, 51)),
        "expected params [Q, P] or [2, Q, P], got [1, 3, 51]",
    ),
    (
        "params of other layers",
        wrong(params=torch.zeros(2, 3, 7)),
        "expected params [2, Q, 51], got [2, 3, 7]",
    ),
    (
        "params of coordinates",
        wrong(points=None, scale=None),
        "expected params [2, Q, 43], got [2, 3, 51]",
    ),
    (
        "params' dtype",
        wrong(params=torch.zeros(2, 3, 51, dtype=torch.float64)),
        "expected params of torch.float32, got torch.float64",
    ),
    (
        "reference_points",
        wrong(points=torch.zeros(2, 2, 2)),
        "expected reference_points [2, 3, 2], got [2, 2, 2]",
    ),
    (
        "coord_scale's dtype",
        wrong(scale=torch.zeros(2, 3, dtype=torch.float64)),
        "expected coord_scale of torch.float32, got torch.float64",
    ),
    ("hidden", wrong(hidden=(4, 0)), "expected hidden widths of at least 1, got [4, 0]"),
    (
        "image_index beside images",
        wrong(image_index=LISTED),
        "expected params [Q, 51], got [2, 3, 51]",
    ),
    (
        "no image_index",
        wrong(params=torch.zeros(3, 51), points=torch.zeros(3, 2), scale=None),
        "expected params [2, Q, 51], got [3, 51]",
    ),
    (
        "image_index' dtype",
        wrong(params=torch.zeros(3, 43), points=None, scale=None, image_index=LISTED.float()),
        "expected image_index of torch.int64, got torch.float32",
    ),
    (
        "image_index of other queries",
        wrong(params=torch.zeros(4, 43), points=None, scale=None, image_index=LISTED),
        "expected image_index [4], got [3]",
    ),
]
