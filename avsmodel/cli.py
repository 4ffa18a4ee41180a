# SPDX-License-Identifier: Apache-2.0
"""The command line: ``avsmodel`` or ``python -m avsmodel``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from avsmodel import commands

_Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# Errors that a user can cause and correct; any other is a defect and keeps its traceback.
_USER_ERRORS = (ValueError, OSError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: those of the command line by default.

    Returns:
        0; 2 after an error that the user can correct; 130 after an interrupt.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except _USER_ERRORS as error:
        if options.traceback:
            raise
        sys.stderr.write(f"avsmodel: error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avsmodel",
        description="Segment what sounds in a video: data, training, evaluation, prediction.",
        epilog="Help on a command: avsmodel train --help",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the program an error arose"
    )
    parsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_data(parsers)
    _add_tag(parsers)
    _add_train(parsers)
    _add_evaluate(parsers)
    _add_predict(parsers)
    _add_report(parsers)
    _add_info(parsers)
    _add_demo(parsers)
    return parser


def _add(
    parsers: _Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], None],
    help: str,
    example: str,
) -> argparse.ArgumentParser:
    command = parsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_data(parsers: _Subparsers) -> None:
    data = parsers.add_parser("data", help="write a synthetic data set, check or describe one")
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")
    write = _add(
        actions,
        "synthesize",
        commands.synthesize,
        "write a small data set of real files in a layout of AVSBench",
        "avsmodel data synthesize data/toy --format ms3 --clips 160 20 40",
    )
    write.add_argument("root", type=Path, metavar="DIR", help="folder to create")
    write.add_argument("--format", choices=["s4", "ms3", "avss"], default="ms3", help="(ms3)")
    write.add_argument(
        "--clips",
        type=int,
        nargs=3,
        default=(160, 20, 40),
        metavar=("TRAIN", "VAL", "TEST"),
        help="clips of each split (160 20 40)",
    )
    write.add_argument("--size", type=int, default=160, help="pixels of a side (160)")
    _add_world(write)
    write.add_argument("--seed", type=int, default=0, help="equal seeds give equal files (0)")
    write.add_argument("--pickles", action="store_true", help="write log-mel pickles too")
    write.add_argument("--overwrite", action="store_true", help="replace an earlier data set")
    _add_quiet(write)
    check = _add(
        actions,
        "verify",
        commands.verify,
        "list every missing, unreadable or inconsistent file of a data set",
        "avsmodel data verify data/Single-source",
    )
    check.add_argument("root", type=Path, metavar="DIR")
    _add_quiet(check)
    figures = _add(
        actions,
        "describe",
        commands.describe,
        "measure how hard a synthetic data set is",
        "avsmodel data describe data/toy",
    )
    figures.add_argument("root", type=Path, metavar="DIR")
    _add_quiet(figures)


def _add_tag(parsers: _Subparsers) -> None:
    command = _add(
        parsers,
        "tag",
        commands.tag,
        "teach the encoders to tag single sounds and objects of the synthetic data, to start from",
        "avsmodel tag tiny -o runs/encoders.safetensors\n"
        "  avsmodel train tiny train.init=runs/encoders.safetensors data.root=data/toy -o runs/toy",
    )
    command.add_argument(
        "settings", nargs="*", metavar="CONFIG key=value", help="a preset, and keys to change"
    )
    command.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    command.add_argument("--overwrite", action="store_true", help="replace that file")
    _add_world(command)
    _add_quiet(command)


def _add_world(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--easy",
        action="store_true",
        help="six classes with hues of their own, two sources, clear sounds (24, 5, noisy)",
    )


def _add_train(parsers: _Subparsers) -> None:
    command = _add(
        parsers,
        "train",
        commands.train,
        "train a model; a killed run continues bit-exactly with --resume",
        "avsmodel train sqd_r50 data.root=data/Single-source train.epochs=13 -o runs/s4\n"
        "  torchrun --nproc_per_node 4 -m avsmodel train sqd_r50 data.root=data/S4 -o runs/s4\n"
        "  avsmodel train -o runs/s4 --resume",
    )
    command.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG key=value",
        help="a preset (see avsmodel info) or YAML file, and keys to change (train.lr=3e-4)",
    )
    command.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
    command.add_argument("--amp", choices=["bf16"], help="half precision (train.amp=bf16)")
    command.add_argument(
        "--init", metavar="RUN", help="start from the weights of a run, model or file (train.init)"
    )
    again = command.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue the run in the folder")
    again.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    _add_quiet(command)


def _add_evaluate(parsers: _Subparsers) -> None:
    command = _add(
        parsers,
        "evaluate",
        commands.evaluate,
        "measure a model on a data set",
        "avsmodel evaluate runs/s4 --protocol avsbench --output runs/s4/test.json",
    )
    _add_model(command)
    command.add_argument("--data", default="", help="data set (that of the training)")
    command.add_argument("--split", choices=["train", "val", "test"], help="(test)")
    command.add_argument(
        "--protocol",
        choices=["avsbench", "dataset", "davis"],
        help="how frames are combined: per test batch as published, over the whole set, or DAVIS",
    )
    command.add_argument(
        "--batch-size", type=int, help="clips per test batch, part of the protocol (1)"
    )
    command.add_argument(
        "--real-frames",
        action="store_const",
        const=True,
        help="leave out the padding of short AVSS clips, which counts as background as published",
    )
    sound = command.add_mutually_exclusive_group()
    sound.add_argument(
        "--shuffle-audio",
        dest="sound",
        action="store_const",
        const="shuffled",
        default="own",
        help="give each clip another clip's sound: a model that uses sound gets worse",
    )
    for name in ("silence", "noise"):
        sound.add_argument(
            f"--{name}",
            dest="sound",
            action="store_const",
            const=name,
            help=f"replace each sound by {name}, and count everything that is segmented as false",
        )
    command.add_argument("--output", type=Path, help="JSON file to write")
    command.add_argument("--overwrite", action="store_true", help="replace that file")
    _add_quiet(command)


def _add_predict(parsers: _Subparsers) -> None:
    command = _add(
        parsers,
        "predict",
        commands.predict,
        "segment what sounds in a video: overlay video, PNG masks, NPZ scores",
        "avsmodel predict clip.mp4 -m runs/s4 -o out/",
    )
    command.add_argument("video", type=Path, help="any video with sound that FFmpeg reads")
    command.add_argument("-m", "--model", type=Path, required=True, help="folder of a model or run")
    command.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    rate = command.add_mutually_exclusive_group()
    rate.add_argument("--fps", type=float, default=1.0, help="frames per second (1)")
    rate.add_argument("--dense", action="store_true", help="every frame of the video")
    command.add_argument(
        "--window", type=int, default=0, help="frames that the model sees at once (as in training)"
    )
    command.add_argument("--device", default="auto", help="cpu, cuda or auto (auto)")
    command.add_argument("--overwrite", action="store_true", help="replace earlier output")
    _add_quiet(command)


def _add_report(parsers: _Subparsers) -> None:
    command = _add(
        parsers,
        "report",
        commands.report,
        "write one self-contained HTML file about a run",
        "avsmodel report runs/s4 -o runs/s4/report.html",
    )
    _add_model(command)
    command.add_argument("--data", default="", help="data set (that of the training)")
    command.add_argument("-o", "--output", type=Path, help="file (report.html in the run)")
    command.add_argument("--clips", type=int, default=6, help="clips to show (6)")
    command.add_argument("--overwrite", action="store_true", help="replace that file")


def _add_info(parsers: _Subparsers) -> None:
    command = _add(
        parsers,
        "info",
        commands.info,
        "show the presets and the build, or the card and configuration of a model",
        "avsmodel info runs/s4",
    )
    command.add_argument("model", nargs="?", help="folder of a model or run, or a preset")


def _add_demo(parsers: _Subparsers) -> None:
    command = _add(
        parsers,
        "demo",
        commands.demo,
        "write a small data set, train on it, evaluate and report: a few minutes on two cores",
        "avsmodel demo runs/demo",
    )
    command.add_argument(
        "folder", type=Path, metavar="DIR", help="folder to write; replaces an earlier demo"
    )
    command.add_argument("settings", nargs="*", metavar="key=value", help="changes to the preset")
    command.add_argument("--throughput", type=Path, help="JSON file for the report's table")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help="folder of a model or run")
    command.add_argument("--device", default="auto", help="cpu, cuda or auto (auto)")


def _add_quiet(command: argparse.ArgumentParser) -> None:
    command.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
