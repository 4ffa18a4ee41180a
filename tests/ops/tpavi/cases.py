# SPDX-License-Identifier: Apache-2.0
"""Samples of tpavi, its oracle, and what every operator is checked on."""

import torch
from checks import assert_near

import avskernels
from avskernels.core.specification import SPECIFICATIONS

OP = "tpavi"

# (batch, channels, inner channels, frames, height, width)
CASES = {
    "minimal": (1, 1, 1, 1, 1, 2),
    "empty batch": (0, 4, 2, 3, 3, 3),
    "no pixels": (2, 4, 2, 3, 0, 3),
    "one pixel a frame": (2, 6, 3, 2, 1, 1),
    "one below a vector": (2, 15, 7, 1, 3, 5),
    "exact tile": (1, 16, 8, 8, 8, 8),
    "tile + 1": (2, 17, 9, 9, 1, 29),
    "odd primes": (3, 37, 19, 5, 7, 11),
    "several blocks": (1, 259, 3, 2, 2, 331),
}
MODES = ("dot", "embedded", "gaussian", "concatenate")
DTYPES = [torch.float32, torch.float64]
NAMES = [each.name for each in SPECIFICATIONS[OP].arguments if each.is_tensor]


def sample(case, dtype=torch.float32, seed=0, norms=True):
    """Return all tensor arguments by name."""
    batch, channels, inner, frames, height, width = case
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, size=1.0, shift=0.0):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (size * values + shift).to(dtype)

    down, up = channels**-0.5, inner**-0.5
    tensors = {
        "visual": randn(batch, channels, frames, height, width),
        "audio": randn(batch, frames, channels),
        "theta_weight": randn(inner, channels, size=down),
        "theta_bias": randn(inner),
        "phi_weight": randn(inner, channels, size=down),
        "phi_bias": randn(inner),
        "g_weight": randn(inner, channels, size=down),
        "g_bias": randn(inner),
        "out_weight": randn(channels, inner, size=up),
        "out_bias": randn(channels),
        "concat_weight": randn(1, 2 * inner, size=up),
        "concat_bias": randn(1),
        "bn_weight": randn(channels),
        "bn_bias": randn(channels),
        "running_mean": randn(channels),
        "running_var": randn(channels).square() + 0.5,
        "norm_weight": randn(channels),
        "norm_bias": randn(channels),
    }
    if not norms:
        tensors |= dict.fromkeys(NAMES[12:])
    return tensors


def run(tensors, **options):
    return avskernels.tpavi(**tensors, **options)[0]


def small_run(names, tensors, **options):
    """The block as a function of the tensors named, the others in the precision of those."""

    def function(*values):
        others = {n: t if t is None else t.to(values[0].dtype) for n, t in tensors.items()}
        return run(others | dict(zip(names, values, strict=True)), **options)

    return function


def differentiable(tensors):
    """The names of the tensors that have a gradient, in order."""
    return [n for n, t in tensors.items() if t is not None and not n.startswith("running")]


