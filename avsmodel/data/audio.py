# SPDX-License-Identifier: Apache-2.0
"""Sound: reading files and VGGish's log-mel examples."""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

SAMPLE_RATE = 16000
HOP_SECONDS = {"vggish": 0.96, "second": 1.0}

_WINDOW, _STEP, _FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the next power of two
_MEL_BANDS, _LOWEST, _HIGHEST = 64, 125.0, 7500.0
_BLOCK = 15  # spectrogram rows per matrix product
_EXAMPLE = 96  # spectrogram rows in an example: 0.96 s
_OFFSET = 0.01  # added before the logarithm
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # in the header of a WAV that was streamed


def read_wav(path: str | Path) -> np.ndarray:
    """Return the sound file at ``path`` as float32 ``[samples]``, mono, 16 kHz, in -1..1.

    Channels are averaged; other sampling rates are converted (soxr, high quality).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no sound, that has no samples or samples that are not finite,
            or for a WAV with fewer bytes than its header declares.
    """
    # Imported here, so that a model that reads no files runs without these libraries.
    import soundfile
    import soxr

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"read_wav: expected a file at {path}, got none")
    _check_complete(path)
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"read_wav: expected a readable sound file, got {error}") from None
    if not len(channels):
        raise ValueError(f"read_wav: expected samples in {path}, got none")
    if not np.isfinite(channels).all():
        raise ValueError(f"read_wav: expected finite samples in {path}, got NaN or infinity")
    mono = channels.mean(1)
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def _check_complete(path: Path) -> None:
    # libsndfile reads a truncated WAV without an error, so the chunk sizes are checked here.
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] != b"WAVE":
            return
        while len(chunk := file.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            left = size - file.tell()
            if name == b"data" and length in _UNKNOWN_SIZES:
                return
            if length > left:
                raise ValueError(
                    f"read_wav: expected {length} bytes in chunk {name.decode('latin-1')!r} of "
                    f"{path}, got {left} (the file is truncated)"
                )
            if name == b"data":
                return
            file.seek(length + length % 2, 1)
    raise ValueError(f"read_wav: expected a data chunk in {path}, got none")


def log_mel(
    waveform: np.ndarray,
    num_frames: int,
    hop_seconds: float = HOP_SECONDS["vggish"],
    *,
    repeat_last: bool = True,
) -> Tensor:
    """Return VGGish's log-mel examples of a waveform, one per video frame.

    A periodic Hann window of 25 ms every 10 ms, |FFT| of 512 points, 64 HTK-mel triangles from
    125 to 7500 Hz, log(x + 0.01); example t is the 96 rows that start at t * hop_seconds. With
    VGGish's own hop of 0.96 s, example t starts 0.04 t seconds before the t-th second: 0.36 s
    at the tenth frame. A hop of 1.0 s stays aligned.

    Args:
        waveform: float ``[samples]``, 16 kHz mono in -1..1; one that is shorter than an example is
            padded with silence.
        num_frames: examples to return.
        hop_seconds: from the start of an example to that of the next, a multiple of 0.01 s.
        repeat_last: whether the last example takes the place of missing ones; else they are zero.

    Returns:
        float32 ``Tensor[num_frames, 1, 96, 64]``.

    Raises:
        ValueError: for a waveform that is not one-dimensional, or a hop under 0.01 s.

    Source: Hershey et al. 2017, "CNN architectures for large-scale audio classification".
    """
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise ValueError(f"log_mel: expected waveform [samples], got {list(waveform.shape)}")
    hop = round(hop_seconds * SAMPLE_RATE / _STEP)
    if hop < 1:
        raise ValueError(f"log_mel: expected a hop of at least 0.01 s, got {hop_seconds}")
    shortest = _WINDOW + (_EXAMPLE - 1) * _STEP
    needed = shortest + (num_frames - 1) * hop * _STEP
    samples = np.zeros(max(len(waveform[:needed]), shortest))
    samples[: len(waveform[:needed])] = waveform[:needed]
    windows = sliding_window_view(samples, _WINDOW)[::_STEP]
    # 15 x 257 x 64 multiplications stay below the 2^18 at which OpenBLAS starts threads; on a busy
    # machine waiting for them takes ten times as long as the product.
    starts = range(0, len(windows), _BLOCK)
    rows = np.concatenate([_log_mel_rows(windows[start : start + _BLOCK]) for start in starts])
    examples = sliding_window_view(rows, _EXAMPLE, axis=0)[::hop].transpose(0, 2, 1)
    return pad_examples(
        torch.from_numpy(examples.astype(np.float32))[:, None], num_frames, repeat_last
    )


def _log_mel_rows(windows: np.ndarray) -> np.ndarray:
    # [n, 400] samples to [n, 64].
    magnitudes = np.abs(np.fft.rfft(windows * _hann(), _FFT))
    return np.log(magnitudes @ _mel_matrix() + _OFFSET)


def pad_examples(examples: Tensor, num_frames: int, repeat_last: bool) -> Tensor:
    """Cut or pad log-mel examples to ``num_frames``, with the last one or with zeros.

    Args:
        examples: ``Tensor[n, 1, 96, 64]``.
        num_frames: examples to return.
        repeat_last: pad with the last example instead of zeros.

    Returns:
        ``Tensor[num_frames, 1, 96, 64]``.
    """
    missing = num_frames - len(examples)
    if missing <= 0:
        return examples[:num_frames].contiguous()
    last = examples[-1:] if repeat_last else torch.zeros_like(examples[-1:])
    return torch.cat([examples, last.expand(missing, -1, -1, -1)])


@lru_cache
def _hann() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)


@lru_cache
def _mel_matrix() -> np.ndarray:
    # [257, 64]: triangles with corners evenly spaced on the mel scale, linear in mel on both sides.
    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1))[:, None]
    corners = np.linspace(mel(_LOWEST), mel(_HIGHEST), _MEL_BANDS + 2)
    lower, centre, upper = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return np.maximum(0.0, np.minimum(rising, falling))
