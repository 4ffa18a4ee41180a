# SPDX-License-Identifier: Apache-2.0
import base64
import io

import numpy as np
import pytest
from PIL import Image

from avsmodel.data.images import normalise
from avsmodel.draw import (
    bright_colours,
    data_uri,
    heat_map,
    legend,
    overlay,
    png,
    spectrogram,
    to_image,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)


def square(value=1):
    labels = np.zeros((48, 64), np.int64)
    labels[10:30, 20:50] = value
    return labels


def test_to_image_undoes_the_normalisation(image):
    assert np.array_equal(to_image(normalise(image[None])[0].numpy()), image)


def test_colours_of_classes_differ_and_do_not_depend_on_their_number():
    colours = bright_colours(71)
    assert len(np.unique(colours, axis=0)) == 71
    assert np.array_equal(bright_colours(5), colours[:5])
    assert not colours[0].any()


def test_overlay_dims_what_is_silent_and_keeps_what_sounds(image):
    image[:] = (40, 90, 200)
    result = overlay(image, square()).astype(int)
    inside, outside = result[20, 35], result[40, 5]
    assert inside.sum() > 2 * outside.sum()
    assert np.array_equal(result[10, 35], bright_colours(2)[1])  # the outline
    assert np.ptp(outside) < 0.25 * np.ptp(image[0, 0])


def test_overlay_of_nothing_has_no_outline(image):
    image[:] = 100
    assert len(np.unique(overlay(image, np.zeros((48, 64), np.int64)))) == 1


def test_overlay_outlines_the_truth_in_white(image):
    result = overlay(image, np.zeros((48, 64), np.int64), square())
    white = (result == 255).all(-1)
    assert white[10, 20:50].all() and white[29, 20:50].all() and white[10:30, 20].all()
    assert not white[12:28, 22:48].any()


def test_legend_names_the_classes_that_are_there(image):
    names = ("background", "drum", "whistle")
    drum, whistle = legend(image, square(1), names), legend(image, square(2), names)
    assert not np.array_equal(drum, image)
    assert not np.array_equal(drum, whistle)
    assert np.array_equal(legend(image, square(0), names), image)


def test_heat_map_gets_lighter():
    light = heat_map(np.linspace(0, 1, 50)[None]).sum(-1)[0].astype(int)
    assert (np.diff(light) > 0).all()
    assert np.array_equal(heat_map(np.array([[-1.0, 2.0]])), heat_map(np.array([[0.0, 1.0]])))


def test_spectrogram_has_high_pitch_on_top():
    example = np.full((96, 64), np.log(0.01), np.float32)
    example[48:, -1] = 2.0
    picture = spectrogram(example).sum(-1)
    assert picture.shape == (64, 96)
    assert picture[0, 48:].min() > picture[0, :48].max() == picture[1].max()


def test_png_and_data_uri_hold_the_pixels(image):
    head, content = data_uri(png(image)).split(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(content)))), image)
