# SPDX-License-Identifier: Apache-2.0
"""Check a data set before training on it: every file that its metadata lists is opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from avsmodel.data.audio import SAMPLE_RATE, read_wav
from avsmodel.data.images import read_image
from avsmodel.data.layout import SPLITS, Clip, Layout, read_layout
from avsmodel.data.pickles import read_log_mel

T = TypeVar("T")


@dataclass
class Report:
    """What :func:`verify` found.

    Attributes:
        root: folder that holds the metadata file.
        format: ``"s4"``, ``"ms3"`` or ``"avss"``.
        problems: a sentence per missing, unreadable or inconsistent file or row.
        splits: clips by split.
        classes: labelled frames by what sounds in them: the clip's category (s4), ``"sounding"``
            (ms3) or each class of the mask (avss).
        labelled_frames: masks read.
        silent_frames: masks without foreground.
    """

    root: Path
    format: str
    problems: list[str] = field(default_factory=list)
    splits: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    labelled_frames: int = 0
    silent_frames: int = 0

    def __str__(self) -> str:
        splits = ", ".join(f"{self.splits[name]} {name}" for name in SPLITS)
        lines = [
            f"{self.format} in {self.root}: {splits} clips",
            f"{self.labelled_frames} labelled frames, {self.silent_frames} of them silent",
            *(f"  {count:7d}  {name}" for name, count in sorted(self.classes.items())),
            f"{len(self.problems)} problems",
            *(f"  {problem}" for problem in self.problems),
        ]
        return "\n".join(lines)


def verify(root: str | Path, format: str = "auto", *, progress: bool = False) -> Report:
    """Open every file of a data set and report every problem, not only the first.

    It checks the rows of the metadata; that each frame, mask, sound and log-mel pickle (if the data
    set has any) exists and can be read to its end; that frames and masks of a clip have one size;
    that a sound is at most one second shorter than its clip; and that every colour of a mask is
    that of a class.

    Args:
        root: folder of the data set.
        format: ``"s4"``, ``"ms3"``, ``"avss"``, or ``"auto"``.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if there is no metadata file.
        ValueError: for metadata that cannot be read at all.
    """
    problems: list[str] = []
    layout = read_layout(root, format, on_error=lambda error: problems.append(str(error)))
    report = Report(layout.root, layout.format, problems)
    pickled = any(clip.log_mel and clip.log_mel.is_file() for clip in layout.clips)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda clip: _check_clip(layout, clip, pickled), layout.clips)
        bar = tqdm(results, "verify", len(layout.clips), disable=not progress)
        for clip, found in zip(layout.clips, bar, strict=True):
            report.splits[clip.split] += 1
            report.classes.update(found.classes)
            report.labelled_frames += found.labelled
            report.silent_frames += found.silent
            where = f"(line {clip.line} of {layout.metadata.name})"
            report.problems += [f"{problem} {where}" for problem in found.problems]
    return report


@dataclass
class _Found:
    problems: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    labelled: int = 0
    silent: int = 0

    def attempt(self, read: Callable[[Path], T], path: Path) -> T | None:
        """Return ``read(path)``, or record its error and return None."""
        try:
            return read(path)
        except (OSError, ValueError) as error:
            self.problems.append(str(error))
            return None


def _check_clip(layout: Layout, clip: Clip, pickled: bool) -> _Found:
    found = _Found()
    sizes: dict[Path, tuple[int, ...]] = {}
    for index in range(clip.num_real):
        path = clip.frame_path(index)
        frame = found.attempt(read_image, path)
        if frame is not None:
            sizes[path] = frame.shape[:2]
    for index in range(clip.num_labelled):
        path = clip.mask_path(index)
        mask = found.attempt(layout.read_mask, path)
        if mask is not None:
            sizes[path] = mask.shape
            _count_classes(found, layout, clip, mask)
    usual: tuple[int, ...] = next(iter(sizes.values()), ())
    for path, size in sizes.items():
        if size != usual:
            found.problems.append(
                f"verify: expected {usual[1]}x{usual[0]} pixels as in the clip's first frame in "
                f"{path}, got {size[1]}x{size[0]}"
            )
    sound = found.attempt(read_wav, clip.audio)
    if sound is not None and len(sound) < (clip.num_real - 1) * SAMPLE_RATE:
        found.problems.append(
            f"verify: expected a sound of {clip.num_real} seconds in {clip.audio}, got "
            f"{len(sound) / SAMPLE_RATE:.2f}"
        )
    if pickled and clip.log_mel is not None:
        found.attempt(read_log_mel, clip.log_mel)
    return found


def _count_classes(found: _Found, layout: Layout, clip: Clip, mask: np.ndarray) -> None:
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=2))
    sounding = [int(c) for c in present if c]
    found.labelled += 1
    found.silent += not sounding
    if layout.binary:
        found.classes += [clip.category or "sounding"] * bool(sounding)
    else:
        found.classes += [layout.class_names[c] for c in sounding]
