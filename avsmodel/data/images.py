# SPDX-License-Identifier: Apache-2.0
"""Frames and masks: reading, resizing, normalising."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avsmodel.data.palette import colours_to_labels

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


def read_image(path: str | Path) -> np.ndarray:
    """Return the image file at ``path`` as uint8 ``[H, W, 3]``, RGB.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no image, or a truncated one.
    """
    return np.array(_open(path, "RGB"))


def read_binary_mask(path: str | Path) -> np.ndarray:
    """Return the mask file at ``path`` as uint8 ``[H, W]``: 1 where its value is above 0.

    The value of a palette image is its index; that of a colour image is its largest channel,
    alpha left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no image, or a truncated one.
    """
    image = _open(path)
    if image.mode in ("LA", "RGBA", "PA"):
        image = image.convert("RGB")
    foreground = np.array(image) > 0
    if foreground.ndim == 3:
        foreground = np.any(foreground, axis=-1)
    return foreground.astype(np.uint8)


def read_semantic_mask(path: str | Path, num_classes: int) -> np.ndarray:
    """Return the colour mask at ``path`` as uint8 ``[H, W]``, class ids.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no image, or a colour that belongs to none of the
            ``num_classes`` classes.
    """
    try:
        return colours_to_labels(read_image(path), num_classes)
    except ValueError as error:
        raise ValueError(f"{error} in {path}") from None


def _open(path: str | Path, mode: str | None = None) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert(mode) if mode and mode != image.mode else image.copy()
    except FileNotFoundError:
        raise FileNotFoundError(f"read_image: expected a file at {path}, got none") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"read_image: expected a readable image at {path}, got {error}") from None


def resize(
    image: np.ndarray, size: int, *, crop: bool = False, nearest: bool = False
) -> np.ndarray:
    """Bring an image or a mask to ``size`` x ``size`` pixels.

    Args:
        image: uint8 ``[H, W, 3]`` or ``[H, W]``.
        size: side of the result in pixels.
        crop: scale the short side to ``size`` and take the centre, as in training; False stretches
            the image, as in evaluation.
        nearest: take the nearest pixel (masks) instead of interpolating.

    Returns:
        uint8 ``[size, size, 3]`` or ``[size, size]``.
    """
    height, width = image.shape[:2]
    if crop:
        scale = size / min(height, width)
        width, height = max(size, int(width * scale)), max(size, int(height * scale))
    else:
        height = width = size
    if image.shape[:2] != (height, width):
        method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        image = np.array(Image.fromarray(image).resize((width, height), method))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


def normalise(frames: np.ndarray) -> Tensor:
    """Return (x / 255 - mean) / deviation with ImageNet's mean and deviation.

    Args:
        frames: uint8 ``[T, H, W, 3]``.

    Returns:
        float32 ``Tensor[T, 3, H, W]``.
    """
    mean = torch.tensor(MEAN).view(3, 1, 1) * 255
    deviation = torch.tensor(DEVIATION).view(3, 1, 1) * 255
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return channels_first.to(torch.float32).sub_(mean).div_(deviation)
