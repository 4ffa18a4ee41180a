# SPDX-License-Identifier: Apache-2.0
"""Encoders learn to name what they hear and see, and a training starts from them."""

import torch
from safetensors.torch import load_file

from avsmodel.config import load_config
from avsmodel.pretrained import start_from
from avsmodel.sqd import build_model
from avsmodel.tagging import learn_to_tag


def test_encoders_learn_to_tag_and_a_network_starts_from_them(micro, tmp_path):
    config = load_config("tiny", micro)
    file = tmp_path / "new" / "encoders.safetensors"
    shares = learn_to_tag(config, file, examples=1152, progress=False)
    assert shares["sounds"] > 5 / 24 and shares["pictures"] > 2 / 24
    first = file.read_bytes()
    learn_to_tag(config, file, examples=1152, progress=False)
    assert file.read_bytes() == first
    network = build_model(config.model, 2)
    assert start_from(network, file) == []
    weights = load_file(file)
    own = network.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in weights)
    parts = ("visual_encoder.backbone.", "audio_encoder.vggish.")
    assert set(weights) == {name for name in own if name.startswith(parts)}
