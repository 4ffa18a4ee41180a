# SPDX-License-Identifier: Apache-2.0
"""Video files: reading frames at a chosen rate and the sound, and writing both."""

import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer

SAMPLE_RATE = 16000
_LOGGER = logging.getLogger(__name__)
_TICKS = 90000  # of the written video's clock per second, the customary MPEG value


def read_frames(path: str | Path, fps: float = 1.0) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds since the first frame, RGB frame uint8 ``[H, W, 3]``), upright, in order.

    Args:
        path: any file FFmpeg reads.
        fps: frames per second; frame i is the one on screen at (i + 0.5) / fps, the middle of
            its interval. 0 yields every frame of the file.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: if the file is no video, or no frame of it can be decoded.
    """
    with _open(path) as container:
        if not container.streams.video:
            raise ValueError(f"video: expected a video stream, got {path}, which has none")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        decoded = _decode(container, stream, path)
        chosen = _sample(decoded, fps) if fps else ((time, frame) for time, frame, _ in decoded)
        for time, frame in chosen:
            yield time, _upright(frame)


def read_sound(path: str | Path) -> np.ndarray:
    """Return the sound as float32 ``[samples]``, mono, 16 kHz, starting with the first video frame.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: if the file cannot be read or holds no sound.
    """
    with _open(path) as container:
        if not container.streams.audio:
            raise ValueError(f"video: expected a video with sound, got {path}, which has none")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        pieces = []
        start = 0.0
        decoded = _decode(container, stream, path, relative=False)
        for index, (time, frame, _) in enumerate(decoded):
            start = start if index else time
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
        delay = round((start - _first_time(container)) * SAMPLE_RATE)
    waveform = np.concatenate(pieces)
    return np.pad(waveform, (delay, 0)) if delay >= 0 else waveform[-delay:]


def write_video(
    path: Path, frames: Iterable[tuple[float, np.ndarray]], sound: str | Path, rate: float
) -> None:
    """Write an H.264 file of timed frames, with the sound of ``sound``.

    Odd sizes lose their last row or column, which H.264's subsampled colours cannot hold.

    Args:
        path: the file to write; its suffix names the container.
        frames: (seconds, RGB uint8 ``[H, W, 3]``); each is shown from its time on.
        sound: file whose first audio stream is encoded (AAC) beside them.
        rate: nominal frames per second.
    """
    with av.open(str(path), "w") as output, _open(sound) as source:
        clip = _Writer(output, source, rate, sound)
        for time, frame in frames:
            clip.write(time, frame)
        clip.close()


class _Writer:
    def __init__(
        self, output: OutputContainer, source: InputContainer, rate: float, sound: str | Path
    ) -> None:
        self.output = output
        self.rate = Fraction(rate).limit_denominator(1000)
        self.video: Any = None  # the stream, added with the first frame, which gives its size
        stream = source.streams.audio[0]
        layout = "mono" if stream.layout.nb_channels == 1 else "stereo"
        self.audio = output.add_stream("aac", rate=min(stream.rate, 48000), layout=layout)
        self.start = _first_time(source)
        self.sound = _decode(source, stream, sound, relative=False)
        self.resampler = av.AudioResampler(
            format=self.audio.format, layout=layout, rate=self.audio.rate
        )
        self.pending = next(self.sound, None)

    def write(self, time: float, image: np.ndarray) -> None:
        height, width = (extent - extent % 2 for extent in image.shape[:2])
        if self.video is None:
            self.video = self.output.add_stream("libx264", rate=self.rate)
            self.video.width, self.video.height = width, height
            self.video.pix_fmt = "yuv420p"
            self.video.codec_context.time_base = Fraction(1, _TICKS)
            self.video.options = {"crf": "18", "preset": "veryfast"}
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(image[:height, :width]), format="rgb24"
        )
        frame.pts = round(time * _TICKS)
        frame.time_base = Fraction(1, _TICKS)
        self.output.mux(self.video.encode(frame))
        self._write_sound_until(time)

    def close(self) -> None:
        self._write_sound_until(float("inf"))
        self.output.mux(self.video.encode(None))
        for frame in self.resampler.resample(None):
            self.output.mux(self.audio.encode(frame))
        self.output.mux(self.audio.encode(None))

    # Both streams advance together, so that their packets are interleaved in the file.
    def _write_sound_until(self, time: float) -> None:
        while self.pending is not None and self.pending[0] - self.start <= time:
            _, frame, _ = self.pending
            frame.pts = round((frame.time - self.start) / frame.time_base)
            if frame.pts >= 0:
                for piece in self.resampler.resample(frame):
                    self.output.mux(self.audio.encode(piece))
            self.pending = next(self.sound, None)


def _open(path: str | Path) -> InputContainer:
    if not Path(path).is_file():
        raise FileNotFoundError(f"video: expected a file, got {path}, which does not exist")
    try:
        return av.open(str(path))
    except av.error.FFmpegError as error:
        raise ValueError(
            f"video: expected a file FFmpeg reads, got {path}: {error.strerror}"
        ) from None


# Seconds at which the first frame of the video is shown, on the clock of the file.
def _first_time(container: InputContainer) -> float:
    if not container.streams.video:
        return 0.0
    stream = container.streams.video[0]
    return float((stream.start_time or 0) * (stream.time_base or 0))


# Yields (seconds, frame, seconds on screen) of the frames that can be decoded.
def _decode(
    container: InputContainer, stream: Any, path: str | Path, relative: bool = True
) -> Iterator[tuple[float, Any, float]]:
    rate = stream.average_rate if stream.type == "video" else None
    duration = float(1 / rate) if rate else 0.0
    start = None
    time = 0.0
    damaged = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            continue
        for frame in frames:
            time = float(frame.time) if frame.time is not None else time + duration
            start = time if start is None else start
            yield (time - start if relative else time), frame, duration
    if start is None:
        raise ValueError(f"video: expected {stream.type} that can be decoded, got none in {path}")
    if damaged:
        _LOGGER.warning("%s: %d damaged packets of its %s left out", path, damaged, stream.type)


def _sample(decoded: Iterable[tuple[float, Any, float]], fps: float) -> Iterator[tuple[float, Any]]:
    index = 0
    shown = None
    end = 0.0
    for time, frame, duration in decoded:
        while shown is not None and (index + 0.5) / fps < time:
            yield (index + 0.5) / fps, shown
            index += 1
        shown = frame
        end = time + duration
    while (index + 0.5) / fps < end or index == 0:
        yield (index + 0.5) / fps, shown
        index += 1


def _upright(frame: av.VideoFrame) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
