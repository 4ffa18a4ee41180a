# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline on a small data set: synthesize, tag, train, evaluate, report."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from avsmodel.checkpoint import write_atomically
from avsmodel.config import load_config
from avsmodel.data import synthesize
from avsmodel.data.sources import EASY
from avsmodel.evaluate import evaluate, open_split
from avsmodel.pretrained import Model
from avsmodel.report import write_report
from avsmodel.tagging import learn_to_tag
from avsmodel.train import train

PRESET = "tiny"


def demo(
    folder: str | Path,
    *,
    clips: tuple[int, int, int] = (320, 16, 40),
    examples: int = 1920,
    overrides: Sequence[str] = (),
    throughput: Path | None = None,
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, float]:
    """Train SQD on an easy synthetic data set and measure how much it depends on the sound.

    The encoders learn to tag single sounds and objects first, as those of the paper did on other
    data. ``folder`` receives ``synthetic`` (the data set), ``encoders.safetensors``, ``run``,
    ``metrics.json`` and ``report.html``; those of an earlier demo are replaced.

    Args:
        folder: where to write.
        clips: number of clips in the training, validation and test splits.
        examples: pictures, and seconds of sound, that the encoders learn to tag from.
        overrides: changes of the preset, ``key=value``.
        throughput: JSON file for the table of the report (see :func:`write_report`).
        say: called with each line of the result.

    Returns:
        J, F, JF (fractions of 1, on the test split), J_shuffled_audio (J with another clip's
        sound), train_seconds (with those of tagging) and clips (of the test split), as in
        ``metrics.json``.
    """
    folder = Path(folder)
    root, encoders = folder / "synthetic", folder / "encoders.safetensors"
    changes = (f"data.root={root}", f"train.init={encoders}")
    config = load_config(PRESET, [*overrides, *changes])
    synthesize(root, "ms3", clips, config.data.size, world=EASY, overwrite=True, progress=True)
    start = time.perf_counter()
    learn_to_tag(config, encoders, EASY, examples=examples)
    train(config, folder / "run", overwrite=True)
    seconds = time.perf_counter() - start

    model = Model.from_pretrained(folder / "run", config.train.device)
    settings = dataclasses.replace(config.evaluate, split="test")
    dataset = open_split(model.config.data, "test")
    own = evaluate(model, dataset, settings)
    other = evaluate(model, dataset, settings, sound="shuffled")
    metrics = {name: own["metrics"][name] for name in ("J", "F", "JF")}
    metrics["J_shuffled_audio"] = other["metrics"]["J"]
    metrics["train_seconds"] = round(seconds, 1)
    metrics["clips"] = own["clips"]
    text = json.dumps(metrics, indent=2) + "\n"
    write_atomically(folder / "metrics.json", lambda file: file.write(text.encode()))
    measured = json.loads(throughput.read_text("utf-8")) if throughput else ()
    write_report(
        model,
        dataset,
        folder / "report.html",
        run=folder / "run",
        results=(own, other),
        throughput=measured,
    )
    say(f"J    {100 * metrics['J']:5.1f}   on {metrics['clips']} held-out clips")
    say(f"F    {100 * metrics['F']:5.1f}")
    say(f"J&F  {100 * metrics['JF']:5.1f}")
    say(f"J    {100 * metrics['J_shuffled_audio']:5.1f}   with another clip's sound")
    say(f"report: {folder / 'report.html'}")
    return metrics
