# SPDX-License-Identifier: Apache-2.0
"""Measure a model on a data set, on one process or many."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from avsmodel.config import DataConfig, EvaluateConfig
from avsmodel.data import AVSDataset, collate, open_dataset
from avsmodel.distributed import ALONE, World
from avsmodel.metrics import BinaryEvaluator, SemanticEvaluator
from avsmodel.pretrained import Model


class OtherAudio(Dataset):
    """The clips of a data set, each with the sound of another one.

    A seeded cycle through all clips pairs them, so that every sound is used once and no clip
    keeps its own.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        if len(dataset) < 2:
            raise ValueError(f"shuffled audio: expected at least 2 clips, got {len(dataset)}")
        cycle = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        self.dataset = dataset
        self.source = dict(zip(cycle.tolist(), cycle.roll(1).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        sample = self.dataset[index]
        sample.log_mel = self.dataset[self.source[index]].log_mel
        return sample


def evaluate(
    model: Model,
    dataset: Dataset,
    settings: EvaluateConfig,
    world: World = ALONE,
    *,
    shuffle_audio: bool = False,
    workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Return the metrics of `model` on `dataset` and the protocol they were measured under.

    The clips are dealt out to the processes and their measures gathered before any average is
    formed, so that the result does not depend on the number of processes.

    Args:
        model: the model, on this process's device.
        dataset: what `avsmodel.data.open_dataset` returned.
        settings: protocol and test batch.
        world: the processes that share the work.
        shuffle_audio: give each clip the sound of another one: a model that hears gets worse.
        workers: processes that read files.
        progress: show a progress bar on the main process.

    Returns:
        `metrics` (fractions of 1: J, F, JF, or mIoU and F, ...) and `protocol`, `resolution`,
        `batch_size`, `split`, `format`, `audio`, `clips`, on every process.
    """
    if len(model.class_names) != dataset.num_classes:
        raise ValueError(
            f"evaluate: expected a data set of the model's {len(model.class_names)} classes, "
            f"got {dataset.num_classes} in {dataset.root}"
        )
    evaluator = _evaluator(dataset, settings)
    starts = range(world.rank * settings.batch_size, len(dataset), world.size * settings.batch_size)
    batches = [range(len(dataset))[start : start + settings.batch_size] for start in starts]
    loader = DataLoader(
        OtherAudio(dataset) if shuffle_audio else dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),  # its own, so that training's is not advanced
    )
    for batch in tqdm(loader, "evaluate", disable=not (progress and world.main), leave=False):
        masks = batch.masks.to(model.device)
        segmentation, _ = model.segment(
            batch.frames, batch.log_mel, batch.real, tuple(masks.shape[-2:])
        )
        if dataset.binary:
            counted = batch.labelled.to(model.device)
            evaluator.update(segmentation.scores, masks, counted, batch.indices)
        else:
            real = batch.real.to(model.device)
            evaluator.update(segmentation.labels, masks, real, batch.indices)
    for state in world.gather(evaluator.state_dict()):
        evaluator.merge(state)
    values = evaluator.compute()
    if "per_class" in values:
        names = dataset.class_names
        values["per_class"] = dict(zip(names, values["per_class"], strict=True))
    metrics = {name: value for name, value in values.items() if isinstance(value, float)}
    return {
        "metrics": metrics,
        **{name: value for name, value in values.items() if name not in metrics},
        "batch_size": settings.batch_size,
        "split": settings.split,
        "format": dataset.format,
        "data": Path(dataset.root).name,
        "audio": "another clip's" if shuffle_audio else "own",
    }


def evaluate_folder(
    folder: str | Path,
    world: World,
    *,
    data: str = "",
    shuffle_audio: bool = False,
    progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Load a model and `evaluate` it on the data set of its training, or on `data`.

    Args:
        folder: what `avsmodel.load` accepts.
        world: this process among its peers.
        data: folder of another data set.
        shuffle_audio, progress: see `evaluate`.
        changes: fields of `EvaluateConfig` that differ from the model's configuration.
    """
    model = Model.from_pretrained(folder, str(world.device))
    settings = dataclasses.replace(model.config.evaluate, **changes)
    dataset = open_split(model.config.data, settings.split, root=data)
    return evaluate(
        model,
        dataset,
        settings,
        world,
        shuffle_audio=shuffle_audio,
        workers=model.config.data.workers,
        progress=progress,
    )


def open_split(data: DataConfig, split: str, *, root: str = "", seed: int = 0) -> AVSDataset:
    """Open a split as the configuration says: `train` augmented, the others whole.

    Args:
        data: the configuration.
        split: train, val or test.
        root: another folder than `data.root`, of any format.
        seed: of the augmentation.
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


def _evaluator(dataset: Dataset, settings: EvaluateConfig):
    if dataset.binary:
        return BinaryEvaluator(protocol=settings.protocol, batch_size=settings.batch_size)
    if settings.protocol == "davis":
        raise ValueError("evaluate: expected avsbench or dataset for semantic data, got davis")
    return SemanticEvaluator(dataset.num_classes, protocol=settings.protocol)
