# SPDX-License-Identifier: Apache-2.0
"""The synthetic data set: reproducible, in the published layout, and not solvable from pictures."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch

from avsmodel.data import open_dataset, synthesize
from avsmodel.data.describe import describe
from avsmodel.data.sources import CLASSES, World, draw_cast, is_held_out
from avsmodel.data.synthesize import compose

FORMATS = ("s4", "ms3", "avss")


def digest(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("format", FORMATS)
def test_equal_arguments_give_equal_bytes(tmp_path, format):
    arguments = {"format": format, "clips": (2, 1, 1), "size": 32, "log_mel_pickles": True}
    first = digest(synthesize(tmp_path / "a", **arguments))
    assert first == digest(synthesize(tmp_path / "b", **arguments))
    assert first != digest(synthesize(tmp_path / "c", seed=1, **arguments))


def test_a_clip_does_not_depend_on_how_many_are_written(tmp_path):
    synthesize(tmp_path / "few", "ms3", (1, 0, 1), size=32)
    synthesize(tmp_path / "many", "ms3", (3, 2, 2), size=32)
    few, many = (
        open_dataset(tmp_path / name, split="test", size=32)[0] for name in ("few", "many")
    )
    assert torch.equal(few.frames, many.frames) and torch.equal(few.masks, many.masks)
    assert torch.equal(few.log_mel, many.log_mel)


def test_s4_files_are_where_avsbench_has_them(tmp_path):
    synthesize(tmp_path, "s4", (1, 1, 1), size=32, log_mel_pickles=True)
    rows = read_csv(tmp_path / "s4_meta_data.csv")
    assert list(rows[0]) == ["name", "start", "category", "split"]
    for row in rows:
        place = f"{row['split']}/{row['category']}"
        name = row["name"]
        data = tmp_path / "s4_data"
        frames = {path.name for path in (data / "visual_frames" / place / name).iterdir()}
        assert frames == {f"{name}_{i}.png" for i in range(1, 6)}
        masks = {path.name for path in (data / "gt_masks" / place / name).iterdir()}
        assert masks == {f"{name}_{i}.png" for i in range(1, 2 if row["split"] == "train" else 6)}
        assert (data / "audio_wav" / place / f"{name}.wav").is_file()
        assert (data / "audio_log_mel" / place / f"{name}.pkl").is_file()


def test_ms3_files_are_where_avsbench_has_them(tmp_path):
    synthesize(tmp_path, "ms3", (1, 1, 1), size=32, log_mel_pickles=True)
    rows = read_csv(tmp_path / "ms3_meta_data.csv")
    assert list(rows[0]) == ["video id", "split"]
    for row in rows:
        name, split, data = row["video id"], row["split"], tmp_path / "ms3_data"
        frames = {path.name for path in (data / "visual_frames" / name).iterdir()}
        assert frames == {f"{name}.mp4_{i}.png" for i in range(1, 6)}
        masks = {path.name for path in (data / "gt_masks" / split / name).iterdir()}
        assert masks == {f"{name}_{i}.png" for i in range(1, 6)}
        assert (data / "audio_wav" / split / f"{name}.wav").is_file()
        assert (data / "audio_log_mel" / split / f"{name}.pkl").is_file()


def test_avss_files_are_where_avsbench_has_them(tmp_path):
    synthesize(tmp_path, "avss", (3, 3, 3), size=32)
    rows = read_csv(tmp_path / "metadata.csv")
    assert {"vid", "uid", "a_obj", "split", "label"} <= set(rows[0])
    assert list(json.loads((tmp_path / "label2idx.json").read_text())) == ["background", *CLASSES]
    expected = {("v1s", "train"): (5, 1), ("v1s", "val"): (5, 5), ("v1s", "test"): (5, 5)}
    for row in rows:
        folder = tmp_path / row["label"] / row["uid"]
        frames = 10 if row["label"] == "v2" else 5
        frames, labels = expected.get((row["label"], row["split"]), (frames, frames))
        assert {p.name for p in (folder / "frames").iterdir()} == {
            f"{i}.jpg" for i in range(frames)
        }
        for masks in ("labels_rgb", "labels_semantic"):
            names = {path.name for path in (folder / masks).iterdir()}
            assert names == {f"{i}.png" for i in range(labels)}
        assert (folder / "audio.wav").is_file()


@pytest.fixture(scope="module")
def composed():
    return [
        compose(np.random.default_rng([7, i]), World(), 5, 32, single=False) for i in range(150)
    ]


def intersection_over_union(prediction, truth):
    union = (prediction | truth).sum((-2, -1))
    inter = (prediction & truth).sum((-2, -1))
    return np.where(union > 0, inter / np.maximum(union, 1), 1.0)


def test_the_sound_decides_what_to_segment(composed):
    # Solvers that see every object and its class exactly and differ only in what they hear.
    def score(heard_in):
        total = []
        for clip, other in zip(composed, heard_in, strict=True):
            kinds = [1 + np.array(other.cast.kinds)[heard] for heard in other.cast.sounding]
            prediction = np.stack([np.isin(v, k) for v, k in zip(clip.visible, kinds, strict=True)])
            total.append(intersection_over_union(prediction, clip.labels > 0).mean())
        return np.mean(total)

    right, other = score(composed), score(composed[1:] + composed[:1])
    everything = np.mean(
        [intersection_over_union(c.visible > 0, c.labels > 0).mean() for c in composed]
    )
    assert right == pytest.approx(1.0)
    assert other < 0.15
    assert everything < 0.6


def test_a_picture_does_not_tell_who_sounds(composed):
    # Class, place, size and depth of the sounding objects are those of the silent ones.
    rows = []
    for clip in composed:
        for index, kind in enumerate(clip.cast.kinds[: clip.cast.on_screen]):
            area = (clip.visible == kind + 1).mean((1, 2))
            sounding = clip.cast.sounding[:, index]
            rows += [(sounding[t], kind, area[t], index, t) for t in range(len(clip.frames))]
    sounds, *features = np.array(rows, float).T
    for feature in features:
        assert abs(np.corrcoef(sounds, feature)[0, 1]) < 0.12


def test_sources_persist_and_some_are_off_screen(composed):
    sounding = [clip.cast.sounding for clip in composed]
    assert 0.08 < np.mean([(s[1:] != s[:-1]).any(1) for s in sounding]) < 0.22
    assert 0.4 < np.mean([(s == s[0]).all() for s in sounding]) < 0.8
    counts = np.concatenate([s.sum(1) for s in sounding])
    assert counts.min() >= 1 and counts.max() == 5 and 2 < counts.mean() < 3
    hidden = [s[:, c.cast.on_screen :].any() for s, c in zip(sounding, composed, strict=True)]
    assert 0.1 < np.mean(hidden) < 0.4
    silent = [~s[:, : c.cast.on_screen].any(0) for s, c in zip(sounding, composed, strict=True)]
    assert np.mean([s.any() for s in silent]) > 0.95


def test_a_world_too_small_for_its_sources_is_named():
    with pytest.raises(ValueError, match="expected more than 6 classes for 5 sources"):
        for seed in range(60):
            draw_cast(np.random.default_rng(seed), World(6, 5), 5, single=False)


def together(cast):
    """The pairs of classes that sound in the same second."""
    for heard in cast.sounding:
        kinds = np.array(cast.kinds)[heard]
        yield {frozenset(map(int, (a, b))) for a in kinds for b in kinds if a < b}


def test_unseen_clips_combine_what_training_clips_never_do(composed):
    for clip in composed:
        assert not any(is_held_out(*pair) for pairs in together(clip.cast) for pair in pairs)
    for i in range(30):
        rng = np.random.default_rng([8, i])
        cast = compose(rng, World(), 5, 32, single=False, unseen=True).cast
        several = [pairs for pairs in together(cast) if pairs]
        assert several and all(any(is_held_out(*pair) for pair in pairs) for pairs in several)


def test_sound_is_audible_and_not_clipped(composed):
    for clip in composed[:20]:
        level = np.sqrt(((clip.sound.reshape(5, -1) / 32768) ** 2).mean(1))
        assert (level > 0.01).all()
        assert (np.abs(clip.sound) >= 32767).mean() < 1e-3


def test_figures_say_how_hard_a_set_is(tmp_path):
    figures = describe(synthesize(tmp_path, "ms3", (96, 0, 32), size=32))
    assert figures.clips == {"train": 96, "test": 32}
    assert figures.unseen == 0.5
    assert figures.J_constant > 0.85
    assert figures.J_other_sound < 0.15 < 0.35 < figures.J_all_objects < 0.65
    assert 0.4 < figures.heard_per_second < figures.heard_per_clip < 0.95
    assert "% of the sources are found by a linear read-out of one second" in str(figures)


def test_figures_need_a_synthetic_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data describe: expected synthetic\.json in"):
        describe(tmp_path)
    with pytest.raises(ValueError, match=r"data describe: expected test clips in .*, got none"):
        describe(synthesize(tmp_path, "ms3", (1, 0, 0), size=32))


def test_refuses_to_write_over_files(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=r"synthesize: expected an empty folder at .*, got"):
        synthesize(tmp_path, "ms3", (1, 0, 0), size=32)
    synthesize(tmp_path, "ms3", (2, 0, 0), size=32, overwrite=True)
    synthesize(tmp_path, "ms3", (1, 0, 0), size=32, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert len(list((tmp_path / "ms3_data" / "visual_frames").iterdir())) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"format": "ms4"}, "expected format s4, ms3 or avss, got 'ms4'"),
        ({"clips": (1, 2)}, r"expected clips of train, val and test, got \(1, 2\)"),
        ({"clips": (1, -1, 2)}, "expected clips of train, val and test"),
        ({"size": 8}, "expected a size of at least 16, got 8"),
    ],
)
def test_errors(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=f"synthesize: {message}"):
        synthesize(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()
