# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import yaml

import avsmodel
from avsmodel.evaluate import open_split
from avsmodel.pretrained import Model


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
