# SPDX-License-Identifier: Apache-2.0
"""Samples of channel_attention_mixer, its oracle, and what every operator is checked on."""

import torch
from checks import assert_near

import avskernels

OP = "channel_attention_mixer"

# (batch, heads, channels, height, width)
CASES = {
    "minimal": (1, 1, 1, 1, 1),
    "empty batch": (0, 2, 4, 3, 3),
    "no pixels": (2, 2, 4, 0, 3),
    "one pixel": (3, 2, 6, 1, 1),
    "one below a vector": (2, 3, 15, 3, 5),
    "exact tile": (3, 8, 16, 16, 16),
    "tile + 1": (2, 17, 17, 1, 257),
    "odd primes": (3, 1, 37, 13, 31),
    "several blocks": (3, 3, 132, 2, 641),
}
DTYPES = [torch.float32, torch.float64]
RELEASED = {"softmax": True, "gate": "sigmoid"}
PAPER = {"softmax": False, "gate": "residual"}
FORMULAS = [
    RELEASED,
    PAPER,
    {"softmax": True, "gate": "residual"},
    {"softmax": False, "gate": "sigmoid"},
]
IDS = ["released", "paper", "softmax-residual", "linear-sigmoid"]
NAMES = ("k_weight", "v_weight", "out_weight", "out_bias", "k_bias", "v_bias")


def sample(case, dtype=torch.float32, seed=0, masked=False):
    """Return (features, query, k_weight, v_weight, out_weight, out_bias, k_bias, v_bias), mask."""
    batch, _, channels, height, width = case
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = [randn(channels, channels) / channels**0.5 for _ in range(3)]
    biases = [randn(channels) for _ in range(3)]
    tensors = (randn(batch, channels, height, width), randn(batch, channels), *weights, *biases)
    mask = torch.rand(batch, height, width, generator=generator) < 0.6 if masked else None
    return tensors, mask


def oracle(tensors, mask, num_heads, softmax, gate):
    """The definition in float64, one sample and head at a time, over the pixels that count."""
    features, query, k_weight, v_weight, out_weight, out_bias, k_bias, v_bias = (
        t.double() for t in tensors
    )
    mixed = torch.zeros_like(features)
    for b in range(len(features)):
        pixels = features[b].flatten(1)  # [C, N]
        counted = pixels if mask is None else pixels[:, mask[b].flatten()]
        if mask is not None and counted.shape[1] == 0:
            mixed[b] = 0 if gate == "sigmoid" else features[b]
            continue
        keys, values = k_weight @ counted + k_bias[:, None], v_weight @ counted + v_bias[:, None]
        pooled = []
        for head in torch.arange(features.shape[1]).chunk(num_heads):
            weights = query[b, head] @ keys[head] / len(head) ** 0.5
            if softmax and len(weights):
                weights = (weights - weights.max()).exp()
                weights = weights / weights.sum()
            pooled.append(values[head] @ weights)
        value = out_weight @ torch.cat(pooled) + out_bias
        if gate == "sigmoid":
            mixed[b] = features[b] / (1 + (-value).exp())[:, None, None]
        else:
            mixed[b] = features[b] * (1 + value)[:, None, None]
    return mixed


def run(tensors, mask, num_heads, softmax=True, gate="sigmoid", backend=None):
    features, query, *parameters = tensors
    k_weight, v_weight, out_weight, out_bias, k_bias, v_bias = parameters
    return avskernels.channel_attention_mixer(
        features,
        query,
        k_weight,
        v_weight,
        out_weight,
        out_bias,
        k_bias=k_bias,
        v_bias=v_bias,
        mask=mask,
        num_heads=num_heads,
        softmax=softmax,
        gate=gate,
        backend=backend,
    )


def small_run(mask, num_heads, formula):
    return lambda *tensors: run(tensors, mask, num_heads, **formula)


def arguments(dtype):
    tensors, mask = sample((3, 3, 36, 13, 31), dtype, masked=True)
    return *tensors, mask, 3, True, "sigmoid"


def generic(formula):
    tensors, mask = sample((3, 3, 36, 13, 31), masked=True)
    return *tensors, mask, 3, *formula.values()


GENERIC = [generic(formula) for formula in FORMULAS[:2]]
LAYOUT_COMPARE = assert_near  # BLAS sees the strides of the parameters

COMPILED = [
    (
        small_run(None, 3, formula),
        [sample((2, 3, 6, 4, 5))[0], sample((3, 3, 9, 5, 2))[0]],
    )
    for formula in FORMULAS[:2]
]

GRADCHECK = [
    (small_run(mask, 2, formula), tensors)
    for formula in FORMULAS
    for masked in (False, True)
    for tensors, mask in [sample((2, 2, 4, 2, 3), torch.float64, masked=masked)]
]

SHAPES = {"features": (2, 4, 3, 5), "query": (2, 4)}
SHAPES |= {name: (4, 4) if name.endswith("weight") else (4,) for name in NAMES}


def wrong(mask=None, num_heads=2, **shapes):
    tensors = [torch.zeros(shape) for shape in (SHAPES | shapes).values()]
    return *tensors, mask, num_heads, True, "sigmoid"


def on_integers():
    features, *others = wrong()
    return features.long(), *others


def with_wide_weight():
    args = list(wrong())
    args[4] = args[4].double()
    return tuple(args)


MASK = torch.ones(2, 3, 5, dtype=torch.bool)

ERRORS = [
    (
        "features of three dimensions",
        wrong(features=(2, 4, 5)),
        "expected features [B, C, H, W], got [2, 4, 5]",
    ),
    ("query of other channels", wrong(query=(2, 3)), "expected query [2, 4], got [2, 3]"),
    ("wide v_weight", wrong(v_weight=(4, 8)), "expected v_weight [4, 4], got [4, 8]"),
    ("long k_bias", wrong(k_bias=(8,)), "expected k_bias [4], got [8]"),
    (
        "heads that do not divide",
        wrong(num_heads=3),
        "expected num_heads to divide 4 channels, got 3",
    ),
    ("no heads", wrong(num_heads=0), "expected num_heads to divide 4 channels, got 0"),
    ("mask on its side", wrong(MASK.mT), "expected mask [2, 3, 5], got [2, 5, 3]"),
    ("integer mask", wrong(MASK.long()), "expected mask of torch.bool, got torch.int64"),
    (
        "integer features",
        on_integers(),
        "expected features of floating point, got torch.int64",
    ),
    (
        "weight of another dtype",
        with_wide_weight(),
        "expected out_weight of torch.float32, got torch.float64",
    ),
]
