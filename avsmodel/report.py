# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML file about a run: pictures, sounds, curves, numbers, configuration."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import Dataset

from avsmodel.chart import Line, bar_chart, line_chart, smooth
from avsmodel.checkpoint import write_atomically
from avsmodel.config import to_yaml
from avsmodel.data import collate, read_wav
from avsmodel.data.audio import SAMPLE_RATE
from avsmodel.draw import bright_colours, data_uri, heat_map, overlay, png, spectrogram, to_image
from avsmodel.evaluate import evaluate, open_split
from avsmodel.hearing import OtherSound
from avsmodel.log import read_log
from avsmodel.pretrained import Model

_CODEBOOK_CLIPS = 64  # clips over which the use of codewords is counted
_LARGEST_PICTURE = 224  # pixels of a side; larger frames are shown smaller


@dataclass(frozen=True)
class ClipView:
    """What the report shows of one clip; arrays over its T real frames.

    Attributes:
        images: uint8 [T, H, W, 3].
        log_mel: float32 [T, 96, 64], and `other_log_mel` that of the other clip.
        truth, labels, other_labels: class ids [T, H, W]: ground truth, prediction, and
            prediction with the other clip's sound.
        token_masks: float32 [N, T, h, w].
        token_classes: float32 [N, T], probability of each token's most likely class.
        codewords: int [N, T], of each token in each frame, or None.
        sound, other_sound: WAV files.
    """

    uid: str
    other_uid: str
    images: np.ndarray
    log_mel: np.ndarray
    other_log_mel: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    other_labels: np.ndarray
    token_masks: np.ndarray
    token_classes: np.ndarray
    codewords: np.ndarray | None
    sound: Path
    other_sound: Path


