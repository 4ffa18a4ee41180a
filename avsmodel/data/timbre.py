# SPDX-License-Identifier: Apache-2.0
"""The sounds of the synthetic data set: one timbre per class of ``scene.CLASSES``.

Each class has its own frequency band between 100 and 7000 Hz and its own rhythm, so that VGGish's
log-mel tells the classes apart, also when two sound at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avsmodel.data.audio import SAMPLE_RATE

_LEVEL = 0.12  # root mean square of one sounding object
_NOISE = 0.0005  # root mean square of the background noise
_FADE = 0.02  # seconds


def mix(rng: np.random.Generator, kinds: Sequence[int], sounding: np.ndarray) -> np.ndarray:
    """Return the sound of a clip as int16 ``[T * 16000]``.

    Args:
        rng: source of pitch, phase and level.
        kinds: class of each object.
        sounding: bool ``[T, objects]``, which objects are heard in each second.
    """
    num_frames = len(sounding)
    wave = rng.normal(0, _NOISE, num_frames * SAMPLE_RATE)
    for index, kind in enumerate(kinds):
        if sounding[:, index].any():
            tone = _TIMBRES[kind](rng, num_frames * SAMPLE_RATE)
            level = _LEVEL * rng.uniform(0.8, 1.25) / np.sqrt(np.mean(tone**2))
            wave += level * _gate(sounding[:, index]) * tone
    wave /= max(1.0, np.abs(wave).max())
    return (wave * 32767).round().astype(np.int16)


def _gate(heard: np.ndarray) -> np.ndarray:
    # 1 in the seconds that are heard, with a fade inside them where a sound begins or ends.
    ramp = np.linspace(0, 1, int(_FADE * SAMPLE_RATE))
    gate = np.repeat(heard[:, None].astype(float), SAMPLE_RATE, axis=1)
    before, after = np.pad(heard, (1, 0))[:-1], np.pad(heard, (0, 1))[1:]
    gate[heard & ~before, : len(ramp)] *= ramp
    gate[heard & ~after, -len(ramp) :] *= ramp[::-1]
    return gate.reshape(-1)


def _seconds(samples: int) -> np.ndarray:
    return np.arange(samples) / SAMPLE_RATE


def _band(rng: np.random.Generator, samples: int, low: float, high: float) -> np.ndarray:
    # Noise between two frequencies in Hz.
    spectrum = np.fft.rfft(rng.normal(size=samples))
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum[(hertz < low) | (hertz > high)] = 0
    return np.fft.irfft(spectrum, samples)


def _tone(hertz: np.ndarray, phase: float) -> np.ndarray:
    # A sine whose frequency may change from sample to sample.
    return np.sin(phase + 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)


def _drone(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch, phases = 110 * rng.uniform(0.94, 1.06), rng.uniform(0, 2 * np.pi, 4)
    t = _seconds(samples)
    return sum(np.sin(2 * np.pi * pitch * k * t + phases[k - 1]) / k for k in range(1, 5))


def _drum(rng: np.random.Generator, samples: int) -> np.ndarray:
    beat = (_seconds(samples) * rng.uniform(4.5, 5.5) + rng.uniform()) % 1
    return _band(rng, samples, 600, 850) * np.exp(-5 * beat)


def _whistle(rng: np.random.Generator, samples: int) -> np.ndarray:
    pitch, phase, start = 1250 * rng.uniform(0.94, 1.06), *rng.uniform(0, 2 * np.pi, 2)
    vibrato = np.sin(2 * np.pi * 6 * _seconds(samples) + start)
    return _tone(pitch * (1 + 0.04 * vibrato), phase)


def _chirp(rng: np.random.Generator, samples: int) -> np.ndarray:
    sweep = (_seconds(samples) * rng.uniform(7, 9) + rng.uniform()) % 1
    return _tone(1900 + 900 * sweep, rng.uniform(0, 2 * np.pi))


def _rattle(rng: np.random.Generator, samples: int) -> np.ndarray:
    beat = (_seconds(samples) * rng.uniform(11, 13) + rng.uniform()) % 1
    return _band(rng, samples, 3300, 4300) * (beat < 0.5)


def _hiss(rng: np.random.Generator, samples: int) -> np.ndarray:
    return _band(rng, samples, 5200, 7000)


_TIMBRES = (_drone, _drum, _whistle, _chirp, _rattle, _hiss)
