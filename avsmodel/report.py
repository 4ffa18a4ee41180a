# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML file about a run: pictures, sounds, curves, numbers, configuration."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from avsmodel.chart import Line, bar_chart, line_chart, smooth
from avsmodel.checkpoint import write_atomically
from avsmodel.clip_view import draw_clip, draw_tokens, view_clip
from avsmodel.config import to_yaml
from avsmodel.data import AVSDataset, collate
from avsmodel.evaluate import evaluate, open_split
from avsmodel.log import read_log
from avsmodel.pretrained import Model

_CODEBOOK_CLIPS = 64  # clips over which the use of codewords is counted


def write_report(
    model: Model,
    dataset: AVSDataset,
    output: Path,
    *,
    run: Path | None = None,
    results: Sequence[dict[str, Any]] = (),
    throughput: Sequence[dict[str, Any]] = (),
    clips: int = 6,
) -> None:
    """Write the report to ``output``, replacing it atomically.

    Args:
        model: the model that is shown.
        dataset: the clips it is shown on: the first ones, without selection.
        output: the HTML file.
        run: folder of the training, for its curves.
        results: what :func:`evaluate` returned.
        throughput: rows of operator, case, eager_ms, avskernels_ms, speedup and threads.
        clips: number of clips to show.
    """
    views = [view_clip(model, dataset, index) for index in range(min(clips, len(dataset)))]
    rows = read_log(run) if run else []
    sections = [
        (
            "What it hears and segments",
            "".join(draw_clip(view, model.class_names) for view in views),
        ),
        ("Training", _curves(rows)),
        ("Use of the codebook", _codebook(model, dataset)),
        ("What each token sees", draw_tokens(views[0])),
        ("Results", _results(results)),
        ("Throughput", _throughput(throughput)),
        ("Configuration", f"<pre>{escape(to_yaml(model.config))}</pre>"),
    ]
    style = (resources.files("avsmodel") / "report.css").read_text("utf-8")
    title = f"SQD on {Path(dataset.root).name}"
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections)
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><main>{_head(title, model, results)}{body}</main>"
        "</body></html>\n"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, lambda file: file.write(html.encode()))


def report_folder(
    folder: Path, output: Path, *, data: str = "", clips: int = 6, device: str = "auto"
) -> None:
    """Load a model, evaluate it on the test split with own and with other sounds, and report.

    Args:
        folder: what :func:`avsmodel.load` accepts; the log of a run is shown too.
        output: the HTML file.
        data: another data set than that of the training.
        clips: number of clips to show.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
    """
    model = Model.from_pretrained(folder, device)
    settings = replace(model.config.evaluate, split="test")
    dataset = open_split(model.config.data, "test", root=data)
    results = [evaluate(model, dataset, settings, sound=sound) for sound in ("own", "shuffled")]
    write_report(model, dataset, output, run=folder, results=results, clips=clips)


def _head(title: str, model: Model, results: Sequence[dict[str, Any]]) -> str:
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    tiles = []
    for result in results:
        names = ("J", "F", "JF") if "JF" in result["metrics"] else ("mIoU", "F")
        shown = names if result["sound"] == "own" else names[:1]
        for name in shown:
            label = name.replace("JF", "J&amp;F")
            label += "" if result["sound"] == "own" else " with another clip's sound"
            quiet = "" if result["sound"] == "own" else " quiet"
            value = f"{100 * result['metrics'][name]:.1f}"
            tiles.append(f'<div class="tile{quiet}"><b>{value}</b><span>{label}</span></div>')
    facts = f"{parameters / 1e6:.2f} M parameters"
    if results:
        first = results[0]
        facts += (
            f" · {first['clips']} held-out clips of the {first['split']} split · protocol "
            f"{first['protocol']}, {first['resolution']} pixels, test batch {first['batch_size']}"
        )
    return (
        f"<header><h1>{escape(title)}</h1><p>{escape(facts)}</p>"
        f'<div class="tiles">{"".join(tiles)}</div></header>'
    )


def _curves(rows: Sequence[dict[str, Any]]) -> str:
    steps = [row for row in rows if row["kind"] == "train"]
    checks = [row for row in rows if row["kind"] == "evaluate"]
    if not steps:
        return '<p class="none">No training log beside this model.</p>'
    window = max(1, len(steps) // 40)
    terms = [name for name in steps[0] if name not in _NOT_A_TERM]
    position = [row["step"] for row in steps]
    losses = [
        Line(name, position, smooth([row[name] for row in steps], window))
        for name in ("loss", *terms)
    ]
    names = [name for name in ("J", "F", "JF", "mIoU") if checks and name in checks[0]]
    scores = [
        Line(
            name.replace("JF", "J&F"),
            [row["step"] for row in checks],
            [row[name] for row in checks],
        )
        for name in names
    ]
    return (
        f'<div class="pair"><figure>{line_chart(losses, "step")}<figcaption>Loss and its terms'
        f"{f', mean of {window} steps' if window > 1 else ''}.</figcaption></figure><figure>"
        f"{line_chart(scores, 'step', (0.0, 1.0))}<figcaption>On the validation split."
        "</figcaption></figure></div>"
    )


_NOT_A_TERM = {"kind", "step", "epoch", "lr", "seconds", "gradient_norm", "loss"}


def _codebook(model: Model, dataset: AVSDataset) -> str:
    counts: dict[str, Counter[int]] = {"global tokens": Counter(), "local tokens": Counter()}
    clips = min(_CODEBOOK_CLIPS, len(dataset))
    for index in range(clips):
        batch = collate([dataset[index]])
        _, output = model.segment(batch.frames, batch.log_mel, batch.real)
        for name, indices in zip(
            counts, (output.global_indices, output.local_indices), strict=True
        ):
            if indices is not None:
                counts[name].update(indices.flatten().tolist())
    size = model.config.model.num_codewords
    figures = []
    for name, counter in counts.items():
        used = [counter[index] for index in range(size)]
        if not counter:
            figures.append(f'<p class="none">No {name} in this configuration.</p>')
            continue
        share = torch.tensor(used, dtype=torch.float64) / sum(used)
        perplexity = float(torch.special.entr(share).sum().exp())
        caption = (
            f"{name.capitalize()}: {sum(count > 0 for count in used)} of {size} codewords in use "
            f"on {clips} clips, perplexity {perplexity:.1f}."
        )
        chart = bar_chart(used, "times")
        figures.append(f"<figure>{chart}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="pair">{"".join(figures)}</div>'


def _results(results: Sequence[dict[str, Any]]) -> str:
    if not results:
        return '<p class="none">Not evaluated.</p>'
    names = [name for name, value in results[0]["metrics"].items() if isinstance(value, float)]
    facts = ("sound", "split", "protocol", "resolution", "batch_size", "clips")
    rows = [
        {fact.replace("batch_size", "test batch"): result[fact] for fact in facts}
        | {name.replace("_", " "): f"{100 * result['metrics'][name]:.2f}" for name in names}
        for result in results
    ]
    return _table(rows)


def _throughput(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return '<p class="none">Not measured in this run.</p>'
    shown = [
        {
            "operator": row["operator"],
            "case": row["case"],
            "eager": f"{row['eager_ms']:.2f} ms",
            "avskernels": f"{row['avskernels_ms']:.2f} ms",
            "faster": f"{row['speedup']:.1f} x",
        }
        for row in rows
    ]
    threads = rows[0]["threads"]
    return (
        "<p>Forward pass in float32 on the machine that made this report, "
        f"{threads} threads, medians.</p>{_table(shown)}"
    )


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{table}</table></div>'
