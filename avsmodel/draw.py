# SPDX-License-Identifier: Apache-2.0
"""Pictures: masks over images, labels, heat maps, and their encoding."""

import base64
import colorsys
import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avsmodel.data.images import DEVIATION, MEAN

_TINT = 0.25  # share of the class's colour inside a region
_DIM = 0.55  # brightness that the background keeps
_SATURATION = 0.35  # saturation that it keeps


@lru_cache
def bright_colours(num_classes: int) -> np.ndarray:
    """Return a light, saturated colour per class, uint8 ``[num_classes, 3]``; 0 is black.

    Hues advance by the golden ratio, so that classes of any number stay far apart. The VOC
    colours of the mask files are too dark to be seen over a picture.
    """
    colours = np.zeros((num_classes, 3), np.uint8)
    for index in range(1, num_classes):
        hue = (0.08 + (index - 1) * 0.61803398875) % 1
        colours[index] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 1.0)]
    return colours


def to_image(frame: np.ndarray) -> np.ndarray:
    """Undo the normalisation of a frame float32 ``[3, H, W]``: uint8 ``[H, W, 3]``."""
    image = frame.transpose(1, 2, 0) * np.array(DEVIATION) + np.array(MEAN)
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def overlay(image: np.ndarray, labels: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """Highlight the labelled regions of an image.

    The background turns dim and grey; each region gets a tint and an outline in the colour of its
    class. The regions of ``truth`` are outlined in white on top.

    Args:
        image: uint8 ``[H, W, 3]``.
        labels: class ids ``[H, W]``, 0 = background.
        truth: class ids ``[H, W]``.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    colours = bright_colours(int(labels.max()) + 1)[labels]
    foreground = (labels > 0)[..., None]
    dim = _DIM * image.mean(-1, keepdims=True) + _DIM * _SATURATION * (
        image - image.mean(-1, keepdims=True)
    )
    result = np.where(foreground, (1 - _TINT) * image + _TINT * colours, dim)
    result = np.where(_outline(labels)[..., None] & foreground, colours, result)
    if truth is not None:
        result = np.where((_outline(truth) & (truth > 0))[..., None], 255, result)
    return result.astype(np.uint8)


def _outline(labels: np.ndarray) -> np.ndarray:
    edge = np.zeros(labels.shape, bool)
    for _ in range(max(1, round(min(labels.shape) / 200))):
        padded = np.pad(np.where(edge, -1, labels), 1, mode="edge")
        inner = padded[1:-1, 1:-1]
        for neighbour in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            edge |= inner != neighbour
    return edge


def legend(image: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draw a legend of the classes in ``labels`` into a corner of an image uint8 ``[H, W, 3]``."""
    present = [int(index) for index in np.unique(labels) if index]
    if not present:
        return image
    size = max(10, image.shape[0] // 24)
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas, "RGBA")
    font = ImageFont.load_default(size)
    colours = bright_colours(len(class_names))
    width = max(pen.textlength(class_names[index], font=font) for index in present)
    height = round(size * 1.4)
    pad = size // 2
    top = image.shape[0] - pad - height * len(present) - pad // 2
    pen.rounded_rectangle(
        (pad, top, pad + width + 3 * pad + size, image.shape[0] - pad), pad, fill=(0, 0, 0, 150)
    )
    for row, index in enumerate(present):
        y = top + pad // 2 + row * height
        pen.rectangle((2 * pad, y + 2, 2 * pad + size, y + 2 + size), fill=tuple(colours[index]))
        pen.text((3 * pad + size, y), class_names[index], font=font, fill=(255, 255, 255, 255))
    return np.array(canvas)


def heat_map(values: np.ndarray) -> np.ndarray:
    """Colour values ``[H, W]`` in 0..1 from dark violet over red to light yellow.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    stops = np.array([[13, 8, 46], [110, 24, 110], [203, 62, 74], [249, 157, 58], [252, 253, 191]])
    position = np.clip(values, 0, 1) * (len(stops) - 1)
    lower = np.minimum(position.astype(int), len(stops) - 2)
    share = (position - lower)[..., None]
    return np.round((1 - share) * stops[lower] + share * stops[lower + 1]).astype(np.uint8)


def spectrogram(log_mel: np.ndarray) -> np.ndarray:
    """Draw a log-mel example ``[96, 64]`` with time to the right and pitch upwards.

    Silence, log(0.01), is the darkest colour.

    Returns:
        uint8 ``[64, 96, 3]``.
    """
    silence = np.log(0.01)
    return heat_map((log_mel.T[::-1] - silence) / (3.0 - silence))


def png(image: np.ndarray) -> bytes:
    """Encode an image uint8 ``[H, W, 3]`` or ``[H, W]`` as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return a ``data:`` URI that holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
