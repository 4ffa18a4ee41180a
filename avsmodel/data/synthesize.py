# SPDX-License-Identifier: Apache-2.0
"""A small synthetic audiovisual data set in AVSBench's folders and file formats.

Several objects move in each clip. Only some of them sound, some sounds have no object in the
picture, and which ones sound may change from second to second; the same kinds of objects are silent
in other clips. So a picture alone shows where objects are, but not which of them to segment. Every
other clip of several sources in the test split combines classes that no training clip combines. The
task serves to test a system; no paper uses it.

Beside the files of the layout stand ``synthetic.json``, which tells what each clip consists of, and
``objects/``, the classes of all objects, silent ones too; only :func:`describe` reads them.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from avsmodel.data.audio import SAMPLE_RATE, log_mel
from avsmodel.data.layout import METADATA, SPLITS, Clip, make_clip
from avsmodel.data.palette import palette
from avsmodel.data.pickles import write_log_mel
from avsmodel.data.scene import draw_objects, render
from avsmodel.data.sources import CLASSES, ENTANGLED, Cast, World, draw_cast
from avsmodel.data.timbre import mix

TRUTH = "synthetic.json"
OBJECTS = "objects"

PARTS = ("v1s", "v1m", "v2")
_CONTENTS = {
    "s4": (METADATA["s4"], "s4_data", TRUTH, OBJECTS),
    "ms3": (METADATA["ms3"], "ms3_data", TRUTH, OBJECTS),
    "avss": (METADATA["avss"], "label2idx.json", *PARTS, TRUTH, OBJECTS),
}


@dataclass(frozen=True)
class SyntheticClip:
    """A clip before it is written.

    Attributes:
        frames: uint8 ``[T, H, W, 3]``.
        visible: uint8 ``[T, H, W]``, 1 + class of the object shown, 0 = background.
        labels: the same for sounding objects only: the ground truth.
        cast: what the clip consists of.
        sound: int16 ``[T * 16000]``.
    """

    frames: np.ndarray
    visible: np.ndarray
    labels: np.ndarray
    cast: Cast
    sound: np.ndarray


def synthesize(
    root: str | Path,
    format: str = "ms3",
    clips: Sequence[int] = (160, 20, 40),
    size: int = 160,
    seed: int = 0,
    *,
    world: World = ENTANGLED,
    parts: Sequence[str] = PARTS,
    log_mel_pickles: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write a synthetic data set; equal arguments give equal bytes.

    Args:
        root: folder to write into, made if need be.
        format: s4 (one class sounds throughout a clip), ms3 (up to five at a time, every frame
            labelled) or avss (both kinds, with classes).
        clips: number of train, val and test clips.
        size: side of the frames in pixels.
        seed: of everything random.
        world: how many classes and sources there are.
        parts: of avss, in turn: v1s (5 frames, one class sounds throughout, only the first frame is
            labelled in training), v1m (5 frames, several sound), v2 (10 frames, several sound).
        log_mel_pickles: also write audio_log_mel/*.pkl (s4 and ms3).
        overwrite: replace an earlier data set of this format in ``root``; other files stay.
        progress: show a progress bar.

    Returns:
        ``root``.

    Raises:
        ValueError: an unknown format or part, or a size under 16 or a number of clips below 0.
        FileExistsError: ``root`` is not empty and ``overwrite`` is not set.
    """
    root = Path(root)
    if format not in METADATA:
        raise ValueError(f"synthesize: expected format s4, ms3 or avss, got {format!r}")
    if len(clips) != 3 or min(clips) < 0 or not sum(clips):
        raise ValueError(f"synthesize: expected clips of train, val and test, got {clips}")
    if size < 16:
        raise ValueError(f"synthesize: expected a size of at least 16, got {size}")
    if format != "avss":
        parts = ("",)
    elif not parts or set(parts) - set(PARTS):
        raise ValueError(f"synthesize: expected parts of {PARTS}, got {tuple(parts)}")
    _prepare_folder(root, format, overwrite)
    jobs = [(split, index) for split, n in zip(SPLITS, clips, strict=True) for index in range(n)]
    rows, truth = [], {}
    for number, (split, index) in enumerate(tqdm(jobs, "synthesize", disable=not progress)):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        part, turn = parts[index % len(parts)], index // len(parts)
        single = part == "v1s" or format == "s4"
        unseen = split == "test" and not single and turn % 2 == 1
        content = compose(rng, world, 10 if part == "v2" else 5, size, single=single, unseen=unseen)
        row = _metadata(format, part, number, split, content)
        clip = make_clip(format, root, number, row)
        _write_clip(clip, content, log_mel_pickles)
        _write_objects(root, clip.uid, content)
        truth[clip.uid] = _truth(split, content.cast)
        rows.append(row)
    (root / TRUTH).write_text(json.dumps(truth) + "\n")
    if format == "avss":
        labels = {name: index for index, name in enumerate(("background", *CLASSES))}
        (root / "label2idx.json").write_text(json.dumps(labels, indent=2) + "\n")
    # Last, so that an interrupted run leaves nothing that opens as a data set.
    with (root / METADATA[format]).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return root


