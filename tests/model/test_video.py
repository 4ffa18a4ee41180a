# SPDX-License-Identifier: Apache-2.0
import av
import numpy as np
import pytest

from avsmodel.video import read_frames, read_sound, write_video


def grey(image):
    return image[:, image.shape[1] // 2 + 4 :].mean()


def test_one_frame_per_second_is_the_middle_of_each_second(make_video):
    path = make_video(seconds=2.0, fps=10)
    times, frames = zip(*read_frames(path, fps=1.0), strict=True)
    assert times == (0.5, 1.5)
    # At 0.5 s the interval of frame 4 ends and that of frame 5 starts: either is right.
    assert abs(grey(frames[0]) - 8 * 4.5) < 8
    assert abs(grey(frames[1]) - 8 * 14.5) < 8


def test_dense_yields_every_frame(make_video):
    times, frames = zip(*read_frames(make_video(seconds=1.5, fps=10), fps=0), strict=True)
    np.testing.assert_allclose(times, np.arange(15) / 10, atol=1e-3)
    assert np.all(np.diff([grey(frame) for frame in frames]) > 4)


def test_a_clip_shorter_than_the_interval_still_gives_a_frame(make_video):
    assert len(list(read_frames(make_video(seconds=0.2), fps=1.0))) == 1


def test_a_rotated_video_comes_upright(make_video):
    upright = next(read_frames(make_video("a.mp4")))[1]
    turned = next(read_frames(make_video("b.mp4", rotation=-90)))[1]
    assert turned.shape[:2] == upright.shape[1::-1]
    # Turned clockwise, the red left half lies on top.
    assert turned[8, 24, 0] > 200 > 60 > turned[8, 24, 1]


def test_sound_is_mono_16_khz_and_starts_with_the_video(make_video):
    waveform = read_sound(make_video(seconds=2.0))
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 32000) < 3200
    assert np.abs(waveform[:14000]).max() < 0.05 < 0.3 < np.abs(waveform[18000:30000]).max()


def test_a_written_video_keeps_frames_and_sound(make_video, tmp_path):
    source = make_video(seconds=2.0)
    write_video(tmp_path / "out.mp4", read_frames(source, fps=0), source, rate=10)
    before = np.stack([frame for _, frame in read_frames(source, fps=0)]).astype(float)
    after = np.stack([frame for _, frame in read_frames(tmp_path / "out.mp4", fps=0)])
    assert after.shape == before.shape
    assert np.abs(after - before).mean() < 6
    original, kept = read_sound(source), read_sound(tmp_path / "out.mp4")
    onset = [int(np.argmax(np.abs(sound) > 0.2)) for sound in (original, kept)]
    assert abs(onset[0] - onset[1]) < 800  # 50 ms


def test_an_odd_size_loses_its_last_row_and_column(make_video, tmp_path):
    source = make_video(seconds=0.5)
    frames = ((time, frame[:-1, :-1]) for time, frame in read_frames(source, fps=0))
    write_video(tmp_path / "out.mp4", frames, source, rate=10)
    assert next(read_frames(tmp_path / "out.mp4"))[1].shape == (46, 62, 3)


def test_what_is_damaged_is_left_out_with_a_warning(make_video, caplog):
    path = make_video(seconds=3.0)
    content = bytearray(path.read_bytes())
    media = content.index(b"mdat")
    content[media + 600 : media + 900] = bytes(300)
    path.write_bytes(content)
    frames = list(read_frames(path, fps=0))
    assert 0 < len(frames) < 30
    assert f"{path}: " in caplog.text and "damaged packets of its video left out" in caplog.text


def test_errors_name_the_file(make_video, tmp_path):
    silent = make_video("silent.mp4", sound=False)
    with pytest.raises(ValueError, match=r"expected a video with sound, got .*silent\.mp4"):
        read_sound(silent)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4, which does not exist"):
        next(read_frames(tmp_path / "nowhere.mp4"))
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"expected a file FFmpeg reads, got .*text\.mp4"):
        next(read_frames(tmp_path / "text.mp4"))
    with av.open(str(tmp_path / "sound.wav"), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
    with pytest.raises(ValueError, match=r"expected a video stream, got .*sound\.wav"):
        next(read_frames(tmp_path / "sound.wav"))
