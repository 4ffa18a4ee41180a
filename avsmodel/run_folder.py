# SPDX-License-Identifier: Apache-2.0
"""What a training run keeps in its folder, and when the run may be continued or replaced."""

import dataclasses
from pathlib import Path

from avsmodel.checkpoint import PARTIAL
from avsmodel.config import Config, load_config
from avsmodel.log import LOG
from avsmodel.pretrained import CARD, CONFIG, WEIGHTS

CHECKPOINT = "checkpoint.pt"
BEST, LAST = "best", "last"

# Keys that may differ when a run is resumed: they do not change the remaining steps.
_FREE_ON_RESUME = {"data.root", "data.workers", "train.device", "train.checkpoint_every"}


def check_run(run: Path, resume: bool, overwrite: bool) -> None:
    """Raise if ``run`` holds files that training may not touch.

    Raises:
        ValueError: if both ``resume`` and ``overwrite`` are set.
        FileExistsError: for a run if neither of them is set, or for files that are no run.
    """
    if resume and overwrite:
        raise ValueError("train: expected resume or overwrite, got both")
    files = list(run.iterdir()) if run.exists() else []
    if all(file.name.endswith(PARTIAL) for file in files):
        return
    if not any((run / name).exists() for name in (CONFIG, CHECKPOINT, LOG)):
        raise FileExistsError(f"train: expected a folder of a run or an empty one, got {run}")
    if not resume and not overwrite:
        raise FileExistsError(
            f"train: expected a new folder, got {run}, which holds a run (--resume continues it, "
            f"--overwrite replaces it)"
        )


def check_same(run: Path, config: Config) -> None:
    """Raise ValueError if ``config`` would not continue what the run in the folder began."""
    if not (run / CONFIG).is_file():
        return
    before = load_config(run / CONFIG)
    for section in dataclasses.fields(Config):
        old, new = getattr(before, section.name), getattr(config, section.name)
        for key in dataclasses.fields(old):
            name = f"{section.name}.{key.name}"
            was, now = getattr(old, key.name), getattr(new, key.name)
            if was != now and name not in _FREE_ON_RESUME:
                raise ValueError(
                    f"train: expected {name}={was!r} as in the run to resume, got {now!r}"
                )


def delete_run(run: Path) -> None:
    """Delete the files of a run, and nothing else."""
    for name in (CHECKPOINT, CONFIG, LOG, "train.csv", "evaluate.csv"):
        (run / name).unlink(missing_ok=True)
    for name in (BEST, LAST):
        for file in (WEIGHTS, CONFIG, CARD):
            (run / name / file).unlink(missing_ok=True)