def compose(
    rng: np.random.Generator,
    world: World,
    num_frames: int,
    size: int,
    *,
    single: bool,
    unseen: bool = False,
) -> SyntheticClip:
    """Make one clip.

    Args:
        rng: source of all random choices.
        world: what there is.
        num_frames: T.
        size: side of the frames in pixels.
        single: whether one object sounds, throughout the clip.
        unseen: see :func:`~avsmodel.data.sources.draw_cast`.
    """
    cast = draw_cast(rng, world, num_frames, single=single, unseen=unseen)
    objects = draw_objects(rng, cast.kinds[: cast.on_screen], coloured=world.coloured)
    frames, shown = render(rng, objects, num_frames, size)
    # Object indices start at -1 (background): plus one, they index these tables.
    classes = np.array((0, *(kind + 1 for kind in cast.kinds)), np.uint8)
    visible = classes[shown + 1]
    heard = np.pad(cast.sounding, ((0, 0), (1, 0)))
    heard = heard[np.arange(num_frames)[:, None, None], shown + 1]
    return SyntheticClip(
        frames,
        visible,
        visible * heard,
        cast,
        mix(rng, cast.kinds, cast.sounding, clear=world.clear),
    )


def _truth(split: str, cast: Cast) -> dict[str, Any]:
    return {
        "split": split,
        "classes": [CLASSES[kind] for kind in cast.kinds],
        "on_screen": cast.on_screen,
        "sounding": cast.sounding.astype(int).tolist(),
        "unseen": cast.unseen,
    }


def _write_objects(root: Path, uid: str, content: SyntheticClip) -> None:
    (root / OBJECTS).mkdir(exist_ok=True)
    for t, labels in enumerate(content.visible):
        Image.fromarray(labels).save(root / OBJECTS / f"{uid}_{t}.png", compress_level=1)


def _metadata(
    format: str, part: str, number: int, split: str, content: SyntheticClip
) -> dict[str, str]:
    # The clip's row of the published CSV.
    name = f"clip{number:05d}"
    heard = zip(content.cast.kinds, content.cast.sounding.T, strict=True)
    names = [CLASSES[kind] for kind, seconds in heard if seconds.any()]
    if format == "s4":
        return {"name": name, "start": "0", "category": names[0], "split": split}
    if format == "ms3":
        return {"video id": name, "split": split}
    return {
        "vid": name,
        "uid": f"{name}_0_{1000 * len(content.frames)}",
        "a_obj": "_".join(names),
        "split": split,
        "label": part,
    }


def _write_clip(clip: Clip, content: SyntheticClip, log_mel_pickles: bool) -> None:
    import soundfile

    semantic = clip.frame_suffix == ".jpg"
    for path in (clip.frame_path(0), clip.mask_path(0), clip.audio):
        path.parent.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(content.frames):
        options: dict[str, Any] = {"quality": 92} if semantic else {"compress_level": 1}
        Image.fromarray(frame).save(clip.frame_path(t), **options)
    for t, labels in enumerate(content.labels[: clip.num_labelled]):
        if semantic:
            ids = clip.mask_path(t).parent.with_name("labels_semantic") / clip.mask_path(t).name
            ids.parent.mkdir(exist_ok=True)
            Image.fromarray(labels).save(ids)
            Image.fromarray(palette()[labels]).save(clip.mask_path(t))
        else:
            Image.fromarray((labels > 0).astype(np.uint8) * 255).save(clip.mask_path(t))
    soundfile.write(clip.audio, content.sound, SAMPLE_RATE, subtype="PCM_16")
    if log_mel_pickles and clip.log_mel:
        clip.log_mel.parent.mkdir(parents=True, exist_ok=True)
        write_log_mel(clip.log_mel, log_mel(content.sound / 32768, len(content.frames)))


def _prepare_folder(root: Path, format: str, overwrite: bool) -> None:
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"synthesize: expected a folder at {root}, got a file")
    if root.is_dir() and any(root.iterdir()) and not overwrite:
        raise FileExistsError(
            f"synthesize: expected an empty folder at {root}, got one with files "
            "(overwrite=True replaces an earlier data set)"
        )
    root.mkdir(parents=True, exist_ok=True)
    for name in _CONTENTS[format]:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
