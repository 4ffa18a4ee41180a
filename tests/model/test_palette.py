# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from avsmodel.data import colours_to_labels, palette


def plain_colour(label):
    """The VOC colour map as its development kit builds it, bit by bit."""
    red = green = blue = 0
    for shift in range(8):
        red |= (label & 1) << (7 - shift)
        green |= (label >> 1 & 1) << (7 - shift)
        blue |= (label >> 2 & 1) << (7 - shift)
        label >>= 3
    return red, green, blue


def test_palette_is_voc():
    assert [tuple(colour) for colour in palette().tolist()] == [plain_colour(i) for i in range(256)]
    assert palette(21)[15].tolist() == [192, 128, 128]  # a person
    assert len(palette(71)) == 71


@pytest.mark.parametrize("num_classes", [1, 2, 71, 256])
def test_labels_return(num_classes):
    labels = np.random.default_rng(0).integers(num_classes, size=(17, 23)).astype(np.uint8)
    read = colours_to_labels(palette(num_classes)[labels], num_classes)
    np.testing.assert_array_equal(read, labels)
    assert read.dtype == np.uint8


def test_every_colour_is_matched_exactly_or_refused():
    # All colours that differ from a class's in one channel, by any value.
    known = {plain_colour(i): i for i in range(71)}
    for label in (0, 1, 37, 70):
        for channel in range(3):
            for value in range(256):
                colour = list(plain_colour(label))
                colour[channel] = value
                image = np.array([[colour]], np.uint8)
                if tuple(colour) in known:
                    assert colours_to_labels(image, 71)[0, 0] == known[tuple(colour)]
                else:
                    with pytest.raises(ValueError, match="expected the colours of 71 classes"):
                        colours_to_labels(image, 71)


def test_unmatched_colour_is_located():
    image = palette(71)[np.zeros((6, 8), np.uint8)]
    image[4, 5:7] = (9, 8, 7)
    with pytest.raises(ValueError, match=r"got \(9, 8, 7\) at row 4, column 5 \(2 such pixels\)"):
        colours_to_labels(image, 71)


@pytest.mark.parametrize("num_classes", [0, 257])
def test_palette_errors(num_classes):
    with pytest.raises(ValueError, match=f"palette: expected 1 to 256 classes, got {num_classes}"):
        palette(num_classes)
