# SPDX-License-Identifier: Apache-2.0
"""Train a model on one device or, with torchrun, on many; resume bit-exactly."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from avsmodel.checkpoint import (
    load_state,
    random_state,
    restore_random_state,
    save_state,
    seed_everything,
    write_atomically,
)
from avsmodel.config import Config, TrainConfig, to_yaml
from avsmodel.criterion import SQDCriterion
from avsmodel.data import AVSDataset, Batch, Sample, collate
from avsmodel.distributed import World, join
from avsmodel.evaluate import evaluate, open_split
from avsmodel.log import RunLog
from avsmodel.pretrained import CONFIG, Model, start_from
from avsmodel.run_folder import BEST, CHECKPOINT, LAST, check_run, check_same, delete_run
from avsmodel.sqd import build_model

_SHOWN = ("J", "F", "JF", "mIoU")  # beside the progress bar


def train(
    config: Config,
    run: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a model into the folder ``run``.

    The folder receives ``config.yaml`` (resolved), ``checkpoint.pt`` (all that resuming needs),
    ``log.jsonl``, ``train.csv``, ``evaluate.csv``, and the models ``last`` and ``best`` (by J&F, or
    mIoU, on the validation split), which :func:`avsmodel.load` reads. A killed run that is resumed
    ends with the weights of one that was not killed.

    Args:
        config: what :func:`load_config` returned.
        run: the folder.
        resume: continue from the folder's checkpoint, or from the start without one.
        overwrite: delete the run that the folder holds.
        progress: show a progress bar on the main process.

    Returns:
        The metrics of the last validation, or {} without one.

    Raises:
        FileExistsError: if ``run`` holds files and neither ``resume`` nor ``overwrite`` is set.
        ValueError: for a configuration that does not fit the data, the processes or the run.
        FloatingPointError: for a loss or gradient that is not finite; the message names the clips
            of the batch, and the last checkpoint stays as it was.
    """
    run = Path(run)
    with join(config.train.device) as world:
        check_run(run, resume, overwrite)
        return _Training(config, run, world, resume, progress).fit()


