# SPDX-License-Identifier: Apache-2.0
"""Encoders that have learnt to tag: to the synthetic data what AudioSet and ImageNet are to others.

The published systems start from encoders that name what a sound or a picture holds. These learn it
from single sounds and single objects of the synthetic world, once, for all systems that are
compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from avsmodel.backbones import ImageBackbone, VideoSwin
from avsmodel.checkpoint import seed_everything, write_atomically
from avsmodel.config import Config
from avsmodel.data.audio import SAMPLE_RATE, log_mel
from avsmodel.data.images import normalise
from avsmodel.data.scene import draw_picture
from avsmodel.data.sources import CLASSES, ENTANGLED, World
from avsmodel.data.timbre import mix
from avsmodel.sqd.encoders import AudioEncoder, VisualEncoder
from avsmodel.vggish import VGGish

_PICTURE = 64  # pixels of a side
_BATCH = 64
_RATE = 2e-3
_PASSES = 3  # over the examples
_SHIFT = 0.5  # standard deviation of what is added to a log-mel example: its loudness


class _Examples(Dataset[tuple[Tensor, Tensor]]):
    """Pictures, or log-mel examples, of one class each; index and seed determine an example."""

    def __init__(self, kind: str, world: World, count: int, seed: int) -> None:
        self.make = {"picture": _picture, "sound": _sound}[kind]
        self.world, self.count, self.seed = world, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        kind = int(self.world.kinds[index % self.world.num_classes])
        return self.make(rng, kind, self.world), torch.tensor(kind)


def _picture(rng: np.random.Generator, kind: int, world: World) -> Tensor:
    return normalise(draw_picture(rng, kind, _PICTURE, coloured=world.coloured)[None])[0]


def _sound(rng: np.random.Generator, kind: int, world: World) -> Tensor:
    wave = mix(rng, [kind], np.ones((1, 1), bool), clear=world.clear) / (1 << 15)
    return log_mel(np.pad(wave, (0, SAMPLE_RATE)), 1, 1.0)[0]


class _PictureTagger(nn.Module):
    def __init__(self, backbone: ImageBackbone | VideoSwin) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(nn.Linear(c, len(CLASSES)) for c in backbone.channels[1:])

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.backbone(pictures[:, None])[1:]
        scores = [head(item.mean((2, 3))) for head, item in zip(self.heads, maps, strict=True)]
        return torch.stack(scores)


class _SoundTagger(nn.Module):
    def __init__(self, vggish: VGGish) -> None:
        super().__init__()
        self.vggish = vggish
        self.head = nn.Linear(128, len(CLASSES))

    def forward(self, examples: Tensor) -> Tensor:
        if self.training:
            examples = examples + _SHIFT * torch.randn(len(examples), 1, 1, 1)
        return self.head(self.vggish(examples))[None]


def learn_to_tag(
    config: Config,
    path: str | Path,
    world: World = ENTANGLED,
    *,
    examples: int = 4800,
    progress: bool = True,
) -> dict[str, float]:
    """Teach the encoders of a configuration to tag, and write them to a safetensors file.

    Args:
        config: whose visual backbone and sound network learn; ``train.init`` reads the file.
        path: the file.
        world: what there is to tell apart.
        examples: pictures, and seconds of sound, to learn from.
        progress: show a progress bar.

    Returns:
        The shares of pictures and of sounds of held-out examples that are tagged right.
    """
    seed_everything(config.train.seed)
    visual, audio = VisualEncoder(config.model), AudioEncoder(config.model)
    vggish = audio.vggish.requires_grad_()
    shares = {
        "pictures": _fit(
            _PictureTagger(visual.backbone), "picture", world, config, examples, progress
        ),
        "sounds": _fit(_SoundTagger(vggish), "sound", world, config, examples, progress),
    }
    tensors = {
        **{f"visual_encoder.backbone.{k}": v for k, v in visual.backbone.state_dict().items()},
        **{f"audio_encoder.vggish.{k}": v for k, v in vggish.state_dict().items()},
    }
    contents = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(contents))
    return shares


def _fit(
    tagger: nn.Module, kind: str, world: World, config: Config, count: int, progress: bool
) -> float:
    pool = _read(_Examples(kind, world, count, config.train.seed), config, f"{kind}s", progress)
    held_out = _read(_Examples(kind, world, 480, config.train.seed + 1), config, "", False)
    steps = _PASSES * (count // _BATCH)
    optimizer = torch.optim.AdamW(tagger.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, max(2, steps))
    tagger.train()
    bar = tqdm(total=steps, desc=f"tag {kind}s", disable=not progress)
    for _ in range(_PASSES):
        for rows in torch.randperm(count)[: count // _BATCH * _BATCH].view(-1, _BATCH):
            scores = tagger(pool[0][rows])
            loss = F.cross_entropy(scores.flatten(0, 1), pool[1][rows].repeat(len(scores)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.2f}")
    bar.close()
    tagger.eval()
    with torch.no_grad():
        right = [
            tagger(x)[-1].argmax(1) == y
            for x, y in zip(held_out[0].split(_BATCH), held_out[1].split(_BATCH), strict=True)
        ]
    return float(torch.cat(right).float().mean())


def _read(examples: _Examples, config: Config, words: str, progress: bool) -> tuple[Tensor, Tensor]:
    loader: Any = DataLoader(examples, batch_size=_BATCH, num_workers=config.data.workers)
    parts = list(tqdm(loader, f"make {words}", disable=not progress))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
