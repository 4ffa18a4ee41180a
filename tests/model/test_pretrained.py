# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import yaml
from safetensors.torch import save_file

import avsmodel
from avsmodel.config import load_config
from avsmodel.evaluate import open_split
from avsmodel.pretrained import Model, start_from
from avsmodel.sqd import build_model


def output_of(model):
    sample = open_split(model.config.data, "test")[0]
    segmentation, raw = model.segment(sample.frames[None], sample.log_mel[None])
    return segmentation.scores, raw.class_logits


def test_a_saved_model_comes_back_the_same(run, tmp_path):
    model = avsmodel.load(run.folder, "cpu")
    assert model.class_names == ("background", "sounding")
    model.save_pretrained(tmp_path / "copy")
    copy = Model.from_pretrained(tmp_path / "copy", device="cpu")
    assert copy.config == model.config
    for first, second in zip(output_of(model), output_of(copy), strict=True):
        assert torch.equal(first, second)


def test_a_run_stands_for_its_best_model(run):
    best = avsmodel.load(run.folder / "best", "cpu").network.state_dict()
    loaded = avsmodel.load(run.folder, "cpu").network.state_dict()
    assert all(torch.equal(best[name], loaded[name]) for name in best)


def test_a_network_starts_from_a_run_or_a_file_of_some_parts(run, semantic_run, tmp_path):
    network = build_model(load_config("tiny", run.settings).model, 2)
    assert start_from(network, run.folder) == []
    best = avsmodel.load(run.folder / "best", "cpu").network.state_dict()
    assert all(torch.equal(best[name], value) for name, value in network.state_dict().items())
    semantic = build_model(load_config("tiny", semantic_run.settings).model, 25)
    others = start_from(semantic, run.folder)
    assert others and all("class" in name for name in others)

    part = tmp_path / "part.safetensors"
    name = "visual_encoder.backbone.network.conv1.0.weight"
    save_file({name: torch.ones_like(best[name])}, part)
    start_from(network, part)
    assert network.state_dict()[name].eq(1).all()
    save_file({"visual_encoder.sight": torch.ones(1)}, part)
    with pytest.raises(ValueError, match=r"got 1 names that it lacks, such as visual_.*\.sight"):
        start_from(network, part)
    part.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="init: expected a safetensors file at"):
        start_from(network, part)
    with pytest.raises(FileNotFoundError, match="init: expected a safetensors file or a model"):
        start_from(network, tmp_path / "nowhere")


def test_nothing_is_overwritten_unasked(run, tmp_path):
    model = avsmodel.load(run.folder, "cpu")
    model.save_pretrained(tmp_path)
    with pytest.raises(FileExistsError, match="a folder without a model"):
        model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, overwrite=True)


def test_the_card_names_protocol_resolution_and_test_batch(run):
    card = (run.folder / "best" / "README.md").read_text()
    front, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["library_name"] == "avsmodel"
    rows = [line for line in text.splitlines() if line.startswith("| J ")]
    assert rows and all("| avsbench | 64x64 | 2 | own | 3 |" in row for row in rows)
    assert str(run.data.parent) not in card


def test_what_cannot_be_loaded_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected config\.yaml in .*nowhere"):
        avsmodel.load(tmp_path / "nowhere")
    model = avsmodel.load(run.folder, "cpu")
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"weights of this configuration in .*safetensors"):
        avsmodel.load(tmp_path)
    weights.write_bytes(whole)
    config = tmp_path / "config.yaml"
    other = yaml.safe_load(config.read_text())
    other["model"]["num_tokens"] += 1
    config.write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match="weights of this configuration"):
        avsmodel.load(tmp_path)
