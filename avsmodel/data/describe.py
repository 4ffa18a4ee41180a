# SPDX-License-Identifier: Apache-2.0
"""How hard a synthetic data set is, in figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from avsmodel.data.audio import log_mel, read_wav
from avsmodel.data.layout import Clip, read_layout
from avsmodel.data.sources import CLASSES
from avsmodel.data.synthesize import OBJECTS, TRUTH

_RIDGE = 30.0  # of the linear read-out
_RATES = 16  # modulations that it sees, 1 to 15 Hz and the mean


@dataclass(frozen=True)
class Figures:
    """What :func:`describe` measured; shares and J are fractions of 1.

    Attributes:
        clips: of each split.
        sources_per_second: mean number of sounding sources.
        changes: share of seconds whose sources differ from those of the second before.
        constant: share of clips whose sources stay the same.
        off_screen: share of clips with a source that the picture does not show.
        unseen: share of the test clips whose classes sound together in no training clip.
        J_constant: of an oracle that keeps one set of sources per clip.
        J_all_objects: of segmenting everything that could sound.
        J_other_sound: of an oracle that hears another clip.
        heard_per_second: share of the sources that a linear read-out of a second's log-mel finds,
            as many guesses as there are sources.
        heard_per_clip: the same from all seconds of a clip, where its sources stay the same.
    """

    clips: dict[str, int]
    sources_per_second: float
    changes: float
    constant: float
    off_screen: float
    unseen: float
    J_constant: float
    J_all_objects: float
    J_other_sound: float
    heard_per_second: float
    heard_per_clip: float

    def __str__(self) -> str:
        lines = [", ".join(f"{count} {split}" for split, count in self.clips.items()) + " clips"]
        for name, text in _WORDS.items():
            value = getattr(self, name)
            shown = f"{value:6.2f}" if name == "sources_per_second" else f"{100 * value:6.1f}"
            lines.append(f"{shown}  {text}")
        return "\n".join(lines)


_WORDS = {
    "sources_per_second": "sources sound in a second",
    "changes": "% of the seconds have other sources than the one before",
    "constant": "% of the clips keep their sources",
    "off_screen": "% of the clips have a source outside the picture",
    "unseen": "% of the test clips combine classes that no training clip combines",
    "J_constant": "J of an oracle that keeps one set of sources per clip",
    "J_all_objects": "J of segmenting every object, sounding or silent",
    "J_other_sound": "J of an oracle that hears another clip's sources",
    "heard_per_second": "% of the sources are found by a linear read-out of one second",
    "heard_per_clip": "% are found by it from all seconds of a clip that keeps its sources",
}


def describe(root: str | Path, *, progress: bool = False) -> Figures:
    """Measure how hard a data set of :func:`synthesize` is.

    J is that of the test split, in the picture's own resolution, all sounding classes together; the
    read-out is fitted to the training split and measured on the test split.

    Raises:
        FileNotFoundError: if ``root`` is no data set, or not one of :func:`synthesize`.
        ValueError: without a training or a test clip.
    """
    root = Path(root)
    if not (root / TRUTH).is_file():
        raise FileNotFoundError(f"data describe: expected {TRUTH} in {root}, got none")
    truth: dict[str, Any] = json.loads((root / TRUTH).read_text("utf-8"))
    layout = read_layout(root)
    clips = {split: [c for c in layout.clips if c.split == split] for split in ("train", "test")}
    for split, found in clips.items():
        if not found:
            raise ValueError(f"data describe: expected {split} clips in {root}, got none")
    splits = [entry["split"] for entry in truth.values()]
    sounding = [np.array(entry["sounding"], bool) for entry in truth.values()]
    test = [truth[clip.uid] for clip in clips["test"]]
    second, clip_ = _read_out(clips, truth, progress)
    return Figures(
        clips={split: splits.count(split) for split in dict.fromkeys(splits)},
        sources_per_second=_mean(s.sum(1).mean() for s in sounding),
        changes=_mean((s[1:] != s[:-1]).any(1).mean() for s in sounding),
        constant=_mean((s == s[0]).all() for s in sounding),
        off_screen=_mean(
            s[:, entry["on_screen"] :].any()
            for s, entry in zip(sounding, truth.values(), strict=True)
        ),
        unseen=_mean(entry["unseen"] for entry in test),
        **_oracles(root, clips["test"], test),
        heard_per_second=second,
        heard_per_clip=clip_,
    )


def _mean(values: Iterator[Any]) -> float:
    return float(np.mean([float(value) for value in values]))


def _heard(entry: dict[str, Any]) -> np.ndarray:
    # bool [T, classes]: what sounds.
    heard = np.zeros((len(entry["sounding"]), len(CLASSES)), bool)
    for column, name in enumerate(entry["classes"]):
        heard[:, CLASSES.index(name)] = np.array(entry["sounding"], bool)[:, column]
    return heard


def _oracles(root: Path, clips: list[Clip], entries: list[dict[str, Any]]) -> dict[str, float]:
    # Of solvers that see every object and its class exactly, and differ in what they hear.
    heard = [_heard(entry) for entry in entries]
    score: dict[str, list[float]] = {"J_constant": [], "J_all_objects": [], "J_other_sound": []}
    for index, clip in enumerate(clips):
        other, own = heard[index - 1], heard[index]
        most = np.broadcast_to(own.mean(0) >= 0.5, own.shape)
        everything = np.ones_like(own)
        for t in range(len(own)):
            objects = np.asarray(Image.open(root / OBJECTS / f"{clip.uid}_{t}.png"))
            truth = np.pad(own[t], (1, 0))[objects]
            solvers = (most[t], everything[t], other[t % len(other)])
            for name, heard_by in zip(score, solvers, strict=True):
                score[name].append(_overlap(np.pad(heard_by, (1, 0))[objects], truth))
    return {name: float(np.mean(values)) for name, values in score.items()}


def _overlap(prediction: np.ndarray, truth: np.ndarray) -> float:
    union = (prediction | truth).sum()
    return float((prediction & truth).sum() / union) if union else 1.0


def _read_out(
    clips: dict[str, list[Clip]], truth: dict[str, Any], progress: bool
) -> tuple[float, float]:
    # Ridge regression from the features of a second to the classes that sound in it.
    features, targets = {}, {}
    for split, found in clips.items():
        bar = tqdm(found, f"listen to {split}", disable=not progress)
        features[split] = [_features(clip, len(truth[clip.uid]["sounding"])) for clip in bar]
        targets[split] = [torch.from_numpy(_heard(truth[clip.uid])).float() for clip in found]
    x, y = torch.cat(features["train"]), torch.cat(targets["train"])
    centre, scale = x.mean(0), x.std(0) + 1e-3
    x = (x - centre) / scale
    weight = torch.linalg.solve(x.T @ x + _RIDGE * len(x) ** 0.5 * torch.eye(x.shape[1]), x.T @ y)
    seconds, whole = [], []
    for item, target in zip(features["test"], targets["test"], strict=True):
        scores = (item - centre) / scale @ weight + y.mean(0)
        seconds += [_found(s, t) for s, t in zip(scores, target, strict=True) if t.any()]
        if (target == target[0]).all() and target[0].any():
            whole.append(_found(scores.mean(0), target[0]))
    return float(np.mean(seconds)), float(np.mean(whole)) if whole else float("nan")


def _features(clip: Clip, seconds: int) -> Tensor:
    # [T, 64 * 16]: mean and modulation spectrum of every mel band.
    examples = log_mel(read_wav(clip.audio), seconds, 1.0)[:, 0]  # [T, 96, 64]
    return torch.fft.rfft(examples, dim=1)[:, :_RATES].abs().log1p().flatten(1)


def _found(scores: Tensor, target: Tensor) -> float:
    count = int(target.sum())
    return float(target[scores.topk(count).indices].mean())
