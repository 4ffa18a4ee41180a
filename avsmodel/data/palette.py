# SPDX-License-Identifier: Apache-2.0
"""The VOC colour map, in which AVSS publishes its masks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache
def palette(num_classes: int = 256) -> np.ndarray:
    """Return the first ``num_classes`` colours of the VOC colour map, uint8 ``[num_classes, 3]``.

    Bits 0, 1 and 2 of a class id become bit 7 of red, green and blue, bits 3, 4 and 5 their
    bit 6, and bits 6 and 7 bit 5 of red and green. Class 0 is black.

    Raises:
        ValueError: for a number of classes outside 1..256.
    """
    if not 1 <= num_classes <= 256:
        raise ValueError(f"palette: expected 1 to 256 classes, got {num_classes}")
    ids = np.arange(num_classes)
    colours = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    colours.setflags(write=False)
    return colours


@lru_cache
def _decoders() -> np.ndarray:
    # uint16 [3, 256]: what a channel's value contributes to the class id. Every bit of the id
    # lives in one bit of one channel, so the three contributions add up; a value that the map
    # never produces contributes 2^8, which no class id reaches.
    tables = np.full((3, 256), 1 << 8, np.uint16)
    bits = np.arange(8)
    for channel in range(3):
        own = bits[bits % 3 == channel]
        for subset in range(1 << len(own)):
            chosen = own[[bool(subset >> i & 1) for i in range(len(own))]]
            tables[channel, sum(1 << (7 - b // 3) for b in chosen)] = sum(1 << b for b in chosen)
    return tables


def colours_to_labels(colours: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the class ids of a colour mask.

    Args:
        colours: uint8 ``[H, W, 3]``, colours of the VOC colour map.
        num_classes: classes that exist, background included.

    Returns:
        uint8 ``[H, W]``, class ids.

    Raises:
        ValueError: for a pixel whose colour is none of the first ``num_classes``.
    """
    red, green, blue = _decoders()
    labels = red[colours[..., 0]] + green[colours[..., 1]] + blue[colours[..., 2]]
    unmatched = labels >= num_classes
    if unmatched.any():
        row, column = np.unravel_index(unmatched.argmax(), unmatched.shape)
        raise ValueError(
            f"colours_to_labels: expected the colours of {num_classes} classes, got "
            f"{tuple(colours[row, column].tolist())} at row {row}, column {column} "
            f"({int(unmatched.sum())} such pixels)"
        )
    return labels.astype(np.uint8)
