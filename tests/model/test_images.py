# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from avsmodel.data.images import (
    normalise,
    read_binary_mask,
    read_image,
    read_semantic_mask,
    resize,
)
from avsmodel.data.palette import palette


def noise(*shape):
    return np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_any_mode_reads_as_rgb(tmp_path, mode):
    image = Image.fromarray(noise(9, 7, 3)).convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_mask_is_what_is_above_zero(tmp_path, mode):
    truth = noise(9, 7) > 128
    if mode == "P":
        image = Image.fromarray(truth.astype(np.uint8) * 3)
        image.putpalette([200, 200, 200, *[0] * 15])  # the index counts, not the colour
    else:
        image = Image.fromarray((truth * 255).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "a.png")
    mask = read_binary_mask(tmp_path / "a.png")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, truth)


def test_faint_values_are_foreground(tmp_path):
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "a.png")
    assert read_binary_mask(tmp_path / "a.png").tolist() == [[0, 1, 1]]


def test_semantic_mask(tmp_path):
    labels = np.array([[0, 5, 70]], np.uint8)
    Image.fromarray(palette(71)[labels]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_semantic_mask(tmp_path / "a.png", 71), labels)
    with pytest.raises(ValueError, match=r"expected the colours of 70 classes, got .* in .*a\.png"):
        read_semantic_mask(tmp_path / "a.png", 70)


def test_unreadable_images(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"read_image: expected a file at .*a\.png, got none"
    ):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ValueError, match=r"read_image: expected a readable image at .*a\.png"):
        read_image(tmp_path / "a.png")
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"read_image: expected a readable image at .*a\.png"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "height, width, top, left", [(20, 20, 0, 0), (20, 31, 0, 6), (33, 20, 6, 0), (20, 21, 0, 0)]
)
def test_crop_takes_the_centre(height, width, top, left):
    image = noise(height, width, 3)
    cropped = resize(image, 20, crop=True)
    np.testing.assert_array_equal(cropped, image[top : top + 20, left : left + 20])


def test_crop_scales_the_short_side():
    mask = np.zeros((40, 80), np.uint8)
    mask[:, 40:] = 1
    small = resize(mask, 20, crop=True, nearest=True)
    np.testing.assert_array_equal(small, np.repeat([[0] * 10 + [1] * 10], 20, 0))


def test_stretching_keeps_the_whole_frame():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255
    small = resize(image, 20)
    assert small.shape == (20, 20, 3)
    assert (small[:, :9] == 0).all() and (small[:, 11:] == 255).all()


def test_nearest_makes_no_new_class():
    mask = noise(50, 37) % 5 * 17
    assert set(np.unique(resize(mask, 20, nearest=True))) <= set(np.unique(mask))


def test_same_size_is_untouched():
    image = noise(20, 20, 3)
    np.testing.assert_array_equal(resize(image, 20), image)


def test_normalise():
    frames = noise(2, 5, 4, 3)
    result = normalise(frames)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((frames / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    assert result.shape == (2, 3, 5, 4) and result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
