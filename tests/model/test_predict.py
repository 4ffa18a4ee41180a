# SPDX-License-Identifier: Apache-2.0
import av
import numpy as np
import pytest
from PIL import Image

import avsmodel
from avsmodel.data.palette import colours_to_labels
from avsmodel.predict import Prediction, _windows
from avsmodel.video import read_frames, read_sound


@pytest.fixture
def model(run):
    return avsmodel.load(run.folder, "cpu")


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_a_video_is_segmented_and_written(model, make_video, tmp_path):
    video = make_video(seconds=3.0, size=(48, 64))
    prediction = model.predict(video)
    assert prediction.labels.shape == prediction.scores.shape == (3, 64, 64)
    assert prediction.times.tolist() == [0.5, 1.5, 2.5]
    assert 0 <= prediction.scores.min() <= prediction.scores.max() <= 1
    prediction.labels[1, 16:48, 16:48], prediction.scores[1, 16:48, 16:48] = 1, 1

    written = prediction.save(tmp_path / "out")
    assert {path.name for path in written} == {"masks", "overlay.mp4", "scores.npz"}
    masks = [pixels(tmp_path / "out" / "masks" / f"clip_{i}.png") for i in (1, 2, 3)]
    assert {mask.shape for mask in masks} == {(48, 64)}
    middle = masks[1]
    assert set(np.unique(middle)) == {0, 255}
    assert (middle[14:34, 20:44] == 255).all()
    with np.load(tmp_path / "out" / "scores.npz") as arrays:
        assert np.array_equal(arrays["scores"], prediction.scores)
        assert arrays["class_names"].tolist() == ["background", "sounding"]
    frames = [frame for _, frame in read_frames(tmp_path / "out" / "overlay.mp4", fps=0)]
    assert len(frames) == 3 and frames[0].shape == (48, 64, 3)
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as overlay:
        assert overlay.streams.audio[0].codec_context.name == "aac"
    kept, original = (read_sound(path) for path in (tmp_path / "out" / "overlay.mp4", video))
    assert abs(len(kept) - len(original)) < 3200
    assert np.abs(kept[20000:30000]).max() == pytest.approx(
        np.abs(original[20000:30000]).max(), abs=0.1
    )


def test_dense_prediction_keeps_every_frame(model, make_video, tmp_path):
    prediction = model.predict(make_video(seconds=1.5, fps=10), fps=0)
    assert len(prediction.labels) == 15
    prediction.save(tmp_path / "out")
    times = [time for time, _ in read_frames(tmp_path / "out" / "overlay.mp4", fps=0)]
    np.testing.assert_allclose(times, prediction.times, atol=2e-3)


def test_classes_are_written_as_ids_and_colours(semantic_run, make_video, tmp_path):
    prediction = avsmodel.load(semantic_run.folder, "cpu").predict(make_video(seconds=2.0))
    prediction.labels[0, :32], prediction.scores[0, :32] = 3, 1
    prediction.save(tmp_path)
    for index in (0, 1):
        ids = pixels(tmp_path / "labels_semantic" / f"{index}.png")
        colours = pixels(tmp_path / "labels_rgb" / f"{index}.png")
        assert np.array_equal(colours_to_labels(colours, len(prediction.class_names)), ids)
    assert (pixels(tmp_path / "labels_semantic" / "0.png")[:20] == 3).all()


def test_an_enlarged_mask_follows_the_scores():
    labels = np.zeros((1, 4, 4), np.uint8)
    scores = np.zeros((1, 4, 4), np.float16)
    labels[0, :, 2:], scores[0, :, 2:] = 2, 1
    labels[0, 2:, 3], scores[0, 3] = 5, 1
    prediction = Prediction(None, 1.0, np.zeros(1), labels, scores, tuple("abcdef"))
    mask = prediction.mask(0, (8, 16))
    assert mask.shape == (8, 16)
    assert (mask[0, :8] == 0).all() and (mask[0, 9:] == 2).all()
    assert (mask[6:, 14:] == 5).all()
    assert mask[7, 0] == 2 or mask[7, 0] == 5  # the score passes, so it has some class


@pytest.mark.parametrize(
    ("count", "length", "step"),
    [(1, 5, 1), (5, 5, 1), (6, 5, 1), (23, 5, 1), (40, 5, 10), (7, 1, 3)],
)
def test_windows_keep_every_frame_once_and_are_as_long_as_in_training(count, length, step):
    kept = []
    for seen, own in _windows(count, length, step):
        assert len(seen) == min(length, len(range(seen[0] % step, count, step)))
        assert (np.diff(seen) == step).all()
        kept += seen[own].tolist()
    assert sorted(kept) == list(range(count))


def test_a_frame_keeps_the_window_in_which_it_is_central():
    owner = {int(frame): seen.tolist() for seen, own in _windows(11, 5, 1) for frame in seen[own]}
    assert owner[0] == [0, 1, 2, 3, 4] and owner[10] == [6, 7, 8, 9, 10]
    assert owner[5] in ([2, 3, 4, 5, 6], [4, 5, 6, 7, 8])


def test_the_sound_of_a_frame_is_the_second_around_it(model, make_video, monkeypatch):
    heard = []
    segment = model.segment
    monkeypatch.setattr(
        model, "segment", lambda frames, sound: heard.append(sound) or segment(frames, sound)
    )
    model.predict(make_video(seconds=4.0))  # its tone starts at 2 s
    loudness = heard[0][0, :, 0].mean((-1, -2))
    assert loudness[:2].max() < loudness[2:].min() - 0.2


def test_errors_come_before_anything_is_written(model, make_video, tmp_path):
    with pytest.raises(ValueError, match="a video with sound"):
        model.predict(make_video("silent.mp4", sound=False))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        model.predict(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="expected fps >= 0"):
        model.predict(make_video(), fps=-1)
    prediction = model.predict(make_video(seconds=1.0))
    prediction.save(tmp_path / "out")
    before = (tmp_path / "out" / "scores.npz").read_bytes()
    with pytest.raises(FileExistsError, match="an output folder without a prediction"):
        prediction.save(tmp_path / "out")
    assert (tmp_path / "out" / "scores.npz").read_bytes() == before
    (tmp_path / "out" / "masks" / "clip_99.png").write_bytes(b"of a longer video")
    prediction.save(tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["clip_1.png"]
