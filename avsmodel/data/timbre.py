# SPDX-License-Identifier: Apache-2.0
"""The sounds of the synthetic data set: a register and a rhythm per class of ``sources.CLASSES``.

Every sound is a stack of harmonics. The registers lie half an octave apart and are more than an
octave wide, so that neighbours overlap; the four classes of a register differ in their rhythm only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avsmodel.data.audio import SAMPLE_RATE
from avsmodel.data.sources import REGISTERS, RHYTHMS

_LEVEL = 0.08  # root mean square of one sounding object, before its gain
_GAIN = 6.0  # decibels by which an object may be louder or softer
_SIGNAL_TO_NOISE = (-5.0, 15.0)  # decibels, drawn for every second
_FADE = 0.02  # seconds
_LOWEST = 110.0  # Hz, of the first register
_STEP = 1.5  # from a register to the next
_HARMONICS = 12
_WIDTH = 0.5  # octaves around the third harmonic
_DROP_OUT = 0.3  # seconds with a gap, or with a late onset
_QUIET = 0.0005  # root mean square of the noise of a second without a sound


def mix(
    rng: np.random.Generator,
    kinds: Sequence[int],
    sounding: np.ndarray,
    *,
    clear: bool = False,
) -> np.ndarray:
    """Return the sound of a clip as int16 ``[T * 16000]``.

    Args:
        rng: source of all random choices.
        kinds: class of each object.
        sounding: bool ``[T, objects]``, which objects are heard in each second.
        clear: see :class:`~avsmodel.data.sources.World`.
    """
    tracks = [
        _track(rng, kind, sounding[:, index], clear)
        for index, kind in enumerate(kinds)
        if sounding[:, index].any()
    ]
    wave = np.sum(tracks, 0) if tracks else np.zeros(len(sounding) * SAMPLE_RATE)
    if not clear:
        wave = _reverberate(rng, wave)
        wave += _noise(rng, wave.reshape(-1, SAMPLE_RATE))
    wave = np.tanh(2 * wave) / 2  # mild compression: a mixture is not the sum of its sources
    return (wave.clip(-1, 1) * 32767).round().astype(np.int16)


def tone(rng: np.random.Generator, kind: int, samples: int) -> np.ndarray:
    """Return the sound of a class, of root mean square 1."""
    register, rhythm = divmod(kind, len(RHYTHMS))
    t = np.arange(samples) / SAMPLE_RATE
    pitch, volume = _RHYTHMS[rhythm](rng, t)
    lowest = _LOWEST * _STEP**register * rng.uniform(0.92, 1.08)
    phase = 2 * np.pi * np.cumsum(lowest * pitch) / SAMPLE_RATE
    wave = np.zeros(samples)
    for harmonic in range(1, _HARMONICS + 1):
        if harmonic * lowest * pitch.max() < SAMPLE_RATE / 2:
            octaves = np.log2(harmonic / 3) / _WIDTH
            loudness = np.exp(-0.5 * octaves**2) * rng.uniform(0.6, 1.4)
            wave += loudness * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    wave *= volume
    return wave / np.sqrt(np.mean(wave**2))


def _track(rng: np.random.Generator, kind: int, heard: np.ndarray, clear: bool) -> np.ndarray:
    gain = 1.0 if clear else 10 ** (rng.uniform(-_GAIN, _GAIN) / 20)
    wave = _LEVEL * gain * tone(rng, kind, len(heard) * SAMPLE_RATE)
    return wave * _gate(rng, heard, 0.0 if clear else _DROP_OUT)


def _gate(rng: np.random.Generator, heard: np.ndarray, drop_out: float) -> np.ndarray:
    # 1 where the object is heard, with late onsets and gaps, faded.
    gate = np.repeat(heard.astype(float), SAMPLE_RATE)
    for second in np.flatnonzero(heard):
        start = second * SAMPLE_RATE
        if rng.uniform() < drop_out:
            begins = second == 0 or not heard[second - 1]
            first = 0 if begins else int(rng.uniform(0.1, 0.4) * SAMPLE_RATE)
            gap = int(rng.uniform(0.2, 0.5) * SAMPLE_RATE)
            gate[start + first : start + first + gap] = 0
    fade = int(_FADE * SAMPLE_RATE)
    return np.convolve(gate, np.full(fade, 1 / fade), "same")


def _reverberate(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    # A room: exponentially decaying noise, 60 dB down after its reverberation time.
    length = int(rng.uniform(0.15, 0.5) * SAMPLE_RATE)
    response = rng.normal(size=length) * 10 ** (-3 * np.arange(length) / length)
    response *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(response**2))
    response[0] += 1
    size = len(wave) + length
    spectrum = np.fft.rfft(wave, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: len(wave)]


def _noise(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    # Pink noise, so many decibels below each second's sound.
    samples = seconds.size
    spectrum = np.fft.rfft(rng.normal(size=samples))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), samples / 400))
    noise = np.fft.irfft(spectrum, samples)
    noise = (noise / np.sqrt(np.mean(noise**2))).reshape(seconds.shape)
    level = np.sqrt(np.mean(seconds**2, 1, keepdims=True))
    decibels = rng.uniform(*_SIGNAL_TO_NOISE, level.shape)
    return (noise * np.maximum(level * 10 ** (-decibels / 20), _QUIET)).reshape(-1)


def _steady(rng: np.random.Generator, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ones_like(t), np.ones_like(t)


def _trembling(rng: np.random.Generator, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cycle = t * rng.uniform(9, 11) + rng.uniform()
    return np.ones_like(t), 0.55 + 0.45 * np.sin(2 * np.pi * cycle)


def _beating(rng: np.random.Generator, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cycle = (t * rng.uniform(3.5, 4.5) + rng.uniform()) % 1
    return np.ones_like(t), np.exp(-5 * cycle)


def _gliding(rng: np.random.Generator, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cycle = t * rng.uniform(2.2, 2.8) + rng.uniform()
    return 2 ** (0.35 * np.sin(2 * np.pi * cycle)), np.ones_like(t)


_RHYTHMS = (_steady, _trembling, _beating, _gliding)
assert len(_RHYTHMS) == len(RHYTHMS) and _LOWEST * _STEP ** len(REGISTERS) < SAMPLE_RATE / 2
