# SPDX-License-Identifier: Apache-2.0
"""Where the files of AVSBench's three data sets are, in the folders as published.

s4    s4_meta_data.csv, s4_data/{visual_frames,gt_masks,audio_wav,audio_log_mel}/...
ms3   ms3_meta_data.csv, ms3_data/{visual_frames,gt_masks,audio_wav,audio_log_mel}/...
avss  metadata.csv, label2idx.json, {v1s,v1m,v2}/{uid}/{frames,labels_rgb,audio.wav}
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avsmodel.data.images import read_binary_mask, read_semantic_mask

SPLITS = ("train", "val", "test")
METADATA = {"s4": "s4_meta_data.csv", "ms3": "ms3_meta_data.csv", "avss": "metadata.csv"}
FOLDERS = {"s4": "Single-source", "ms3": "Multi-sources", "avss": "AVSS"}

# Frames that exist and, of those, frames labelled in training, per part of AVSS.
_AVSS_FRAMES = {"v1s": (5, 1), "v1m": (5, 5), "v2": (10, 10)}


@dataclass(frozen=True)
class Clip:
    """Where the files of one clip are.

    Attributes:
        line: of the clip in the metadata file.
        frames, masks: paths without the frame's number and ``.png`` or ``.jpg``.
        first: number of the first frame.
        num_real: frames that exist.
        num_labelled: of these, the first ones, which have a mask to use.
    """

    uid: str
    split: str
    category: str
    line: int
    frames: str
    frame_suffix: str
    masks: str
    first: int
    num_real: int
    num_labelled: int
    audio: Path
    log_mel: Path | None

    def frame_path(self, index: int) -> Path:
        """Return the path of frame ``index``, counted from 0."""
        return Path(f"{self.frames}{self.first + index}{self.frame_suffix}")

    def mask_path(self, index: int) -> Path:
        """Return the path of the mask of frame ``index``, counted from 0."""
        return Path(f"{self.masks}{self.first + index}.png")


@dataclass(frozen=True)
class Layout:
    """One data set on disk: its format, its classes and its clips, in the order of the CSV."""

    format: str
    root: Path
    num_frames: int
    class_names: tuple[str, ...]
    clips: tuple[Clip, ...] = field(repr=False)

    @property
    def binary(self) -> bool:
        """Whether masks tell foreground from background, without classes."""
        return self.format != "avss"

    @property
    def metadata(self) -> Path:
        """The CSV file that lists the clips."""
        return self.root / METADATA[self.format]

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the mask file at ``path`` as uint8 ``[H, W]``, class ids."""
        if self.binary:
            return read_binary_mask(path)
        return read_semantic_mask(path, len(self.class_names))


def find_layout(root: str | Path, format: str = "auto") -> tuple[Path, str]:
    """Find the metadata file of a data set.

    Args:
        root: folder that holds the file, or the one above it (which holds ``Single-source``,
            ``Multi-sources`` or ``AVSS``).
        format: ``"auto"``, ``"s4"``, ``"ms3"`` or ``"avss"``.

    Returns:
        The folder that holds the file, and the format that the file's name tells.

    Raises:
        FileNotFoundError: if none of the metadata files is there.
        ValueError: for an unknown format, or several data sets to choose from.
    """
    if format not in ("auto", *METADATA):
        raise ValueError(f"open_dataset: expected format auto, s4, ms3 or avss, got {format!r}")
    root = Path(root)
    formats = tuple(METADATA) if format == "auto" else (format,)
    found = [
        (folder, name)
        for name in formats
        for folder in (root, root / FOLDERS[name])
        if (folder / METADATA[name]).is_file()
    ]
    if not found:
        names = " or ".join(METADATA[name] for name in formats)
        raise FileNotFoundError(f"open_dataset: expected {names} in {root}, got none")
    if len(found) > 1:
        names = ", ".join(str(folder) for folder, _ in found)
        raise ValueError(f"open_dataset: expected one data set in {root}, got {names}")
    return found[0]


def read_layout(
    root: str | Path,
    format: str = "auto",
    on_error: Callable[[ValueError], None] | None = None,
) -> Layout:
    """Read the metadata of a data set; no clip is opened.

    Args:
        root: see :func:`find_layout`.
        format: ``"auto"``, ``"s4"``, ``"ms3"`` or ``"avss"``.
        on_error: called with the error of each bad row, which is then left out; without it the
            first bad row raises.

    Raises:
        FileNotFoundError: if there is no metadata file.
        ValueError: for a bad row (the message gives its line), or a label2idx.json that does not
            list classes.
    """
    folder, format = find_layout(root, format)
    path = folder / METADATA[format]
    columns, rows = _read_csv(path, format)
    clips: dict[str, Clip] = {}
    for line, cells in rows:
        try:
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} values")
            clip = make_clip(format, folder, line, dict(zip(columns, cells, strict=True)))
            earlier = clips.setdefault(clip.frames, clip)
            if earlier is not clip:
                raise ValueError(f"the clip of line {earlier.line} again")
        except ValueError as problem:
            error = ValueError(
                f"open_dataset: expected {', '.join(columns)} of one clip in line {line} of "
                f"{path}, got {problem}"
            )
            if on_error is None:
                raise error from None
            on_error(error)
    names = _class_names(folder) if format == "avss" else ("background", "sounding")
    frames = 10 if format == "avss" else 5
    return Layout(format, folder, frames, names, tuple(clips.values()))