def write_report(
    model: Model,
    dataset: Dataset,
    output: Path,
    *,
    run: Path | None = None,
    results: Sequence[dict[str, Any]] = (),
    throughput: Sequence[dict[str, Any]] = (),
    clips: int = 6,
) -> None:
    """Write the report to `output`, replacing it atomically.

    Args:
        model: the model that is shown.
        dataset: the clips it is shown on; the first ones are taken, not chosen.
        output: the HTML file.
        run: folder of the training, for its curves.
        results: what `evaluate` returned.
        throughput: rows of operator, case, eager_ms, avskernels_ms, speedup and threads.
        clips: clips to show.
    """
    views = [view_clip(model, dataset, index) for index in range(min(clips, len(dataset)))]
    rows = read_log(run) if run else []
    sections = [
        ("What it hears and segments", "".join(_clip(view, model.class_names) for view in views)),
        ("Training", _curves(rows)),
        ("Use of the codebook", _codebook(model, dataset)),
        ("What each token sees", _tokens(views[0])),
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
    """Load a model, measure it on its test split with its own and with other sounds, and report.

    Args:
        folder: what `avsmodel.load` accepts; a run's log is drawn too.
        output: the HTML file.
        data: another data set than that of the training.
        clips: clips to show.
        device: "cpu", "cuda" or "auto".
    """
    model = Model.from_pretrained(folder, device)
    settings = replace(model.config.evaluate, split="test")
    dataset = open_split(model.config.data, "test", root=data)
    results = [evaluate(model, dataset, settings, sound=sound) for sound in ("own", "shuffled")]
    write_report(model, dataset, output, run=folder, results=results, clips=clips)


def view_clip(model: Model, dataset: Dataset, index: int) -> ClipView:
    """Segment clip `index` of the data set twice: with its own sound and with another clip's."""
    other = OtherSound(dataset, "shuffled")
    sample, mixed = dataset[index], other[index]
    source = other.source[index]
    real = sample.real
    size = tuple(sample.masks.shape[-2:])
    batch, mixed_batch = collate([sample]), collate([mixed])
    own, raw = model.segment(batch.frames, batch.log_mel, batch.real, size)
    wrong, _ = model.segment(mixed_batch.frames, mixed_batch.log_mel, mixed_batch.real, size)
    codewords = raw.local_indices if raw.local_indices is not None else None
    return ClipView(
        uid=sample.uid,
        other_uid=dataset[source].uid,
        images=np.stack([to_image(frame) for frame in sample.frames[real].numpy()]),
        log_mel=sample.log_mel[real, 0].numpy(),
        other_log_mel=mixed.log_mel[real, 0].numpy(),
        truth=sample.masks[real].numpy(),
        labels=own.labels[0].cpu()[real].numpy(),
        other_labels=wrong.labels[0].cpu()[real].numpy(),
        token_masks=raw.mask_logits[0].float().sigmoid().cpu()[:, real].numpy(),
        token_classes=raw.class_logits[0].float().sigmoid().amax(-1).cpu()[:, real].numpy(),
        codewords=None if codewords is None else codewords[0].cpu()[:, real].numpy(),
        sound=dataset.audio_path(index),
        other_sound=dataset.audio_path(source),
    )


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


def _clip(view: ClipView, class_names: Sequence[str]) -> str:
    count = len(view.images)
    rows = [
        ("sound", _player(view.sound), _pictures(map(spectrogram, view.log_mel))),
        ("image", "", _pictures(view.images)),
        ("ground truth", "what sounds", _overlays(view.images, view.truth)),
        (
            "prediction",
            _agreement(view.labels, view.truth),
            _overlays(view.images, view.labels, view.truth),
        ),
        (
            f"another clip's sound ({escape(view.other_uid)})",
            _player(view.other_sound),
            _pictures(map(spectrogram, view.other_log_mel)),
        ),
        (
            "prediction with it",
            _agreement(view.other_labels, view.truth),
            _overlays(view.images, view.other_labels, view.truth),
        ),
    ]
    lines = "".join(
        f'<div class="name"><b>{name}</b><span>{note}</span></div>{pictures}'
        for name, note, pictures in rows
    )
    present = np.unique(np.stack([view.truth, view.labels, view.other_labels]))
    colours = bright_colours(len(class_names))
    keys = "".join(
        f'<span class="key"><i style="background:rgb{tuple(colours[index].tolist())}"></i>'
        f"{escape(class_names[index])}</span>"
        for index in present
        if index
    )
    return (
        f'<article><h3>{escape(view.uid)}</h3><div class="keys">{keys}<span class="key">'
        f'<i class="truth"></i>outline of the ground truth</span></div>'
        f'<div class="strip" style="--frames:{count}">{lines}</div></article>'
    )


def _overlays(images, labels, truth=None) -> str:
    truths = truth if truth is not None else [None] * len(images)
    return _pictures(
        overlay(image, label, outline)
        for image, label, outline in zip(images, labels, truths, strict=True)
    )


def _pictures(images: Iterator[np.ndarray]) -> str:
    return "".join(
        f'<img alt="second {index}" src="{data_uri(png(_shrink(image)))}">'
        for index, image in enumerate(images)
    )


def _shrink(image: np.ndarray) -> np.ndarray:
    step = -(-max(image.shape[:2]) // _LARGEST_PICTURE)
    return image[::step, ::step]


def _agreement(labels: np.ndarray, truth: np.ndarray) -> str:
    both = ((labels > 0) & (labels == truth)).sum()
    either = ((labels > 0) | (truth > 0)).sum()
    return f"IoU {both / either:.2f}" if either else "nothing sounds"


def _player(path: Path) -> str:
    source = data_uri(_aac(read_wav(path)), "audio/mp4")
    return f'<audio controls preload="none" src="{source}"></audio>'


# AAC in MP4: every browser plays it, in a sixth of the bytes of the WAV.
def _aac(waveform: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = 48000
        frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


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


def _codebook(model: Model, dataset: Dataset) -> str:
    counts = {"global tokens": Counter(), "local tokens": Counter()}
    clips = min(_CODEBOOK_CLIPS, len(dataset))
    for index in range(clips):
        batch = collate([dataset[index]])
        _, raw = model.segment(batch.frames, batch.log_mel, batch.real)
        for name, indices in zip(counts, (raw.global_indices, raw.local_indices), strict=True):
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


def _tokens(view: ClipView) -> str:
    lines = []
    for token, masks in enumerate(view.token_masks):
        pictures = []
        for second, mask in enumerate(masks):
            note = f"p {view.token_classes[token, second]:.2f}"
            if view.codewords is not None:
                note += f" · codeword {view.codewords[token, second]}"
            picture = data_uri(png(heat_map(mask)))
            pictures.append(
                f'<figure><img class="cells" alt="" src="{picture}">'
                f"<figcaption>{note}</figcaption></figure>"
            )
        lines.append(f'<div class="name"><b>token {token}</b></div>{"".join(pictures)}')
    return (
        f"<p>Mask probability of every token in clip {escape(view.uid)}, from 0 (dark) to 1 "
        "(light), with the probability of its most likely class.</p>"
        f'<div class="strip" style="--frames:{len(view.images)}">{"".join(lines)}</div>'
    )


def _results(results: Sequence[dict[str, Any]]) -> str:
    if not results:
        return '<p class="none">Not evaluated.</p>'
    names = [name for name, value in results[0]["metrics"].items() if isinstance(value, float)]
    facts = ("sound", "split", "protocol", "resolution", "batch_size", "clips")
    rows = [
        {fact.replace("batch_size", "test batch"): result[fact] for fact in facts}
        | {name: f"{100 * result['metrics'][name]:.2f}" for name in names}
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
