# SPDX-License-Identifier: Apache-2.0
"""A trained model in a folder: weights, configuration and card, saved and loaded offline."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from avsmodel.checkpoint import write_atomically
from avsmodel.config import Config, load_config, to_yaml
from avsmodel.distributed import pick_device
from avsmodel.predict import Prediction, predict
from avsmodel.sqd import SQD, Segmentation, SQDOutput, build_model

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"


def start_from(network: torch.nn.Module, source: str | Path) -> list[str]:
    """Load the weights that a network starts its training from, by name.

    Args:
        network: takes every tensor that has the name and shape of one of its own.
        source: a safetensors file, or the folder of a run (its ``best``) or model.

    Returns:
        Names of the tensors of the source that the network has in another shape, such as the class
        head of another data set; these stay as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no safetensors file, or holds a name that the network lacks.
    """
    path = Path(source)
    for inside in (WEIGHTS, f"best/{WEIGHTS}"):
        if path.is_dir() and (path / inside).is_file():
            path = path / inside
    if not path.is_file():
        raise FileNotFoundError(f"init: expected a safetensors file or a model, got {source}")
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"init: expected a safetensors file at {path}, got {error}") from None
    own = network.state_dict()
    strange = [name for name in tensors if name not in own]
    if strange:
        raise ValueError(
            f"init: expected weights of this configuration in {path}, got {len(strange)} names "
            f"that it lacks, such as {strange[0]}"
        )
    other = [name for name, tensor in tensors.items() if tensor.shape != own[name].shape]
    network.load_state_dict({**own, **{n: t for n, t in tensors.items() if n not in other}})
    return other


class Model:
    """A network with the configuration and the classes it was trained on.

    Attributes:
        network: the torch module.
        config: the resolved configuration; ``config.data.class_names[0]`` is ``"background"``.
    """

    def __init__(self, network: SQD, config: Config) -> None:
        self.network = network
        self.config = config

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id; 0 is the background."""
        return self.config.data.class_names

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.network.parameters()).device

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "auto") -> "Model":
        """Load a folder that :meth:`save_pretrained` or training wrote; no network is needed.

        A run folder gives its ``best`` model.

        Raises:
            FileNotFoundError: if the folder lacks ``config.yaml`` or ``model.safetensors``.
            ValueError: if the weights are damaged or do not fit the configuration.
        """
        folder = Path(folder)
        if not (folder / WEIGHTS).is_file() and (folder / "best" / WEIGHTS).is_file():
            folder = folder / "best"
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"load: expected {name} in {folder}, got a folder without it"
                )
        config = load_config(folder / CONFIG)
        architecture = replace(config.model, pretrained=False, vggish_weights="")
        network = build_model(architecture, len(config.data.class_names))
        try:
            weights = safetensors.torch.load_file(folder / WEIGHTS)
            network.load_state_dict(weights)
        except (safetensors.SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"load: expected weights of this configuration in {folder / WEIGHTS}, got {reason}"
            ) from None
        return cls(network.to(pick_device(device)).eval(), config)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        results: tuple[dict[str, Any], ...] = (),
    ) -> None:
        """Write ``model.safetensors``, ``config.yaml`` and the card ``README.md`` into ``folder``.

        Args:
            folder: created if it does not exist.
            overwrite: replace a model that is there.
            results: what :func:`evaluate` returned, for the card.

        Raises:
            FileExistsError: if the folder holds a model and ``overwrite`` is not set.
        """
        folder = Path(folder)
        if (folder / WEIGHTS).exists() and not overwrite:
            raise FileExistsError(f"save: expected a folder without a model, got {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
        config = to_yaml(self.config)
        write_atomically(folder / CONFIG, lambda file: file.write(config.encode()))
        write_atomically(folder / CARD, lambda file: file.write(self.card(results).encode()))
        write_atomically(folder / WEIGHTS, lambda file: file.write(weights))

    def card(self, results: tuple[dict[str, Any], ...] = ()) -> str:
        """Return the model card: what the model is and how each number was measured."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        data = self.config.data
        lines = [
            "---\nlibrary_name: avsmodel\npipeline_tag: image-segmentation\n---",
            f"# {self.config.model.backbone} SQD\n",
            f"Audiovisual segmentation, {parameters / 1e6:.1f} M parameters, trained on "
            f"{Path(data.root).name or 'unnamed data'} ({data.format}, {data.num_frames} frames "
            f"of {data.size} x {data.size}).\n",
            f"Classes: {', '.join(self.class_names)}.\n",
            "```python\nimport avsmodel\n\n"
            'prediction = avsmodel.load("this/folder").predict("clip.mp4")\n```\n',
        ]
        if results:
            lines.append("| result | value | protocol | resolution | test batch | sound | clips |")
            lines.append("|---|---|---|---|---|---|---|")
        for result in results:
            for name, value in result["metrics"].items():
                lines.append(
                    f"| {name} ({result['split']}) | {value:.4f} | {result['protocol']} "
                    f"| {result['resolution']} | {result['batch_size']} | {result['sound']} "
                    f"| {result['clips']} |"
                )
        return "\n".join(lines) + "\n"

    @torch.inference_mode()
    def segment(
        self,
        frames: torch.Tensor,
        log_mel: torch.Tensor,
        real: torch.Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Segmentation, SQDOutput]:
        """Run the network on clips of any number of frames.

        Args:
            frames: float32 ``Tensor[B, T, 3, H, W]``, ImageNet-normalised.
            log_mel: float32 ``Tensor[B, T, 1, 96, 64]``.
            real: bool ``Tensor[B, T]``, False where a frame is padding.
            size: (height, width) of the result; that of the frames by default.

        Returns:
            The segmentation, and the network's output.
        """
        device = self.device
        self.network.eval()
        frames, log_mel = frames.to(device), log_mel.to(device)
        real = None if real is None else real.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.train.amp == "bf16"):
            output = self.network(frames, log_mel, real)
        return self.network.segment(output, size or (frames.shape[-2], frames.shape[-1])), output

    def predict(self, video: str | Path, **options: Any) -> Prediction:
        """Segment a video file; see :func:`avsmodel.predict.predict`."""
        return predict(self, video, **options)
