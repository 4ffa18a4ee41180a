# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on a data set, on one process or many."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from avsmodel.config import DataConfig, EvaluateConfig
from avsmodel.data import AVSDataset, Batch, collate, open_dataset
from avsmodel.distributed import ALONE, World
from avsmodel.hearing import OtherSound
from avsmodel.metrics import BinaryEvaluator, FalsePositiveRate, SemanticEvaluator
from avsmodel.pretrained import Model

Evaluator = BinaryEvaluator | SemanticEvaluator | FalsePositiveRate


def evaluate(
    model: Model,
    dataset: AVSDataset,
    settings: EvaluateConfig,
    world: World = ALONE,
    *,
    sound: str = "own",
    workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Return the metrics of ``model`` on ``dataset`` and the protocol they were measured under.

    The clips are divided among the processes, and their measures are gathered before anything is
    averaged, so that the result does not depend on the number of processes.

    Args:
        model: the model, on this process's device.
        dataset: what :func:`avsmodel.data.open_dataset` returned.
        settings: protocol and test batch.
        world: the processes that share the work.
        sound: the sound that each clip gets: its ``"own"``; ``"shuffled"``, another clip's, which
            makes a model that listens worse; ``"silence"`` or ``"noise"``, with which everything
            that is segmented is false.
        workers: processes that read files.
        progress: show a progress bar on the main process.

    Returns:
        On every process: ``metrics`` (fractions of 1: J, F and JF, or mIoU, F and J, or the shares
        of false positive ``pixels`` and ``frames``), ``protocol``, ``resolution``, ``batch_size``,
        ``split``, ``format``, ``data``, ``sound`` and ``clips``.

    Raises:
        ValueError: for a data set of another number of classes, or a test batch without clips.
    """
    if len(model.class_names) != dataset.num_classes:
        raise ValueError(
            f"evaluate: expected a data set of the model's {len(model.class_names)} classes, "
            f"got {dataset.num_classes} in {dataset.root}"
        )
    if settings.batch_size < 1:
        raise ValueError(f"evaluate: expected a positive batch size, got {settings.batch_size}")
    evaluator = _evaluator(dataset, settings, sound)
    starts = range(world.rank * settings.batch_size, len(dataset), world.size * settings.batch_size)
    clips = list(range(len(dataset)))
    batches = [clips[start : start + settings.batch_size] for start in starts]
    loader = DataLoader(
        dataset if sound == "own" else OtherSound(dataset, sound),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),  # its own: that of the training stays as it is
    )
    for batch in tqdm(loader, "evaluate", disable=not (progress and world.main), leave=False):
        _measure(model, evaluator, batch.to(model.device))
    for state in world.gather(evaluator.state_dict()):
        evaluator.merge(state)
    values: dict[str, Any] = evaluator.compute()
    if "per_class" in values:
        names = dataset.class_names
        values["per_class"] = dict(zip(names, values["per_class"], strict=True))
    metrics = {name: value for name, value in values.items() if isinstance(value, float)}
    return {
        "metrics": metrics,
        "protocol": settings.protocol,
        "batch_size": settings.batch_size,
        "split": settings.split,
        "format": dataset.format,
        "data": Path(dataset.root).name,
        "sound": sound,
        **{name: value for name, value in values.items() if name not in metrics},
    }


def evaluate_folder(
    folder: str | Path,
    world: World,
    *,
    data: str = "",
    sound: str = "own",
    progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Load a model and :func:`evaluate` it on the data set of its training, or on ``data``.

    Args:
        folder: what :func:`avsmodel.load` accepts.
        world: this process among its peers.
        data: folder of another data set.
        sound, progress: see :func:`evaluate`.
        changes: fields of :class:`EvaluateConfig` that differ from the model's configuration.
    """
    model = Model.from_pretrained(folder, str(world.device))
    settings = dataclasses.replace(model.config.evaluate, **changes)
    dataset = open_split(model.config.data, settings.split, root=data)
    return evaluate(
        model,
        dataset,
        settings,
        world,
        sound=sound,
        workers=model.config.data.workers,
        progress=progress,
    )


def open_split(data: DataConfig, split: str, *, root: str = "", seed: int = 0) -> AVSDataset:
    """Open a split as configured: ``train`` with augmentation, the others as whole clips.

    Args:
        data: the configuration.
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: another folder than ``data.root``, of any format.
        seed: of the augmentation.

    Raises:
        ValueError: if neither ``root`` nor ``data.root`` is given.
    """
    if not (root or data.root):
        raise ValueError("data: expected data.root to name a data set, got nothing")
    training = split == "train"
    return open_dataset(
        root or data.root,
        format="auto" if root else data.format,
        split=split,
        size=data.size,
        train=training,
        audio_hop=data.audio_hop,
        log_mel=data.log_mel,
        num_frames=data.num_frames or None if training else None,
        flip=data.flip and training,
        scales=data.scales if training else (1.0, 1.0),
        seed=seed,
        cache=data.cache,
    )


def _evaluator(dataset: AVSDataset, settings: EvaluateConfig, sound: str) -> Evaluator:
    if sound in ("silence", "noise"):
        return FalsePositiveRate(sound)
    if dataset.binary:
        return BinaryEvaluator(settings.protocol, settings.batch_size)
    return SemanticEvaluator(dataset.num_classes, settings.protocol, settings.real_frames)


def _measure(model: Model, evaluator: Evaluator, batch: Batch) -> None:
    size = (batch.masks.shape[-2], batch.masks.shape[-1])
    result, _ = model.segment(batch.frames, batch.log_mel, batch.real, size)
    match evaluator:
        case FalsePositiveRate():
            evaluator.update(result.scores, batch.real, batch.indices)
        case BinaryEvaluator():
            evaluator.update(result.scores, batch.masks, batch.labelled, batch.indices)
        case SemanticEvaluator():
            evaluator.update(result.labels, batch.masks, batch.real, batch.indices)
