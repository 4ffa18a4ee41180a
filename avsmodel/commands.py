# SPDX-License-Identifier: Apache-2.0
"""The commands of the command line.

Each command imports what it needs, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _say_json(value: Any) -> None:
    _say(json.dumps(value, indent=2))


def synthesize(options: Namespace) -> None:
    """Write a synthetic data set."""
    from avsmodel.data import synthesize

    synthesize(
        options.root,
        format=options.format,
        clips=tuple(options.clips),
        size=options.size,
        seed=options.seed,
        world=_world(options),
        log_mel_pickles=options.pickles,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    _say(f"wrote {options.root}")


def _world(options: Namespace) -> Any:
    from avsmodel.data.sources import EASY, ENTANGLED

    return EASY if options.easy else ENTANGLED


def verify(options: Namespace) -> None:
    """List what is wrong with a data set."""
    from avsmodel.data import verify

    report = verify(options.root, progress=not options.quiet)
    _say(str(report))
    if report.problems:
        raise ValueError(
            f"data verify: expected no problems in {options.root}, got {len(report.problems)}"
        )


def describe(options: Namespace) -> None:
    """Measure how hard a synthetic data set is."""
    from avsmodel.data.describe import describe

    _say(str(describe(options.root, progress=not options.quiet)))


def tag(options: Namespace) -> None:
    """Teach encoders to tag, and write them."""
    from avsmodel.config import load_config
    from avsmodel.tagging import learn_to_tag

    if not options.settings or "=" in options.settings[0]:
        raise ValueError("tag: expected a preset or a YAML file, got none (see avsmodel info)")
    _refuse_existing(options.output, options.overwrite)
    source, *overrides = options.settings
    shares = learn_to_tag(
        load_config(source, overrides),
        options.output,
        _world(options),
        progress=not options.quiet,
    )
    for name, share in shares.items():
        _say(f"{100 * share:5.1f} % of held-out {name} tagged right")
    _say(f"wrote {options.output}")


def train(options: Namespace) -> None:
    """Train, or resume a run."""
    from avsmodel.config import load_config
    from avsmodel.pretrained import CONFIG
    from avsmodel.train import train

    source, *overrides = options.settings or [""]
    if "=" in source:
        source, overrides = "", options.settings
    if not source and options.resume and (options.output / CONFIG).is_file():
        source = options.output / CONFIG
    if not source:
        raise ValueError("train: expected a preset or a YAML file, got none (see avsmodel info)")
    if options.amp:
        overrides = [*overrides, f"train.amp={options.amp}"]
    if options.init:
        overrides = [*overrides, f"train.init={options.init}"]
    train(
        load_config(source, overrides),
        options.output,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )


def evaluate(options: Namespace) -> None:
    """Evaluate a model and print the result as JSON."""
    from avsmodel.distributed import join
    from avsmodel.evaluate import evaluate_folder

    changes = {
        "split": options.split,
        "protocol": options.protocol,
        "batch_size": options.batch_size,
        "real_frames": options.real_frames,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if options.output:
        _refuse_existing(options.output, options.overwrite)
    with join(options.device) as world:
        result = evaluate_folder(
            options.model,
            world,
            data=options.data,
            sound=options.sound,
            progress=not options.quiet,
            **changes,
        )
        if world.main:
            _say_json(result)
            if options.output:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(result, indent=2) + "\n")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"avsmodel: expected a new file, got {path} (--overwrite replaces it)"
        )


def predict(options: Namespace) -> None:
    """Segment a video and write the result."""
    from avsmodel import load
    from avsmodel.predict import check_output

    check_output(options.output, options.overwrite)
    prediction = load(options.model, options.device).predict(
        options.video,
        fps=0 if options.dense else options.fps,
        window=options.window,
        progress=not options.quiet,
    )
    for path in prediction.save(options.output, overwrite=options.overwrite):
        _say(f"wrote {path}")


def report(options: Namespace) -> None:
    """Write the report of a run."""
    from avsmodel.report import report_folder

    output = options.output or options.model / "report.html"
    _refuse_existing(output, options.overwrite)
    report_folder(
        options.model, output, data=options.data, clips=options.clips, device=options.device
    )
    _say(f"wrote {output}")


def info(options: Namespace) -> None:
    """Show presets and build, or a model."""
    from avsmodel.config import load_config, preset_names, to_yaml

    if options.model and options.model in preset_names():
        _say(to_yaml(load_config(options.model)).rstrip())
    elif options.model:
        from avsmodel import load

        model = load(options.model, "cpu")
        _say(model.card())
        _say(to_yaml(model.config).rstrip())
    else:
        import avskernels

        _say("presets: " + ", ".join(preset_names()))
        _say_json(avskernels.build_info())


def demo(options: Namespace) -> None:
    """Synthesize a small data set, train on it, evaluate and report."""
    from avsmodel.demo import demo

    demo(
        options.folder,
        overrides=options.settings,
        throughput=options.throughput,
        say=_say,
    )