def oracle(tensors, mode, training):
    """The definition in float64, one clip at a time."""
    t = {name: None if value is None else value.double() for name, value in tensors.items()}
    visual = t["visual"]
    batch, *_, height, width = visual.shape
    pixels = visual.flatten(2).mT  # [B, THW, C]
    audio = t["audio"]
    source = pixels if audio is None else audio.repeat_interleave(height * width, 1)
    result = torch.zeros_like(pixels)
    for b in range(batch):
        g = pixels[b] @ t["g_weight"].T + t["g_bias"]
        theta, phi = pixels[b], source[b]
        if mode != "gaussian":
            theta = theta @ t["theta_weight"].T + t["theta_bias"]
            phi = phi @ t["phi_weight"].T + t["phi_bias"]
        if len(g) == 0:
            continue
        if mode == "concatenate":
            on_visual, on_audio = t["concat_weight"].view(2, -1)
            rows = (theta @ on_visual)[:, None] + (phi @ on_audio)[None] + t["concat_bias"]
            rows = rows.clamp(min=0)
        else:
            rows = theta @ phi.T
        if mode in ("embedded", "gaussian"):
            rows = (rows - rows.amax(1, keepdim=True)).exp()
            rows = rows / rows.sum(1, keepdim=True)
        else:
            rows = rows / len(rows)
        result[b] = rows @ g @ t["out_weight"].T + t["out_bias"]
    if t["bn_weight"] is not None:
        mean, variance = t["running_mean"], t["running_var"]
        if training:
            mean, variance = result.mean((0, 1)), result.var((0, 1), correction=0)
        result = (result - mean) / (variance + 1e-5).sqrt() * t["bn_weight"] + t["bn_bias"]
    result = result + pixels
    if t["norm_weight"] is not None:
        centred = result - result.mean(2, keepdim=True)
        deviation = (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
        result = centred / deviation * t["norm_weight"] + t["norm_bias"]
    return result.mT.reshape(visual.shape)


def arguments(dtype):
    return *sample((3, 37, 19, 5, 7, 11), dtype).values(), True, 1e-5, 1e-5, "dot"


GENERIC = [(*sample((2, 9, 5, 3, 7, 11)).values(), True, 1e-4, 1e-3, mode) for mode in MODES]
LAYOUT_COMPARE = assert_near  # BLAS sees the strides of the parameters


def trained(tensors, names):
    """The arguments of a function of positional tensors, without running statistics."""
    return [tensors[name] for name in names if not name.startswith("running")]


def train(*values):
    names = [name for name in NAMES if not name.startswith("running")]
    return avskernels.tpavi(**dict(zip(names, values, strict=True)), training=True)


COMPILED = (
    train,
    [
        trained(sample((2, 6, 3, 2, 3, 5)), NAMES),
        trained(sample((3, 8, 5, 4, 5, 7)), NAMES),
    ],
)


def gradcheck(mode, norms):
    tensors = sample((2, 4, 2, 2, 2, 2), torch.float64, norms=norms)
    names = differentiable(tensors)
    return (
        small_run(names, tensors, mode=mode, training=True),
        [tensors[name] for name in names],
    )


GRADCHECK = [gradcheck(mode, norms) for mode in MODES for norms in (True, False)]


def wrong(size=(2, 6, 3, 2, 3, 5), training=False, mode="dot", **changed):
    tensors = sample(size)
    tensors |= {
        name: torch.zeros(shape) if isinstance(shape, tuple) else shape
        for name, shape in changed.items()
    }
    return *tensors.values(), training, 1e-5, 1e-5, mode


ERRORS = [
    (
        "visual of four dimensions",
        wrong(visual=(2, 6, 3, 5)),
        "expected visual [B, C, T, H, W], got [2, 6, 3, 5]",
    ),
    ("audio on its side", wrong(audio=(2, 3, 6)), "expected audio [2, 2, 6], got [2, 3, 6]"),
    ("narrow g_weight", wrong(g_weight=(3, 5)), "expected g_weight [3, 6], got [3, 5]"),
    ("wide out_weight", wrong(out_weight=(6, 4)), "expected out_weight [6, 3], got [6, 4]"),
    (
        "concat_weight of one half",
        wrong(concat_weight=(1, 3)),
        "expected concat_weight [1, 6], got [1, 3]",
    ),
    (
        "integer visual",
        wrong(visual=torch.zeros(2, 6, 2, 3, 5).long()),
        "expected visual of floating point, got torch.int64",
    ),
    (
        "audio of another dtype",
        wrong(audio=torch.zeros(2, 2, 6).double()),
        "expected audio of torch.float32, got torch.float64",
    ),
    ("weight without bias", wrong(bn_bias=None), "expected bn_bias in mode 'dot', got None"),
    (
        "bias without weight",
        wrong(norm_weight=None),
        "expected norm_weight in mode 'dot', got None",
    ),
    (
        "one of two statistics",
        wrong(running_var=None),
        "expected running_var in mode 'dot', got None",
    ),
    (
        "no theta",
        wrong(theta_weight=None, theta_bias=None, mode="embedded"),
        "expected theta_weight in mode 'embedded', got None",
    ),
    (
        "nothing to concatenate with",
        wrong(concat_weight=None, concat_bias=None, mode="concatenate"),
        "expected concat_weight in mode 'concatenate', got None",
    ),
    (
        "one position",
        wrong((1, 6, 3, 1, 1, 1), training=True),
        "expected at least 2 positions to train BatchNorm on, got 1",
    ),
]
