# SPDX-License-Identifier: Apache-2.0
"""Metadata as published, and in every broken state."""

import json

import pytest

from avsmodel.data.layout import find_layout, make_clip, read_layout

S4 = "name,start,category,split\n"
MS3 = "video id,split\n"
AVSS = "vid,uid,s_min,s_sec,a_obj,split,label\n"


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")


def s4(folder, content):
    write(folder, "s4_meta_data.csv", content)


def ms3(folder, content):
    write(folder, "ms3_meta_data.csv", content)


def avss(folder, content, names=("background", "cat", "dog")):
    write(folder, "metadata.csv", content)
    write(folder, "label2idx.json", json.dumps(dict.fromkeys(names, 7)))


def test_s4_paths(tmp_path):
    s4(tmp_path, S4 + "-ab_1,1000,race_car,train\nxy,0,baby,test\n")
    layout = read_layout(tmp_path)
    train, test = layout.clips
    data = tmp_path / "s4_data"
    assert (layout.format, layout.num_frames, layout.binary) == ("s4", 5, True)
    assert layout.class_names == ("background", "sounding")
    assert train.frame_path(0) == data / "visual_frames/train/race_car/-ab_1/-ab_1_1.png"
    assert train.mask_path(0) == data / "gt_masks/train/race_car/-ab_1/-ab_1_1.png"
    assert train.audio == data / "audio_wav/train/race_car/-ab_1.wav"
    assert train.log_mel == data / "audio_log_mel/train/race_car/-ab_1.pkl"
    assert (train.num_real, train.num_labelled, test.num_labelled) == (5, 1, 5)
    assert (train.line, test.line) == (2, 3)


def test_ms3_paths(tmp_path):
    ms3(tmp_path, MS3 + "ab,val\n")
    (clip,) = read_layout(tmp_path).clips
    data = tmp_path / "ms3_data"
    assert clip.frame_path(4) == data / "visual_frames/ab/ab.mp4_5.png"
    assert clip.mask_path(4) == data / "gt_masks/val/ab/ab_5.png"
    assert clip.audio == data / "audio_wav/val/ab.wav"
    assert clip.log_mel == data / "audio_log_mel/val/ab.pkl"


def test_avss_paths_and_flags(tmp_path):
    rows = ["a,ua,0,1,cat,train,v1s", "b,ub,0,1,cat_dog,train,v1m", "c,uc,0,1,dog,train,v2"]
    rows += [row.replace("train", "test").replace("u", "t") for row in rows]
    avss(tmp_path, AVSS + "\n".join(rows))
    layout = read_layout(tmp_path)
    assert (layout.num_frames, layout.binary) == (10, False)
    flags = [(clip.num_real, clip.num_labelled) for clip in layout.clips]
    assert flags == [(5, 1), (5, 5), (10, 10), (5, 5), (5, 5), (10, 10)]
    clip = layout.clips[2]
    assert clip.frame_path(9) == tmp_path / "v2/uc/frames/9.jpg"
    assert clip.mask_path(9) == tmp_path / "v2/uc/labels_rgb/9.png"
    assert clip.audio == tmp_path / "v2/uc/audio.wav" and clip.log_mel is None
    assert clip.category == "dog"


def test_class_names_are_the_keys_in_order_whatever_their_values(tmp_path):
    avss(tmp_path, AVSS, ("background", "zebra", "ant"))
    assert read_layout(tmp_path).class_names == ("background", "zebra", "ant")


@pytest.mark.parametrize(
    "content",
    [
        "ab,0,cat,train\n",  # no header
        "\ufeffname,start,category,split\nab,0,cat,train\n",  # a byte order mark
        "split,category,name\ntrain,cat,ab\n",  # other columns
        "Name,Start,Category,Split\r\n\r\n ab ,0, cat ,train\r\n",
    ],
)
def test_s4_csv_variants(tmp_path, content):
    s4(tmp_path, content)
    (clip,) = read_layout(tmp_path).clips
    assert (clip.uid, clip.category, clip.split) == ("ab", "cat", "train")


