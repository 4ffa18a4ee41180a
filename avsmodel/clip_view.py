# SPDX-License-Identifier: Apache-2.0
"""One clip of a report: sound, image, ground truth and prediction, second by second."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import av
import numpy as np

from avsmodel.data import AVSDataset, collate, read_wav
from avsmodel.data.audio import SAMPLE_RATE
from avsmodel.draw import bright_colours, data_uri, heat_map, overlay, png, spectrogram, to_image
from avsmodel.hearing import OtherSound
from avsmodel.pretrained import Model

_LARGEST_PICTURE = 224  # pixels of a side; larger frames are shown smaller


@dataclass(frozen=True)
class ClipView:
    """What the report shows of one clip; arrays over its T real frames.

    Attributes:
        uid, other_uid: names of the clip and of the clip whose sound replaces its own.
        images: uint8 ``[T, H, W, 3]``.
        log_mel, other_log_mel: float32 ``[T, 96, 64]``, of its own sound and of the other clip's.
        truth, labels, other_labels: class ids ``[T, H, W]``: ground truth, prediction, and
            prediction with the other clip's sound.
        token_masks: float32 ``[N, T, h, w]``.
        token_classes: float32 ``[N, T]``, probability of each token's most likely class.
        codewords: int ``[N, T]``, of each token in each frame, or None.
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


def view_clip(model: Model, dataset: AVSDataset, index: int) -> ClipView:
    """Segment clip ``index`` of the data set twice: with its own sound and with another clip's."""
    shuffled = OtherSound(dataset, "shuffled")
    sample, other = dataset[index], shuffled[index]
    source = shuffled.source[index]
    real = sample.real
    size = (sample.masks.shape[-2], sample.masks.shape[-1])
    batch, other_batch = collate([sample]), collate([other])
    result, output = model.segment(batch.frames, batch.log_mel, batch.real, size)
    other_result, _ = model.segment(other_batch.frames, other_batch.log_mel, other_batch.real, size)
    codewords = output.local_indices
    return ClipView(
        uid=sample.uid,
        other_uid=dataset[source].uid,
        images=np.stack([to_image(frame) for frame in sample.frames[real].numpy()]),
        log_mel=sample.log_mel[real, 0].numpy(),
        other_log_mel=other.log_mel[real, 0].numpy(),
        truth=sample.masks[real].numpy(),
        labels=result.labels[0].cpu()[real].numpy(),
        other_labels=other_result.labels[0].cpu()[real].numpy(),
        token_masks=output.mask_logits[0].float().sigmoid().cpu()[:, real].numpy(),
        token_classes=output.class_logits[0].float().sigmoid().amax(-1).cpu()[:, real].numpy(),
        codewords=None if codewords is None else codewords[0].cpu()[:, real].numpy(),
        sound=dataset.audio_path(index),
        other_sound=dataset.audio_path(source),
    )


def draw_clip(view: ClipView, class_names: Sequence[str]) -> str:
    """Return HTML with sounds, image, ground truth and both predictions, one column per second."""
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


def draw_tokens(view: ClipView) -> str:
    """Return HTML with the mask probability of every token, one column per second."""
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
        f"<p>Mask probability of every token in {escape(view.uid)}, from 0 (dark) to 1 "
        "(light), with the probability of its most likely class.</p>"
        f'<div class="strip" style="--frames:{len(view.images)}">{"".join(lines)}</div>'
    )


def _overlays(images: np.ndarray, labels: np.ndarray, truth: np.ndarray | None = None) -> str:
    truths = truth if truth is not None else [None] * len(images)
    return _pictures(
        overlay(image, label, outline)
        for image, label, outline in zip(images, labels, truths, strict=True)
    )


def _pictures(images: Iterable[np.ndarray]) -> str:
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


# AAC in MP4, which every browser plays, takes a sixth of the bytes of the WAV.
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