_REQUIRED = {
    "s4": ("name", "category", "split"),
    "ms3": ("name", "split"),
    "avss": ("uid", "split", "label"),
}
_COLUMN_NAMES = {"video id": "name", "video_id": "name"}
_WITHOUT_HEADER = {"s4": ["name", "start", "category", "split"], "ms3": ["name", "split"]}


def _read_csv(path: Path, format: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    # Column names, and the rows with their line numbers.
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"open_dataset: expected a CSV file at {path}, got {error}") from None
    first = [cell.lower() for cell in rows[0][1]] if rows else []
    if "split" not in first and format in _WITHOUT_HEADER:
        return _WITHOUT_HEADER[format], rows
    columns = [_COLUMN_NAMES.get(cell, cell) for cell in first]
    missing = [name for name in _REQUIRED[format] if name not in columns]
    if missing:
        raise ValueError(
            f"open_dataset: expected a column {missing[0]!r} in the first line of {path}, got "
            f"{', '.join(columns) or 'nothing'}"
        )
    return columns, rows[1:]


def _choice(row: dict[str, str], column: str, choices: Sequence[str]) -> str:
    if row[column] not in choices:
        raise ValueError(f"{column} {row[column]!r}, which is none of {', '.join(choices)}")
    return row[column]


def _path_part(row: dict[str, str], column: str) -> str:
    # A name becomes part of a path: it must not be empty or lead out of the data set.
    value = row[column]
    if value in ("", ".", "..") or "/" in value or "\\" in value or "\0" in value:
        raise ValueError(f"{column} {value!r}, which cannot be part of a path")
    return value


def _s4_clip(root: Path, line: int, row: dict[str, str]) -> Clip:
    split = _choice(row, "split", SPLITS)
    name, category = _path_part(row, "name"), _path_part(row, "category")
    data, part = root / "s4_data", Path(split, category)
    return Clip(
        uid=name,
        split=split,
        category=category,
        line=line,
        frames=str(data / "visual_frames" / part / name / f"{name}_"),
        frame_suffix=".png",
        masks=str(data / "gt_masks" / part / name / f"{name}_"),
        first=1,
        num_real=5,
        num_labelled=1 if split == "train" else 5,
        audio=data / "audio_wav" / part / f"{name}.wav",
        log_mel=data / "audio_log_mel" / part / f"{name}.pkl",
    )


def _ms3_clip(root: Path, line: int, row: dict[str, str]) -> Clip:
    split = _choice(row, "split", SPLITS)
    name = _path_part(row, "name")
    data = root / "ms3_data"
    return Clip(
        uid=name,
        split=split,
        category="",
        line=line,
        frames=str(data / "visual_frames" / name / f"{name}.mp4_"),
        frame_suffix=".png",
        masks=str(data / "gt_masks" / split / name / f"{name}_"),
        first=1,
        num_real=5,
        num_labelled=5,
        audio=data / "audio_wav" / split / f"{name}.wav",
        log_mel=data / "audio_log_mel" / split / f"{name}.pkl",
    )


def _avss_clip(root: Path, line: int, row: dict[str, str]) -> Clip:
    split = _choice(row, "split", SPLITS)
    part = _choice(row, "label", tuple(_AVSS_FRAMES))
    uid = _path_part(row, "uid")
    folder = root / part / uid
    num_real, num_labelled = _AVSS_FRAMES[part]
    return Clip(
        uid=uid,
        split=split,
        category=row.get("a_obj", ""),
        line=line,
        frames=str(folder / "frames") + "/",
        frame_suffix=".jpg",
        masks=str(folder / "labels_rgb") + "/",
        first=0,
        num_real=num_real,
        num_labelled=num_labelled if split == "train" else num_real,
        audio=folder / "audio.wav",
        log_mel=None,
    )


_CLIPS = {"s4": _s4_clip, "ms3": _ms3_clip, "avss": _avss_clip}


def make_clip(format: str, root: Path, line: int, row: dict[str, str]) -> Clip:
    """Return the clip that one row of the metadata describes."""
    row = {_COLUMN_NAMES.get(name, name): value for name, value in row.items()}
    return _CLIPS[format](root, line, row)


def _class_names(root: Path) -> tuple[str, ...]:
    # Class ids follow the order of the keys; the published values contradict the masks' colours.
    path = root / "label2idx.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"open_dataset: expected a file at {path}, got none") from None
    except ValueError as error:
        raise ValueError(f"open_dataset: expected JSON in {path}, got {error}") from None
    if not isinstance(names, dict) or next(iter(names), "").lower() != "background":
        raise ValueError(
            f"open_dataset: expected an object whose first key is 'background' in {path}, got "
            f"{str(names)[:60]}"
        )
    if not 2 <= len(names) <= 256:
        raise ValueError(f"open_dataset: expected 2 to 256 classes in {path}, got {len(names)}")
    return ("background", *list(names)[1:])
