# SPDX-License-Identifier: Apache-2.0
"""AVSBench's clips as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from avsmodel.data.audio import HOP_SECONDS, log_mel, pad_examples, read_wav
from avsmodel.data.images import normalise, read_image, resize
from avsmodel.data.layout import SPLITS, Clip, Layout, read_layout
from avsmodel.data.pickles import read_log_mel
from avsmodel.data.sample import Sample


def open_dataset(
    root: str | Path,
    format: str = "auto",
    split: str = "train",
    size: int = 224,
    train: bool = False,
    *,
    audio_hop: str = "vggish",
    log_mel: str = "wav",
    num_frames: int | None = None,
    flip: bool = False,
    scales: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
    cache: bool = False,
) -> AVSDataset:
    """Open one split of an AVSBench data set.

    Args:
        root: folder that holds the metadata file (or the folder above it).
        format: ``"s4"``, ``"ms3"``, ``"avss"``, or ``"auto"``: that of the metadata file found.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: side of frames and masks in pixels.
        train: use the geometry of training (short side to ``size``, centre crop; ``flip`` and
            ``scales`` apply, ``num_frames`` takes a random window) instead of evaluation's
            (stretched to ``size`` x ``size``).
        audio_hop: from one log-mel example to the next: ``"vggish"`` (0.96 s, as published) or
            ``"second"`` (1.0 s, aligned with the frames).
        log_mel: compute log-mels from the ``"wav"`` files, or read the published ``"pickle"``
            files.
        num_frames: frames of a clip to take, all by default.
        flip: mirror a clip with probability one half.
        scales: range of a random zoom; below 1 the frame shrinks in a border of mean colour.
        seed: of the random choices, which also depend on the epoch and the clip, never on the
            number of workers.
        cache: keep decoded clips in memory (each worker keeps its own).

    Raises:
        FileNotFoundError: if there is no metadata, or a clip lacks its files.
        ValueError: for a wrong argument, a bad row of the CSV file, or a split without clips.
    """
    layout = read_layout(root, format)
    if split not in SPLITS:
        raise ValueError(f"open_dataset: expected split train, val or test, got {split!r}")
    if audio_hop not in HOP_SECONDS:
        raise ValueError(f"open_dataset: expected audio_hop vggish or second, got {audio_hop!r}")
    if log_mel not in ("wav", "pickle"):
        raise ValueError(f"open_dataset: expected log_mel wav or pickle, got {log_mel!r}")
    if log_mel == "pickle" and layout.format == "avss":
        raise ValueError("open_dataset: expected log_mel 'wav' for avss, got 'pickle'")
    if size < 1:
        raise ValueError(f"open_dataset: expected a positive size, got {size}")
    if num_frames is not None and not 1 <= num_frames <= layout.num_frames:
        raise ValueError(
            f"open_dataset: expected num_frames 1 to {layout.num_frames}, got {num_frames}"
        )
    if not 0 < scales[0] <= scales[1]:
        raise ValueError(f"open_dataset: expected scales (low, high) above 0, got {scales}")
    clips = tuple(clip for clip in layout.clips if clip.split == split)
    if not clips:
        raise ValueError(f"open_dataset: expected clips of {split} in {layout.metadata}, got none")
    for clip in clips:
        pickled = clip.log_mel if log_mel == "pickle" else None
        sound = clip.audio if pickled is None else pickled
        for path in (clip.frame_path(0), clip.mask_path(0), sound):
            if not path.is_file():
                raise FileNotFoundError(
                    f"open_dataset: expected a file at {path} (line {clip.line} of "
                    f"{layout.metadata}), got none"
                )
    return AVSDataset(
        layout,
        clips,
        size=size,
        train=train,
        hop_seconds=HOP_SECONDS[audio_hop],
        pickled=log_mel == "pickle",
        num_frames=num_frames or layout.num_frames,
        flip=flip and train,
        scales=(scales[0], scales[1]) if train else (1.0, 1.0),
        seed=seed,
        cache=cache,
    )


class AVSDataset(Dataset[Sample]):
    """Clips of one split, each a :class:`Sample`; made by :func:`open_dataset`.

    Attributes:
        format: ``"s4"``, ``"ms3"`` or ``"avss"``.
        root: folder that holds the metadata file.
        binary: whether masks tell foreground from background, without classes.
        class_names: names by class id, ``"background"`` first.
        num_classes: classes, background included.
        num_frames: T of every sample.
        clips: where the files of each clip are.
    """

    def __init__(
        self,
        layout: Layout,
        clips: Sequence[Clip],
        *,
        size: int,
        train: bool,
        hop_seconds: float,
        pickled: bool,
        num_frames: int,
        flip: bool,
        scales: tuple[float, float],
        seed: int,
        cache: bool,
    ):
        self.layout, self.clips = layout, clips
        self.format, self.root, self.binary = layout.format, layout.root, layout.binary
        self.class_names = list(layout.class_names)
        self.num_classes = len(layout.class_names)
        self.num_frames = num_frames
        self._size, self._train = size, train
        self._hop_seconds, self._pickled = hop_seconds, pickled
        self._flip, self._scales, self._seed = flip, scales, seed
        self._cache: dict[int, _Decoded] | None = {} if cache else None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.clips)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random augmentation of this epoch; running workers see it too."""
        self._epoch.fill_(epoch)

    def audio_path(self, index: int) -> Path:
        """Return the path of the clip's sound."""
        return self.clips[index].audio

    def frame_paths(self, index: int) -> list[Path]:
        """Return the paths of the clip's frames that exist."""
        clip = self.clips[index]
        return [clip.frame_path(frame) for frame in range(clip.num_real)]

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"AVSDataset: expected an index below {len(self)}, got {index}")
        index %= len(self)
        clip = self.clips[index]
        cached = self._cache.get(index) if self._cache is not None else None
        decoded = self._decode(clip) if cached is None else cached
        if self._cache is not None:
            self._cache[index] = decoded
        random = np.random.default_rng([self._seed, int(self._epoch), index])
        # A training window lies in the frames that exist and holds a labelled one; the first frames
        # of a clip are labelled.
        last = max(0, min(clip.num_real - self.num_frames, clip.num_labelled - 1))
        start = int(random.integers(last + 1)) if self._train else 0
        window = slice(start, start + self.num_frames)
        real = torch.arange(self.layout.num_frames)[window] < clip.num_real
        frames = normalise(decoded.frames[window])
        frames[~real] = 0
        masks = torch.from_numpy(decoded.masks[window]).to(torch.int64)
        if self._scales != (1.0, 1.0):
            frames, masks = _zoom(frames, masks, random.uniform(*self._scales), random)
        if self._flip and random.integers(2):
            frames, masks = frames.flip(-1), masks.flip(-1)
        return Sample(
            uid=clip.uid,
            frames=frames,
            log_mel=decoded.log_mel[window].clone(),
            masks=masks,
            real=real,
            labelled=torch.arange(self.layout.num_frames)[window] < clip.num_labelled,
            index=index,
        )

    def _decode(self, clip: Clip) -> _Decoded:
        total, size = self.layout.num_frames, self._size
        frames = np.zeros((total, size, size, 3), np.uint8)
        masks = np.zeros((total, size, size), np.uint8)
        for i in range(clip.num_real):
            frames[i] = resize(read_image(clip.frame_path(i)), size, crop=self._train)
        for i in range(clip.num_labelled):
            mask = self.layout.read_mask(clip.mask_path(i))
            masks[i] = resize(mask, size, crop=self._train, nearest=True)
        # As published: a short sound is padded with its last example (S4, MS3) or zeros (AVSS).
        if self._pickled and clip.log_mel is not None:
            sound = pad_examples(read_log_mel(clip.log_mel), total, repeat_last=True)
        else:
            waveform = read_wav(clip.audio)
            sound = log_mel(waveform, total, self._hop_seconds, repeat_last=self.binary)
            sound[clip.num_real :] = 0
        return _Decoded(frames, masks, sound)


@dataclass(frozen=True)
class _Decoded:
    # A clip before its random augmentation, in the smallest dtypes that hold it.
    frames: np.ndarray  # uint8 [T, H, W, 3]
    masks: np.ndarray  # uint8 [T, H, W]
    log_mel: Tensor  # [T, 1, 96, 64]


def _zoom(
    frames: Tensor, masks: Tensor, scale: float, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    # Scale a clip, then crop it to its old size, or pad it with zeros, at a random place.
    size = frames.shape[-1]
    scaled = max(1, round(size * scale))
    frames = F.interpolate(frames, size=(scaled, scaled), mode="bilinear", antialias=scale < 1)
    labels = masks.to(torch.float32).unsqueeze(1)
    masks = F.interpolate(labels, size=(scaled, scaled), mode="nearest-exact")
    masks = masks.squeeze(1).to(torch.int64)
    top, left = (int(random.integers(abs(scaled - size) + 1)) for _ in range(2))
    if scaled >= size:
        rows, columns = slice(top, top + size), slice(left, left + size)
        return frames[..., rows, columns].contiguous(), masks[..., rows, columns].contiguous()
    border = (left, size - scaled - left, top, size - scaled - top)
    return F.pad(frames, border), F.pad(masks, border)
