# SPDX-License-Identifier: Apache-2.0
"""Every kind of damage is reported, and nothing else."""

import csv
import pickle

import numpy as np
import pytest
import soundfile
from PIL import Image

from avsmodel.data import synthesize, verify
from avsmodel.data.layout import read_layout


@pytest.fixture(params=["s4", "ms3", "avss"])
def layout(request, tmp_path):
    synthesize(tmp_path, request.param, (4, 2, 2), size=32, log_mel_pickles=True)
    return read_layout(tmp_path)


def test_whole_data_set_has_no_problems(layout):
    report = verify(layout.root)
    assert report.problems == []
    assert report.format == layout.format
    assert report.splits == {"train": 4, "val": 2, "test": 2}
    labelled = sum(clip.num_labelled for clip in layout.clips)
    assert report.labelled_frames == labelled
    with_sound = labelled - report.silent_frames
    if layout.binary:
        assert sum(report.classes.values()) == with_sound
    else:
        assert sum(report.classes.values()) >= with_sound
        assert set(report.classes) <= set(layout.class_names[1:])
    assert "4 train, 2 val, 2 test clips" in str(report) and "0 problems" in str(report)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGE = {
    "missing frame": (lambda clip: clip.frame_path(3).unlink(), 3, "expected a file at"),
    "truncated frame": (lambda clip: truncate(clip.frame_path(2)), 2, "expected a readable image"),
    "text as a frame": (lambda clip: clip.frame_path(1).write_text("x"), 1, "readable image"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_frame_is_named(layout, name):
    damage, index, message = DAMAGE[name]
    clip = layout.clips[1]
    damage(clip)
    (problem,) = verify(layout.root).problems
    assert str(clip.frame_path(index)) in problem and message in problem
    assert f"line {clip.line} of {layout.metadata.name}" in problem


def test_every_problem_is_named_at_once(layout):
    first, second, third = layout.clips[:3]
    first.mask_path(0).unlink()
    truncate(second.audio)
    Image.fromarray(np.zeros((20, 32, 3), np.uint8)).save(third.frame_path(4))
    problems = verify(layout.root).problems
    assert len(problems) == 3
    assert str(first.mask_path(0)) in problems[0] and "got none" in problems[0]
    assert str(second.audio) in problems[1] and "the file is truncated" in problems[1]
    assert str(third.frame_path(4)) in problems[2]
    assert "expected 32x32 pixels" in problems[2] and "got 32x20" in problems[2]


def test_short_sound_is_named(layout):
    clip = layout.clips[0]
    soundfile.write(clip.audio, np.zeros(16000, np.int16), 16000)
    (problem,) = verify(layout.root).problems
    assert f"expected a sound of {clip.num_real} seconds in {clip.audio}, got 1.00" in problem


def test_bad_rows_are_named_and_the_rest_is_checked(layout):
    with layout.metadata.open(newline="") as file:
        rows = list(csv.reader(file))
    columns = rows[0]
    rows.append(["only", "one", "row", "that", "is", "too", "long"])
    wrong = dict(zip(columns, rows[1], strict=True)) | {"split": "training"}
    rows.append(list(wrong.values()))
    rows.append(rows[2])
    with layout.metadata.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    layout.clips[0].audio.unlink()
    problems = verify(layout.root).problems
    assert len(problems) == 4
    assert "in line 10 of" in problems[0] and "got 7 values" in problems[0]
    assert "in line 11 of" in problems[1] and "split 'training'" in problems[1]
    assert "in line 12 of" in problems[2] and "the clip of line 3 again" in problems[2]
    assert str(layout.clips[0].audio) in problems[3]


def test_malicious_pickle_is_named(tmp_path):
    synthesize(tmp_path, "ms3", (1, 1, 1), size=32, log_mel_pickles=True)
    path = read_layout(tmp_path).clips[0].log_mel
    path.write_bytes(pickle.dumps(print))
    (problem,) = verify(tmp_path).problems
    assert str(path) in problem and "builtins.print" in problem


def test_unmatched_colour_is_named(tmp_path):
    synthesize(tmp_path, "avss", (3, 0, 0), size=32)
    path = read_layout(tmp_path).clips[2].mask_path(7)
    mask = np.array(Image.open(path))
    mask[3, 5] = (1, 2, 3)
    Image.fromarray(mask).save(path)
    (problem,) = verify(tmp_path).problems
    assert f"got (1, 2, 3) at row 3, column 5 (1 such pixels) in {path}" in problem


def test_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected s4_meta_data\.csv or"):
        verify(tmp_path)
