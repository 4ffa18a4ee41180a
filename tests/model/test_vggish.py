# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional as F

from avsmodel.vggish import VGGish

# Name and shape of every parameter in torchvggish's published file.
PUBLISHED = {
    "features.0": (64, 1, 3, 3),
    "features.3": (128, 64, 3, 3),
    "features.6": (256, 128, 3, 3),
    "features.8": (256, 256, 3, 3),
    "features.11": (512, 256, 3, 3),
    "features.13": (512, 512, 3, 3),
    "embeddings.0": (4096, 12288),
    "embeddings.2": (4096, 4096),
    "embeddings.4": (128, 4096),
}


def test_parameters_are_those_of_the_published_file():
    with torch.device("meta"):
        state = VGGish().state_dict()
    expected = {f"{name}.weight": shape for name, shape in PUBLISHED.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in PUBLISHED.items()}
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


def test_forward_is_the_published_chain():
    network = VGGish(width=1 / 32).double()
    log_mel = torch.randn(2, 3, 1, 96, 64, dtype=torch.float64)
    state = network.state_dict()
    x = log_mel.view(6, 1, 96, 64)
    for index, pooled in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        kernel, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
        patches = F.unfold(x, 3, padding=1)  # [6, C*9, H*W]
        x = (kernel.flatten(1) @ patches + bias[:, None]).clamp(min=0).view(6, -1, *x.shape[2:])
        if pooled:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    # Published weights expect the channel as the fastest index.
    x = torch.stack([x[:, :, row, column] for row in range(6) for column in range(4)], dim=1)
    x = x.flatten(1)
    for index in (0, 2, 4):
        x = (x @ state[f"embeddings.{index}.weight"].T + state[f"embeddings.{index}.bias"]).clamp(
            min=0
        )
    torch.testing.assert_close(network(log_mel), x.view(2, 3, 128))


def test_an_untrained_network_tells_sounds_apart():
    torch.manual_seed(0)
    embeddings = VGGish(width=1 / 8)(torch.randn(32, 1, 96, 64) - 3)
    spread = embeddings.std(0).norm() / embeddings.mean(0).norm()
    assert spread > 0.2  # 0.03 if the mean of filters is not zero


def test_load_published(tmp_path):
    source, target = VGGish(width=1 / 32), VGGish(width=1 / 32, frozen=True)
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    target.load_published(str(path))
    log_mel = torch.randn(1, 1, 96, 64)
    assert torch.equal(source(log_mel), target(log_mel))
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_errors(tmp_path):
    network = VGGish(width=1 / 32)
    with pytest.raises(FileNotFoundError, match=r"VGGish: expected .* got no file"):
        network.load_published(str(tmp_path / "missing.pth"))
    with pytest.raises(ValueError, match=r"VGGish: expected log_mel \[..., 1, 96, 64\], got"):
        network(torch.randn(2, 1, 64, 96))
