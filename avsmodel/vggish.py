# SPDX-License-Identifier: Apache-2.0
"""VGGish: a 128-d embedding of each 0.96 s of sound."""

import os

import torch
from torch import Tensor, nn

_CHANNELS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool")


class VGGish(nn.Module):
    """VGG-style network on log-mel examples, with the parameter names of torchvggish.

    The published file ``vggish-10086976.pth`` loads at ``width=1``.

    Args:
        width: factor on every number of channels but the embedding's.
        embedding_dim: size of the embedding, 128 in the published network.
        frozen: whether the parameters have no gradient and are not updated.

    Source: Hershey et al. 2017, "CNN architectures for large-scale audio classification".
    """

    def __init__(self, *, width: float = 1.0, embedding_dim: int = 128, frozen: bool = False):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for item in _CHANNELS:
            if isinstance(item, str):  # "pool"
                layers.append(nn.MaxPool2d(2))
                continue
            wider = round(item * width)
            layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU()]
            channels = wider
        self.features = nn.Sequential(*layers)
        hidden = round(4096 * width)
        self.embeddings = nn.Sequential(
            nn.Linear(channels * 6 * 4, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, embedding_dim),
            nn.ReLU(),
        )
        self._initialise()
        self.frozen = frozen
        self.requires_grad_(not frozen)

    @torch.no_grad()
    def _initialise(self) -> None:
        # The network has no normalisation. He initialisation keeps signals from fading with depth.
        # Filters of mean zero suppress what all sounds have in common, as every activation is
        # positive; it would hide the differences between them.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                module.weight -= (
                    module.weight.flatten(1).mean(1).view(-1, *[1] * (module.weight.ndim - 1))
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Embed log-mel examples.

        Args:
            log_mel: ``Tensor[..., 1, 96, 64]`` (frames, mel bands).

        Returns:
            ``Tensor[..., embedding_dim]``.

        Raises:
            ValueError: for another shape.
        """
        if log_mel.shape[-3:] != (1, 96, 64):
            raise ValueError(
                f"VGGish: expected log_mel [..., 1, 96, 64], got {list(log_mel.shape)}"
            )
        maps = self.features(log_mel.flatten(0, -4))
        # The published weights come from a channels-last framework.
        embedding = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return embedding.unflatten(0, log_mel.shape[:-3])

    def load_published(self, path: str) -> None:
        """Read the published checkpoint (torch.load with ``weights_only=True``).

        Raises:
            FileNotFoundError: if there is no file at ``path``.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"VGGish: expected torchvggish's vggish-10086976.pth at {path!r}, got no file "
                '(to train from scratch: vggish_weights="" and freeze_vggish=false)'
            )
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