class _Training:
    def __init__(
        self, config: Config, run: Path, world: World, resume: bool, progress: bool
    ) -> None:
        settings = config.train
        self.run, self.world, self.progress = run, world, progress and world.main
        self.clips = open_split(config.data, "train", seed=settings.seed)
        self.validation = open_split(config.data, "val") if settings.evaluate_every else None
        self._check_batches(settings)
        found: dict[str, Any] = {
            "class_names": tuple(self.clips.class_names),
            "num_frames": self.clips.num_frames,
            "format": self.clips.format,
        }
        self.config = dataclasses.replace(config, data=dataclasses.replace(config.data, **found))
        if resume:
            check_same(run, self.config)

        seed_everything(settings.seed)  # the same initial weights on every process
        network = build_model(config.model, self.clips.num_classes).to(world.device)
        saved = resume and (run / CHECKPOINT).is_file()
        if settings.init and not saved:
            others = start_from(network, settings.init)
            if others and self.progress:
                tqdm.write(f"init: {len(others)} tensors are of other shapes, such as {others[0]}")
        seed_everything(settings.seed + 1 + world.rank)  # each process its own dropout
        self.model = Model(network, self.config)
        self.network = self._distribute(network)
        self.criterion = SQDCriterion(config.loss)
        self.optimizer = torch.optim.AdamW(
            network.parameter_groups(
                settings.lr, settings.backbone_multiplier, settings.weight_decay
            ),
            lr=settings.lr,
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.best = -math.inf
        if saved:
            self._load(load_state(run / CHECKPOINT))
        world.barrier()
        if world.main:
            self._prepare_folder(resume)

    def _prepare_folder(self, resume: bool) -> None:
        if not resume:
            delete_run(self.run)
        self.run.mkdir(parents=True, exist_ok=True)
        text = to_yaml(self.config).encode()
        write_atomically(self.run / CONFIG, lambda file: file.write(text))
        self.log = RunLog(self.run, self.step)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.clips) // self.config.train.batch_size

    def _check_batches(self, settings: TrainConfig) -> None:
        size, processes = settings.batch_size, self.world.size
        if size < 1 or size % processes:
            raise ValueError(
                f"train: expected train.batch_size to be a multiple of {processes} processes, "
                f"got {size}"
            )
        if settings.epochs < 1:
            raise ValueError(f"train: expected at least 1 epoch, got {settings.epochs}")
        if len(self.clips) < size:
            raise ValueError(
                f"train: expected at least train.batch_size={size} clips in the training split, "
                f"got {len(self.clips)}"
            )

    def _distribute(self, network: torch.nn.Module) -> torch.nn.Module:
        if self.world.size == 1:
            return network
        if self.world.device.type == "cuda":
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
            return DistributedDataParallel(network, device_ids=[self.world.device.index])
        return DistributedDataParallel(network)

    def fit(self) -> dict[str, Any]:
        settings = self.config.train
        row: dict[str, Any] = {}
        total = settings.epochs * self.steps_per_epoch
        with tqdm(total=total, initial=self.step, desc="train", disable=not self.progress) as bar:
            while self.step < total:
                self._fit_epoch(bar)
                epochs = self.step // self.steps_per_epoch
                every = settings.evaluate_every
                due = every and (epochs % every == 0 or epochs == settings.epochs)
                if due and self.validation is not None:
                    row = self._validate(self.validation)
                    bar.set_postfix({name: f"{row[name]:.3f}" for name in row if name in _SHOWN})
                self._save()
        if self.world.main:
            self.model.save_pretrained(self.run / LAST, overwrite=True)
            if not settings.evaluate_every:
                self.model.save_pretrained(self.run / BEST, overwrite=True)
        self.world.barrier()
        return row

    # Trains the rest of the epoch that `self.step` is in.
    def _fit_epoch(self, bar: tqdm) -> None:
        every = self.config.train.checkpoint_every
        start = time.perf_counter()
        for batch in self._loader():
            epoch, rate = self.step // self.steps_per_epoch, self._set_rates()
            terms = self._fit_batch(batch)
            self.step += 1
            seconds, start = time.perf_counter() - start, time.perf_counter()
            if self.world.main:
                terms["seconds"] = round(seconds, 4)
                self.log.write("train", self.step, epoch=epoch, lr=rate, **terms)
            bar.update()
            if every and self.step % every == 0 and self.step % self.steps_per_epoch:
                self._save()

    def _fit_batch(self, batch: Batch) -> dict[str, float]:
        device = self.world.device
        batch = batch.to(device, non_blocking=True)
        self.network.train()
        amp = self.config.train.amp == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            output = self.network(batch.frames, batch.log_mel, batch.real)
        total, terms = self.criterion(output, batch)
        self._require_finite("loss", total, batch)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = self.model.network.parameters()
        limit = self.config.train.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self._require_finite("gradient", norm, batch)
        self.optimizer.step()
        return {"loss": total.item(), **terms, "gradient_norm": norm.item()}

    def _require_finite(self, what: str, value: torch.Tensor, batch: Batch) -> None:
        finite = torch.isfinite(value.detach())
        uids = [] if finite else batch.uids
        if self.world.size > 1:
            worst = finite.float()
            torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MIN)
            finite = worst > 0
        if not finite:
            clips = ", ".join(uid for part in self.world.gather(uids) for uid in part)
            raise FloatingPointError(
                f"train: expected a finite {what}, got {value.item()} at step {self.step + 1} "
                f"with the clips {clips} (the last checkpoint is intact)"
            )

    def _set_rates(self) -> float:
        factor = rate_factor(self.config.train, self.step, self.steps_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        return self.config.train.lr * factor

    # The order of an epoch, like each clip's augmentation, depends only on seed and epoch.
    def _loader(self) -> DataLoader[Sample]:
        settings, world = self.config.train, self.world
        epoch, position = divmod(self.step, self.steps_per_epoch)
        self.clips.set_epoch(epoch)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.clips), generator=generator).tolist()
        batches = [
            order[step * settings.batch_size : (step + 1) * settings.batch_size]
            for step in range(position, self.steps_per_epoch)
        ]
        return DataLoader(
            self.clips,
            batch_sampler=[batch[world.rank :: world.size] for batch in batches],
            collate_fn=collate,
            num_workers=self.config.data.workers,
            pin_memory=world.device.type == "cuda",
            generator=torch.Generator(),  # its own: the loader draws a number when it starts
        )

    def _validate(self, clips: AVSDataset) -> dict[str, Any]:
        settings = dataclasses.replace(self.config.evaluate, split="val")
        self.world.share_buffers(self.model.network)
        result = evaluate(
            self.model,
            clips,
            settings,
            self.world,
            workers=self.config.data.workers,
            progress=self.progress,
        )
        row = result["metrics"]
        score = row["JF"] if clips.binary else row["mIoU"]
        if self.world.main:
            self.log.write("evaluate", self.step, **row)
            if score > self.best:
                self.model.save_pretrained(self.run / BEST, overwrite=True, results=(result,))
        self.best = max(self.best, score)
        return row

    def _save(self) -> None:
        states = self.world.gather(random_state(self.world.device))
        if not self.world.main:
            return
        state = {
            "model": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": states,
            "step": self.step,
            "best": self.best,
        }
        save_state(self.run / CHECKPOINT, state)

    def _load(self, state: dict[str, Any]) -> None:
        if len(state["random"]) != self.world.size:
            raise ValueError(
                f"train: expected {len(state['random'])} processes, as before the checkpoint, "
                f"got {self.world.size}"
            )
        self.model.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_random_state(state["random"][self.world.rank], self.world.device)
        self.step, self.best = state["step"], state["best"]


def rate_factor(settings: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the factor on the base learning rates in the step after ``step`` others."""
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.schedule == "step":
        epoch = step // steps_per_epoch
        drops = sum(epoch >= drop for drop in settings.lr_drop_epochs)
        return warmup * settings.lr_drop_factor**drops
    share = step / (settings.epochs * steps_per_epoch)
    lowest = settings.lr_drop_factor
    return warmup * (lowest + (1 - lowest) * (1 + math.cos(math.pi * share)) / 2)
