# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: dataclasses, YAML files and presets, ``key=value`` overrides."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from avsmodel.criterion import LossConfig
from avsmodel.sqd import SQDConfig


@dataclass
class DataConfig:
    """The data set and how it is read (see :func:`open_dataset`).

    Training records the ``format``, ``num_frames`` and ``class_names`` that it found.

    Attributes:
        num_frames: frames of a training clip, 0 = all.
        flip, scales: augmentation of the training split.
        workers: processes that read files.
    """

    root: str = ""
    format: Literal["auto", "s4", "ms3", "avss"] = "auto"
    size: int = 224
    audio_hop: Literal["vggish", "second"] = "vggish"
    log_mel: Literal["wav", "pickle"] = "wav"
    num_frames: int = 0
    flip: bool = False
    scales: tuple[float, float] = (1.0, 1.0)
    cache: bool = False
    workers: int = 2
    class_names: tuple[str, ...] = ()


@dataclass
class TrainConfig:
    """The optimization; the defaults are SQD's recipe for S4 and MS3.

    Attributes:
        init: weights to start from: a safetensors file, of some of the parts perhaps (such as what
            ``avsmodel tag`` writes), or the folder of a run (its ``best``) or model. A tensor of
            another shape, such as the class head of another data set, stays as it is.
        batch_size: clips per step, over all processes.
        lr, weight_decay: of AdamW.
        backbone_multiplier: factor on the learning rate of the visual backbone.
        warmup_steps: steps in which the learning rate rises from 0.
        schedule: ``"step"`` multiplies the learning rate by ``lr_drop_factor`` after each number of
            epochs in ``lr_drop_epochs``; ``"cosine"`` lowers it to that factor over the whole run.
        clip_norm: largest norm of the gradient; 0 does not clip.
        amp: ``"bf16"`` trains under bfloat16 autocast.
        checkpoint_every: steps between checkpoints within an epoch, 0 = only at its end.
        evaluate_every: epochs between validations, 0 = never.
    """

    init: str = ""
    epochs: int = 13
    batch_size: int = 4
    lr: float = 1e-4
    backbone_multiplier: float = 0.5
    weight_decay: float = 5e-4
    warmup_steps: int = 0
    schedule: Literal["step", "cosine"] = "step"
    lr_drop_epochs: tuple[int, ...] = (11,)
    lr_drop_factor: float = 0.1
    clip_norm: float = 0.1
    amp: Literal["none", "bf16"] = "none"
    seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 500
    evaluate_every: int = 1


@dataclass
class EvaluateConfig:
    """The evaluation protocol, of which ``batch_size`` is a part: F depends on the test batch.

    Attributes:
        real_frames: with classes, leave out the padding of short clips; else it counts as predicted
            background, as published.
    """

    protocol: Literal["avsbench", "dataset", "davis"] = "avsbench"
    batch_size: int = 1
    split: Literal["train", "val", "test"] = "test"
    real_frames: bool = False


@dataclass
class Config:
    """Everything that defines a run, one section per part."""

    model: SQDConfig = field(default_factory=SQDConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def preset_names() -> list[str]:
    """Return the names of the presets in this package."""
    folder = resources.files("avsmodel") / "presets"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: str | Path = "", overrides: Iterable[str] = ()) -> Config:
    """Build a configuration from a preset name or YAML file, then from ``key=value`` overrides.

    A YAML file holds the sections ``model``, ``loss``, ``data``, ``train`` and ``evaluate``. A key
    that it leaves out keeps its default, or its value in the preset that the key ``preset`` names.

    Args:
        source: name of a preset, path of a YAML file, or ``""`` for the defaults.
        overrides: strings such as ``train.lr=3e-4``; the value is read as YAML, but taken as it is
            for keys that hold text.

    Raises:
        ValueError: for an unknown key (the message names the nearest one), a value of the wrong
            type, or text that is not YAML.
        FileNotFoundError: if ``source`` is neither a preset nor a file.
    """
    values = _read(source) if source else {}
    config = _build(Config, values, "")
    for override in overrides:
        _override(config, override)
    return config


