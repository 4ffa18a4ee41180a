# SPDX-License-Identifier: Apache-2.0
"""Real files that several tests read."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

# The smallest training that still uses every part.
MICRO = (
    "model.backbone_options={channels: [4, 8, 8, 16], stem_width: 4, stem_type: deep}",
    "model.vggish_width=0.03125",
    "model.dim=16",
    "model.num_heads=2",
    "model.ffn_dim=32",
    "model.num_points=2",
    "model.num_codewords=7",
    "model.mask_dim=6",
    "model.extra_levels=0",
    "data.size=64",
    "data.workers=0",
    "train.epochs=2",
    "train.batch_size=2",
    "train.evaluate_every=1",
    "train.device=cpu",
    "evaluate.batch_size=2",
)


@dataclass(frozen=True)
class Run:
    """A finished training run and what it was made from."""

    folder: Path
    data: Path
    settings: tuple[str, ...]


def _train(settings, folder):
    # Imported here, so that tests without a model start at once.
    from avsmodel.config import load_config
    from avsmodel.train import train

    train(load_config("tiny", settings), folder, progress=False)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    from avsmodel.data import synthesize

    return synthesize(tmp_path_factory.mktemp("data") / "ms3", "ms3", (6, 3, 4), 64)


@pytest.fixture(scope="session")
def micro(data_root):
    """Overrides of the preset `tiny` that train for six steps on a binary data set."""
    return (*MICRO, f"data.root={data_root}")


@pytest.fixture(scope="session")
def run(micro, data_root, tmp_path_factory):
    """A finished run with the overrides of `micro`."""
    folder = tmp_path_factory.mktemp("run") / "binary"
    _train(micro, folder)
    return Run(folder, data_root, micro)


@pytest.fixture(scope="session")
def semantic_run(tmp_path_factory):
    """A model trained for two steps on a data set with classes."""
    from avsmodel.data import synthesize

    root = synthesize(tmp_path_factory.mktemp("data") / "avss", "avss", (4, 3, 3), 64)
    settings = (*MICRO, "train.epochs=1", f"data.root={root}")
    folder = tmp_path_factory.mktemp("run") / "semantic"
    _train(settings, folder)
    return Run(folder, root, settings)


@pytest.fixture(scope="session")
def throughput():
    """One row of a recorded comparison of operators with published code."""
    return [
        {
            "operator": "vector_quantize",
            "case": "M 100",
            "eager_ms": 0.4,
            "avskernels_ms": 0.1,
            "speedup": 4.0,
            "threads": 2,
        }
    ]


@pytest.fixture
def make_video(tmp_path):
    """Return a function that writes an H.264 + AAC file: frame i is grey 8 * i, left half red."""
    import av

    def make(name="clip.mp4", seconds=2.0, fps=10, size=(48, 64), sound=True, rotation=0):
        path = tmp_path / name
        with av.open(str(path), "w") as output:
            video = output.add_stream("libx264", rate=fps)
            video.height, video.width = size
            video.pix_fmt = "yuv420p"
            video.options = {"crf": "10"}
            if rotation:
                video.set_display_rotation(rotation)
            audio = output.add_stream("aac", rate=44100, layout="stereo") if sound else None
            for index in range(round(seconds * fps)):
                image = np.full((*size, 3), min(8 * index, 255), np.uint8)
                image[:, : size[1] // 2] = (255, 0, 0)
                output.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            output.mux(video.encode(None))
            if sound:
                time = np.arange(round(seconds * 44100)) / 44100
                tone = (0.5 * np.sin(2 * np.pi * 440 * time) * (time >= seconds / 2)).astype("f4")
                frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), "fltp", "stereo")
                frame.sample_rate = 44100
                frame.time_base = Fraction(1, 44100)
                frame.pts = 0
                output.mux(audio.encode(frame))
                output.mux(audio.encode(None))
        return path

    return make
