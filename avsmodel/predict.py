# SPDX-License-Identifier: Apache-2.0
"""Segment what sounds in a user's own video."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from avsmodel.checkpoint import write_atomically
from avsmodel.data.audio import log_mel
from avsmodel.data.images import normalise, resize
from avsmodel.data.palette import palette
from avsmodel.draw import legend, overlay
from avsmodel.video import SAMPLE_RATE, read_frames, read_sound, write_video

if TYPE_CHECKING:
    from avsmodel.pretrained import Model

_WRITTEN = ("masks", "labels_rgb", "labels_semantic", "overlay.mp4", "scores.npz")


@dataclass
class Prediction:
    """What sounds where in a video.

    Attributes:
        video: the file.
        fps: frames per second that were segmented, 0 = every frame.
        times: float64 ``[T]``, seconds of the frames since the first frame of the video.
        labels: uint8 ``[T, h, w]``, class ids at the model's resolution, 0 = background.
        scores: float16 ``[T, h, w]``, probability in 0..1 that something at the pixel sounds.
        class_names: names by class id.
    """

    video: Path
    fps: float
    times: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    class_names: tuple[str, ...]

    def mask(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Return the class ids of one frame enlarged to ``size`` (height, width): uint8 ``[H, W]``.

        A pixel is foreground where the bilinearly enlarged score exceeds 0.5; its class is the one
        whose bilinearly enlarged mask is largest there.
        """
        score = _enlarge(self.scores[index], size)
        present = np.unique(self.labels[index])
        present = present[present > 0]
        if not len(present):
            return np.zeros(size, np.uint8)
        coverage = np.stack([_enlarge(self.labels[index] == label, size) for label in present])
        return np.where(score > 0.5, present[coverage.argmax(0)], 0).astype(np.uint8)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write the overlay video with the original sound, PNG masks and an NPZ of the scores.

        Masks have the video's size and AVSBench's names: ``masks/{name}_{1..}.png`` (0 and 255)
        for one foreground class, ``labels_semantic/{0..}.png`` (class ids) and
        ``labels_rgb/{0..}.png`` (VOC colours) for several. In the overlay each segmented frame
        stays on screen for the interval that it represents.

        Returns:
            The files and folders that were written.

        Raises:
            FileExistsError: if the folder holds a prediction and ``overwrite`` is not set.
        """
        folder = Path(folder)
        check_output(folder, overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _WRITTEN:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
        shown = (
            (time, self._write_masks(folder, index, image))
            for index, (time, image) in enumerate(self._frames())
        )
        rate = self.fps or (len(self.times) - 1) / max(np.ptp(self.times), 1e-6) or 1.0
        write_video(folder / "overlay.mp4", shown, self.video, rate)
        arrays: dict[str, Any] = {
            "scores": self.scores,
            "labels": self.labels,
            "times": self.times,
            "class_names": np.array(self.class_names),
        }
        write_atomically(folder / "scores.npz", lambda file: np.savez_compressed(file, **arrays))
        return [folder / name for name in _WRITTEN if (folder / name).exists()]

    def _frames(self) -> Iterator[tuple[float, np.ndarray]]:
        # A frame is taken from the middle of its interval and shown from its start.
        half = 0.5 / self.fps if self.fps else 0.0
        for time, image in read_frames(self.video, self.fps):
            yield time - half, image

    def _write_masks(self, folder: Path, index: int, image: np.ndarray) -> np.ndarray:
        labels = self.mask(index, image.shape[:2])
        if len(self.class_names) == 2:
            files = {f"masks/{self.video.stem}_{index + 1}.png": labels * 255}
        else:
            files = {
                f"labels_semantic/{index}.png": labels,
                f"labels_rgb/{index}.png": palette(len(self.class_names))[labels],
            }
        for name, pixels in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
        return legend(overlay(image, labels), labels, self.class_names)


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError if ``folder`` holds a prediction that may not be replaced."""
    present = [name for name in _WRITTEN if (folder / name).exists()]
    if present and not overwrite:
        raise FileExistsError(
            f"predict: expected an output folder without a prediction, got {folder} with "
            f"{present[0]} (overwrite replaces it)"
        )


def predict(
    model: Model, video: str | Path, *, fps: float = 1.0, window: int = 0, progress: bool = False
) -> Prediction:
    """Segment the sounding objects of a video.

    Each frame comes with the second of sound around it. The model sees windows of as many
    frames as in training, one second apart as in training (at higher rates the windows
    interleave); windows overlap by half, and each frame keeps the result of the window in which
    it is most central.

    Args:
        model: what :func:`avsmodel.load` returned.
        video: any file FFmpeg reads, with a video and an audio stream.
        fps: frames per second to segment, taken from the middle of their interval; 0 = all.
        window: frames the model sees at once; 0 = as in training.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no video or has no sound, or a negative rate or window.
    """
    if fps < 0 or window < 0:
        raise ValueError(f"predict: expected fps >= 0 and window >= 0, got {fps} and {window}")
    waveform = read_sound(video)
    size = model.config.data.size
    seconds, images = [], []
    for time, image in read_frames(video, fps):
        seconds.append(time)
        images.append(resize(image, size))
    frames, times = np.stack(images), np.array(seconds)
    rate = fps or (len(times) - 1) / max(np.ptp(times), 1e-6)
    window = window or model.config.data.num_frames
    labels = np.zeros(frames.shape[:3], np.uint8)
    scores = np.zeros(frames.shape[:3], np.float16)
    groups = list(_windows(len(times), window, max(1, round(rate))))
    for seen, kept in tqdm(groups, desc="predict", disable=not progress):
        sound = torch.cat([log_mel(_second_around(waveform, time), 1) for time in times[seen]])
        result, _ = model.segment(normalise(frames[seen])[None], sound[None])
        labels[seen[kept]] = result.labels[0, kept].cpu().numpy()
        scores[seen[kept]] = result.scores[0, kept].float().cpu().numpy()
    return Prediction(Path(video), fps, times, labels, scores, model.class_names)


# Yields (frames the model sees, which of them keep their result), both index arrays.
def _windows(count: int, length: int, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for phase in range(min(step, count)):
        frames = np.arange(phase, count, step)
        last = max(0, len(frames) - length)
        starts = np.unique([*range(0, last, max(1, length // 2)), last])
        distance = np.abs(starts[:, None] + (length - 1) / 2 - np.arange(len(frames)))
        owner = distance.argmin(0)
        for index, start in enumerate(starts):
            seen = slice(start, start + length)
            yield frames[seen], np.flatnonzero(owner[seen] == index)


def _second_around(waveform: np.ndarray, time: float) -> np.ndarray:
    start = round((time - 0.5) * SAMPLE_RATE)
    piece = waveform[max(start, 0) : max(start + SAMPLE_RATE, 0)]
    return np.pad(piece, (max(-start, 0), 0))


def _enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    tensor = torch.from_numpy(values.astype(np.float32))[None, None]
    return functional.interpolate(tensor, size, mode="bilinear")[0, 0].numpy()