def to_yaml(config: Config) -> str:
    """Return a configuration as YAML, which :func:`load_config` reads back unchanged."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, width=100)


def _read(source: str | Path) -> dict[str, Any]:
    if str(source) in preset_names():
        origin = f"preset {source}"
        text = (resources.files("avsmodel") / "presets" / f"{source}.yaml").read_text("utf-8")
    elif Path(source).is_file():
        origin = str(source)
        text = Path(source).read_text("utf-8")
    else:
        known = ", ".join(preset_names())
        raise FileNotFoundError(f"config: expected a YAML file or one of {known}, got {source}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config: expected YAML in {origin}, got {reason}") from None
    if not isinstance(values, dict):
        raise ValueError(f"config: expected sections in {origin}, got {_kind(values)}")
    base = values.pop("preset", None)
    if base is None:
        return values
    if base not in preset_names():
        raise ValueError(f"config: expected preset in {preset_names()}, got {base!r}")
    return _merge(_read(base), values)


def _merge(base: Any, update: Any) -> Any:
    if isinstance(base, dict) and isinstance(update, dict):
        return base | {key: _merge(base.get(key), value) for key, value in update.items()}
    return update


def _override(config: Config, text: str) -> None:
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ValueError(f"config: expected key=value, got {text!r}")
    *sections, name = key.split(".")
    target: Any = config
    for section in sections:
        target = getattr(target, section, None) if dataclasses.is_dataclass(target) else None
    hints = typing.get_type_hints(type(target)) if dataclasses.is_dataclass(target) else {}
    if name not in hints or dataclasses.is_dataclass(hints[name]):
        raise _unknown(key)
    try:
        parsed = value if hints[name] is str else yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"config: expected a YAML value for {key}, got {value!r}") from None
    setattr(target, name, _convert(parsed, hints[name], key))


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"config: expected keys under {prefix or 'the file'}, got {values!r}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name not in hints:
            raise _unknown(key)
        arguments[name] = _convert(value, hints[name], key)
    return cls(**arguments)


def _convert(value: Any, hint: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, {} if value is None else value, key)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in options and any(type(value) is type(option) for option in options):
            return value
        raise ValueError(f"config: expected {key} in {list(options)}, got {value!r}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        (hint,) = (option for option in options if option is not type(None))
        return _convert(value, hint, key)
    if origin in (tuple, list):
        return _convert_sequence(value, origin, options, key)
    hint = origin or hint  # the values of a dict are not checked
    if hint is float:
        return _convert_float(value, key)
    if type(value) is not hint:
        raise ValueError(f"config: expected {key} of type {hint.__name__}, got {_kind(value)}")
    return value


def _convert_sequence(value: Any, origin: type, options: tuple[Any, ...], key: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"config: expected a list for {key}, got {value!r}")
    if origin is list or options[1:] == (...,):
        hints = options[:1] * len(value)
    elif len(options) == len(value):
        hints = options
    else:
        raise ValueError(f"config: expected {len(options)} values for {key}, got {value!r}")
    return origin(_convert(item, hint, key) for item, hint in zip(value, hints, strict=True))


def _convert_float(value: Any, key: str) -> float:
    # YAML 1.1 reads 1e-4 (no point) as a string, so a string that spells a number is accepted.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise ValueError(f"config: expected {key} of type float, got {_kind(value)}")


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


def _keys(cls: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _unknown(key: str) -> ValueError:
    known = list(_keys(Config))
    leaf = key.rpartition(".")[2]
    same_leaf = [candidate for candidate in known if candidate.rpartition(".")[2] == leaf]
    nearest = same_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return ValueError(f"config: expected a known key, got {key} (the nearest one is {nearest[0]})")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