def test_same_name_in_two_categories_is_two_clips(tmp_path):
    s4(tmp_path, S4 + "ab,0,cat,train\nab,0,dog,train\n")
    assert len(read_layout(tmp_path).clips) == 2


@pytest.mark.parametrize(
    "write_metadata, content, message",
    [
        (s4, S4 + "ab,0,cat\n", r"line 2 of .*s4_meta_data.csv, got 3 values"),
        (s4, S4 + "ab,0,cat,dev\n", r"line 2 of .*, got split 'dev', which is none of train, val"),
        (s4, S4 + "../ab,0,cat,train\n", r"got name '../ab', which cannot be part of a path"),
        (s4, S4 + "ab,0,,train\n", r"got category '', which cannot be part of a path"),
        (s4, S4 + "ab,0,cat,val\nab,0,cat,val\n", r"line 3 of .*, got the clip of line 2 again"),
        (ms3, MS3 + "ab,train,extra\n", r"line 2 of .*ms3_meta_data.csv, got 3 values"),
        (
            ms3,
            "video,split\n",
            r"expected a column 'name' in the first line of .*, got video, split",
        ),
        (ms3, MS3 + '"ab\n', r"expected a CSV file at .*ms3_meta_data.csv, got"),
        (avss, AVSS + "a,u,0,1,cat,train,v3\n", r"got label 'v3', which is none of v1s, v1m, v2"),
        (avss, "a,u,0,1,cat,train,v2\n", r"expected a column 'uid' in the first line"),
        (avss, "", r"expected a column 'uid' in the first line of .*, got nothing"),
    ],
)
def test_bad_metadata(tmp_path, write_metadata, content, message):
    write_metadata(tmp_path, content)
    with pytest.raises(ValueError, match=f"open_dataset: .*{message}"):
        read_layout(tmp_path)


def test_binary_metadata(tmp_path):
    (tmp_path / "ms3_meta_data.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="open_dataset: expected a CSV file at"):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "expected JSON in"),
        ("[1]", "expected an object whose first key is 'background' in"),
        ('{"cat": 0, "background": 1}', "expected an object whose first key is 'background' in"),
        ('{"background": 0}', "expected 2 to 256 classes in .*, got 1"),
    ],
)
def test_bad_class_list(tmp_path, content, message):
    avss(tmp_path, AVSS)
    (tmp_path / "label2idx.json").write_text(content)
    with pytest.raises(ValueError, match=f"open_dataset: {message}"):
        read_layout(tmp_path)


def test_missing_class_list(tmp_path):
    write(tmp_path, "metadata.csv", AVSS)
    with pytest.raises(FileNotFoundError, match=r"expected a file at .*label2idx\.json, got none"):
        read_layout(tmp_path)


def test_format_is_told_by_the_file(tmp_path):
    s4(tmp_path / "Single-source", S4)
    assert find_layout(tmp_path) == (tmp_path / "Single-source", "s4")
    assert find_layout(tmp_path / "Single-source") == (tmp_path / "Single-source", "s4")
    ms3(tmp_path / "Multi-sources", MS3)
    assert find_layout(tmp_path, "ms3") == (tmp_path / "Multi-sources", "ms3")
    with pytest.raises(ValueError, match=r"open_dataset: expected one data set in .*Multi-sources"):
        find_layout(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"open_dataset: expected metadata\.csv in .*, got none"
    ):
        find_layout(tmp_path, "avss")
    with pytest.raises(ValueError, match="expected format auto, s4, ms3 or avss, got 's5'"):
        find_layout(tmp_path, "s5")


def test_make_clip_takes_the_published_column_names(tmp_path):
    clip = make_clip("ms3", tmp_path, 2, {"video id": "ab", "split": "train"})
    assert clip.uid == "ab"
