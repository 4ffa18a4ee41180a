# SPDX-License-Identifier: Apache-2.0
"""Log-mel against explicit sums in float64; sound files in every state."""

import cmath
import math
import struct

import numpy as np
import pytest
import soundfile
import torch

from avsmodel.data import log_mel, read_wav
from avsmodel.data.audio import pad_examples


def wave(seconds, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * 16000))


def plain_row(window):
    """One row of the spectrogram from its definition: every sum written out."""
    n = len(window)
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * i / n) for i in range(n)]
    magnitudes = []
    for k in range(257):
        turn = -2j * cmath.pi * k / 512
        magnitudes.append(
            abs(
                sum(
                    w * h * cmath.exp(turn * i)
                    for i, (w, h) in enumerate(zip(window, hann, strict=True))
                )
            )
        )

    def mel(hertz):
        return 1127 * math.log(1 + hertz / 700)

    low, step = mel(125), (mel(7500) - mel(125)) / 65
    row = []
    for band in range(64):
        left, peak, right = (low + step * (band + i) for i in range(3))
        total = 0.0
        for k in range(1, 257):
            position = mel(k * 16000 / 512)
            if left < position <= peak:
                total += magnitudes[k] * (position - left) / (peak - left)
            elif peak < position < right:
                total += magnitudes[k] * (right - position) / (right - peak)
        row.append(math.log(total + 0.01))
    return row


@pytest.mark.parametrize("hop, name", [(0.96, "vggish"), (1.0, "second")])
def test_rows_equal_the_definition(hop, name):
    samples = wave(3.2)
    examples = log_mel(samples, 3, hop)
    for example, row in ((0, 0), (1, 95), (2, 7)):
        start = round(example * hop * 16000) + row * 160
        expected = plain_row(samples[start : start + 400].tolist())
        torch.testing.assert_close(
            examples[example, 0, row].double(), torch.tensor(expected).double(), rtol=0, atol=1e-5
        )


def test_shape_and_dtype():
    examples = log_mel(wave(5).astype(np.float32), 5)
    assert examples.shape == (5, 1, 96, 64) and examples.dtype == torch.float32


def test_a_tone_lights_its_own_band():
    # 1000 Hz is mel 1000: band (1000 - mel(125)) / step of the 64.
    time = np.arange(16000) / 16000
    rows = log_mel(np.sin(2 * np.pi * 1000 * time), 1)[0, 0]
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (125, 7500))
    expected = round((1127 * math.log(1 + 1000 / 700) - low) / (high - low) * 65) - 1
    assert (rows.argmax(-1) == expected).all()


def test_silence_is_the_logarithm_of_the_offset():
    torch.testing.assert_close(
        log_mel(np.zeros(16000 * 5), 5), torch.full((5, 1, 96, 64), math.log(0.01))
    )


def test_vggish_hop_drifts_and_a_second_does_not():
    # A click in the tenth second, at 9.5 s.
    samples = np.zeros(160000)
    samples[int(9.5 * 16000)] = 1.0
    drifting, aligned = log_mel(samples, 10, 0.96), log_mel(samples, 10, 1.0)
    loudest = [examples[9, 0].sum(-1).argmax().item() for examples in (drifting, aligned)]
    assert abs(loudest[0] - 86) <= 2 and abs(loudest[1] - 50) <= 2


def test_too_short_a_sound_repeats_its_last_example_or_is_zero():
    samples = wave(2.1)
    repeated, zero = log_mel(samples, 5), log_mel(samples, 5, repeat_last=False)
    assert torch.equal(repeated[:2], zero[:2])
    assert torch.equal(repeated[2:], repeated[1:2].expand(3, -1, -1, -1))
    assert (zero[2:] == 0).all()


def test_less_than_one_example_is_continued_with_silence():
    samples = wave(0.3)
    assert torch.equal(log_mel(samples, 1), log_mel(np.pad(samples, (0, 16000)), 1))
    assert log_mel(samples[:0], 2).shape == (2, 1, 96, 64)


def test_longer_sound_changes_nothing():
    samples = wave(6)
    assert torch.equal(log_mel(samples, 3, 1.0), log_mel(samples[: 16000 * 4], 3, 1.0))


def test_pad_examples_cuts():
    examples = torch.arange(3.0).view(3, 1, 1, 1)
    assert pad_examples(examples, 2, True).flatten().tolist() == [0, 1]
    assert pad_examples(examples, 3, True).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros((2, 100)), 1), r"expected waveform \[samples\], got \[2, 100\]"),
        ((np.zeros(100), 1, 0.001), "expected a hop of at least 0.01 s, got 0.001"),
    ],
)
def test_log_mel_errors(arguments, message):
    with pytest.raises(ValueError, match=f"log_mel: {message}"):
        log_mel(*arguments)


def test_reads_16_khz_exactly(tmp_path):
    samples = (wave(0.5) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    read = read_wav(tmp_path / "a.wav")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, samples / np.float32(32768))


def test_averages_channels_and_converts_the_rate(tmp_path):
    time = np.arange(44100) / 44100
    left, right = np.sin(2 * np.pi * 440 * time), 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44100, subtype="FLOAT")
    read = read_wav(tmp_path / "a.wav")
    expected = 0.75 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert read.shape == (16000,)
    np.testing.assert_allclose(read[500:-500], expected[500:-500], atol=2e-3)


def test_truncated_wav(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, wave(1), 16000)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 60):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"read_wav: expected 32000 bytes in chunk 'data' of"):
            read_wav(path)
    for length in (0, 11, 12, 30, 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="read_wav: expected"):
            read_wav(path)


def test_size_that_a_stream_left_open_is_no_truncation(tmp_path):
    path = tmp_path / "a.wav"
    samples = (wave(0.2) * 32767).astype(np.int16)
    soundfile.write(path, samples, 16000)
    content = bytearray(path.read_bytes())
    data = content.index(b"data") + 4
    content[data : data + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert len(read_wav(path)) == len(samples)


@pytest.mark.parametrize(
    "samples, message",
    [
        (np.zeros(0), r"expected samples in .*, got none"),
        (np.array([0.0, np.nan]), r"expected finite samples in .*, got NaN or infinity"),
    ],
)
def test_wav_without_usable_samples(tmp_path, samples, message):
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=f"read_wav: {message}"):
        read_wav(tmp_path / "a.wav")


def test_not_a_sound(tmp_path):
    (tmp_path / "a.wav").write_text("hello")
    with pytest.raises(ValueError, match="read_wav: expected a readable sound file"):
        read_wav(tmp_path / "a.wav")
    with pytest.raises(FileNotFoundError, match=r"read_wav: expected a file at .*b\.wav, got none"):
        read_wav(tmp_path / "b.wav")
