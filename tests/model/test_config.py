# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import yaml

from avsmodel.config import Config, load_config, preset_names, to_yaml


def test_defaults_are_a_valid_configuration():
    assert load_config() == Config()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_its_own_yaml(name, tmp_path):
    config = load_config(name)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_overrides_change_one_value_each():
    changes = ["train.lr=3e-4", "train.epochs=2", "model.gsd=false", "train.lr_drop_epochs=[1, 2]"]
    config = load_config("", [*changes, "data.root=some/where", "data.class_names=[a, b]"])
    assert config.train == dataclasses.replace(
        Config().train, lr=3e-4, epochs=2, lr_drop_epochs=(1, 2)
    )
    assert config.model == dataclasses.replace(Config().model, gsd=False)
    assert config.data == dataclasses.replace(
        Config().data, root="some/where", class_names=("a", "b")
    )


def test_a_file_builds_on_the_preset_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: tiny\ntrain:\n  epochs: 77\n")
    expected = load_config("tiny", ["train.epochs=77"])
    assert load_config(path) == expected


def test_float_accepts_what_yaml_calls_a_string_or_an_integer():
    assert load_config("", ["train.lr=1e-5"]).train.lr == 1e-5
    lr = load_config("", ["train.lr=1"]).train.lr
    assert lr == 1.0 and isinstance(lr, float)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"known key, got train\.epoch \(the nearest one is train\.epochs\)"),
        ("gsd=false", r"known key, got gsd \(the nearest one is model\.gsd\)"),
        ("model=tiny", "known key, got model "),
        ("train.lr.x=3", r"known key, got train\.lr\.x"),
        ("train.epochs", "expected key=value, got 'train.epochs'"),
        ("train.epochs=2.5", r"train\.epochs of type int, got float 2\.5"),
        ("train.epochs=true", r"train\.epochs of type int, got bool True"),
        ("train.lr=fast", r"train\.lr of type float, got str 'fast'"),
        ("train.lr=true", r"train\.lr of type float, got bool True"),
        ("model.gsd=1", r"model\.gsd of type bool, got int 1"),
        ("train.amp=fp16", r"train\.amp in \['none', 'bf16'\], got 'fp16'"),
        ("train.lr_drop_epochs=3", r"a list for train\.lr_drop_epochs, got 3"),
        ("train.lr_drop_epochs=[a]", r"train\.lr_drop_epochs of type int, got str 'a'"),
        ("train.lr=[", r"a YAML value for train\.lr, got '\['"),
    ],
)
def test_a_bad_override_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_config("", [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian:\n  epochs: 3\n", "known key, got trian "),
        ("train:\n  epoch: 3\n", r"nearest one is train\.epochs"),
        ("train: 3\n", "expected keys under train, got 3"),
        ("- a\n", "expected sections in .*, got list"),
        ("train: [\n", "expected YAML in "),
        ("preset: huge\n", "expected preset in .*tiny.*, got 'huge'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(path)


def test_an_unknown_source_lists_the_presets():
    with pytest.raises(FileNotFoundError, match=r"a YAML file or one of .*tiny.*, got huge"):
        load_config("huge")


def test_the_written_file_is_plain_yaml():
    assert yaml.safe_load(to_yaml(Config()))["train"]["lr_drop_epochs"] == [11]
