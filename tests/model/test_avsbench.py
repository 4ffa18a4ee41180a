# SPDX-License-Identifier: Apache-2.0
"""Clips as tensors: what is read, what is padded, what is random."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from avsmodel.data import collate, log_mel, open_dataset, read_wav, synthesize
from avsmodel.data.avsbench import _zoom
from avsmodel.data.images import normalise
from avsmodel.data.pickles import read_log_mel

FORMATS = ("s4", "ms3", "avss")


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("avsbench")
    for format in FORMATS:
        synthesize(folder / format, format, (6, 3, 3), size=32, log_mel_pickles=True)
    return {format: folder / format for format in FORMATS}


@pytest.fixture(params=FORMATS)
def root(request, roots):
    return roots[request.param]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_sample_is_what_the_files_hold(root, split):
    dataset = open_dataset(root, split=split, size=32)
    assert len(dataset) == (6 if split == "train" else 3)
    for index in range(len(dataset)):
        sample, clip = dataset[index], dataset.clips[index]
        real, labelled = clip.num_real, clip.num_labelled
        total = 10 if dataset.format == "avss" else 5
        assert sample.uid == clip.uid and sample.index == index
        assert sample.frames.shape == (total, 3, 32, 32) and sample.frames.dtype == torch.float32
        assert sample.masks.shape == (total, 32, 32) and sample.masks.dtype == torch.int64
        assert sample.log_mel.shape == (total, 1, 96, 64)
        assert sample.real.tolist() == [t < real for t in range(total)]
        assert sample.labelled.tolist() == [t < labelled for t in range(total)]
        paths = dataset.frame_paths(index)
        assert len(paths) == real
        files = np.stack([np.array(Image.open(path)) for path in paths])
        assert torch.equal(sample.frames[:real], normalise(files))
        assert not sample.frames[real:].any()
        masks = np.stack([dataset.layout.read_mask(clip.mask_path(t)) for t in range(labelled)])
        assert torch.equal(sample.masks[:labelled], torch.from_numpy(masks).long())
        assert not sample.masks[labelled:].any()
        expected = log_mel(read_wav(dataset.audio_path(index)), total)
        assert torch.equal(sample.log_mel[:real], expected[:real])
        assert not sample.log_mel[real:].any()


def test_attributes(roots):
    ms3 = open_dataset(roots["ms3"], split="val", size=32)
    assert (ms3.format, ms3.binary, ms3.num_classes, ms3.num_frames) == ("ms3", True, 2, 5)
    assert ms3.class_names == ["background", "sounding"] and ms3.root == roots["ms3"]
    avss = open_dataset(roots["avss"], split="val", size=32)
    assert (avss.format, avss.binary, avss.num_classes, avss.num_frames) == ("avss", False, 25, 10)
    assert avss.class_names[0] == "background" and len(avss.class_names) == 25


def test_frames_are_read_by_number_not_by_sorted_name(roots):
    # Ten frames, then a file that sorts between them.
    dataset = open_dataset(roots["avss"], split="train", size=32)
    index = next(i for i, clip in enumerate(dataset.clips) if clip.num_real == 10)
    before = dataset[index].frames
    intruder = dataset.frame_paths(index)[1].with_name("10.jpg")
    shutil.copy(dataset.frame_paths(index)[0], intruder)
    assert torch.equal(dataset[index].frames, before)
    intruder.unlink()


def test_sound_beyond_the_last_frame_is_not_heard(roots, tmp_path):
    shutil.copytree(roots["avss"], tmp_path / "avss")
    dataset = open_dataset(tmp_path / "avss", split="val", size=32)
    assert dataset.clips[0].num_real == 5
    before = dataset[0].log_mel
    samples = np.tile(read_wav(dataset.audio_path(0)), 2)
    soundfile.write(dataset.audio_path(0), samples, 16000)
    assert torch.equal(dataset[0].log_mel, before) and not before[5:].any()


def test_hop_of_a_second(roots):
    dataset = open_dataset(roots["ms3"], split="val", size=32, audio_hop="second")
    expected = log_mel(read_wav(dataset.audio_path(0)), 5, 1.0)
    assert torch.equal(dataset[0].log_mel, expected)


@pytest.mark.parametrize("format", ["s4", "ms3"])
def test_pickles_hold_the_same_log_mel(roots, format):
    computed = open_dataset(roots[format], split="val", size=32)[1]
    pickled = open_dataset(roots[format], split="val", size=32, log_mel="pickle")[1]
    assert torch.equal(computed.log_mel, pickled.log_mel)


def test_pickles_that_are_short_repeat_their_last_example(roots, tmp_path):
    shutil.copytree(roots["ms3"], tmp_path / "ms3")
    dataset = open_dataset(tmp_path / "ms3", split="val", size=32, log_mel="pickle")
    path = dataset.clips[0].log_mel
    examples = read_log_mel(path)
    torch.save(examples[:3].clone(), path)
    padded = dataset[0].log_mel
    assert torch.equal(padded[:3], examples[:3])
    assert torch.equal(padded[3:], examples[2:3].expand(2, -1, -1, -1))


def test_size_and_geometry(roots):
    for train in (False, True):
        sample = open_dataset(roots["ms3"], split="train", size=20, train=train)[0]
        assert sample.frames.shape[-2:] == sample.masks.shape[-2:] == (20, 20)


def test_training_crops_where_evaluation_stretches(roots, tmp_path):
    shutil.copytree(roots["ms3"], tmp_path / "ms3")
    clip = open_dataset(tmp_path / "ms3", split="val", size=32).clips[0]
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = 255
    Image.fromarray(picture).save(clip.frame_path(0))
    Image.fromarray(picture[..., 0]).save(clip.mask_path(0))
    crop, whole = (
        open_dataset(tmp_path / "ms3", split="val", size=32, train=train)[0]
        for train in (True, False)
    )
    assert crop.masks[0].all() and (crop.frames[0, 0] == crop.frames[0, 0, 0, 0]).all()
    assert whole.masks[0, :, 8:24].all() and not whole.masks[0, :, :8].any()
    assert torch.equal(whole.frames[0, 0] > 0, whole.masks[0] > 0)


def test_cache_changes_nothing_and_reads_once(roots, tmp_path):
    shutil.copytree(roots["avss"], tmp_path / "avss")
    arguments = {"split": "train", "size": 24, "train": True, "flip": True, "scales": (0.8, 1.3)}
    plain = open_dataset(tmp_path / "avss", **arguments)
    cached = open_dataset(tmp_path / "avss", **arguments, cache=True)
    expected = [plain[i] for i in (0, 1)]
    first = [cached[i] for i in (0, 1)]
    for sample in first:
        sample.frames.zero_(), sample.masks.zero_(), sample.log_mel.zero_()
    shutil.rmtree(tmp_path / "avss")
    for sample, same in zip([cached[i] for i in (0, 1)], expected, strict=True):
        assert torch.equal(sample.frames, same.frames) and torch.equal(sample.masks, same.masks)
        assert torch.equal(sample.log_mel, same.log_mel)


def test_flip_mirrors_frames_and_masks_together(roots):
    plain = open_dataset(roots["ms3"], split="train", size=32, train=True)
    flipping = open_dataset(roots["ms3"], split="train", size=32, train=True, flip=True)
    flips = []
    for epoch in range(4):
        flipping.set_epoch(epoch)
        for index in range(len(plain)):
            before, after = plain[index], flipping[index]
            flipped = not torch.equal(before.frames, after.frames)
            flips.append(flipped)
            if flipped:
                assert torch.equal(before.frames.flip(-1), after.frames)
            assert torch.equal(before.masks.flip(-1) if flipped else before.masks, after.masks)
            assert torch.equal(before.log_mel, after.log_mel)
    assert 5 < sum(flips) < 19


@pytest.mark.parametrize("scale", [0.5, 0.83, 1.0, 1.4, 2.0])
def test_zoom_moves_frames_and_masks_together(scale):
    masks = torch.zeros(2, 40, 40, dtype=torch.int64)
    masks[0, 10:30, 5:25] = 3
    masks[1, 20:28, 16:36] = 70
    frames = (masks > 0).float().unsqueeze(1).expand(-1, 3, -1, -1)
    zoomed, labels = _zoom(frames, masks, scale, np.random.default_rng(0))
    assert zoomed.shape == frames.shape and labels.shape == masks.shape
    assert set(labels.unique().tolist()) <= {0, 3, 70}
    agree = ((zoomed[:, 0] > 0.5) == (labels > 0)).float().mean()
    assert agree > 0.97
    if scale < 1:
        area = (masks > 0).sum().item() * scale**2
        assert (labels > 0).sum().item() == pytest.approx(area, rel=0.15)


def test_random_choices_depend_on_seed_epoch_and_clip_only(roots):
    def frames(seed=0, epoch=0, order=(0, 1, 2)):
        arguments = {"train": True, "flip": True, "scales": (0.7, 1.5), "seed": seed}
        dataset = open_dataset(roots["ms3"], split="train", size=32, **arguments)
        dataset.set_epoch(epoch)
        read = {index: dataset[index].frames for index in order}
        return torch.stack([read[index] for index in range(3)])

    assert torch.equal(frames(), frames(order=(2, 0, 1)))
    assert not torch.equal(frames(), frames(seed=1))
    assert not torch.equal(frames(), frames(epoch=1))


def test_window_holds_a_label_and_lies_in_the_frames_that_exist(root):
    options = {"split": "train", "size": 16, "train": True, "cache": True}
    whole = open_dataset(root, **options)
    windows = open_dataset(root, **options, num_frames=3)
    starts = set()
    for epoch in range(8):
        windows.set_epoch(epoch)
        for index in range(3):
            sample, log_mels = windows[index], whole[index].log_mel
            assert len(sample.frames) == len(sample.log_mel) == len(sample.masks) == 3
            assert sample.labelled.any() and sample.real.all()
            starts |= {
                start
                for start in range(len(log_mels) - 2)
                if torch.equal(log_mels[start : start + 3], sample.log_mel)
            }
    assert 0 in starts
    assert windows.format == "s4" or len(starts) > 1


def test_loader_workers_see_the_epoch(roots):
    dataset = open_dataset(roots["ms3"], split="train", size=16, train=True, scales=(0.5, 2.0))
    loader = DataLoader(
        dataset, batch_size=3, collate_fn=collate, num_workers=1, persistent_workers=True
    )
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        batches = list(loader)
        expected = collate([dataset[index] for index in range(6)])
        assert torch.equal(torch.cat([batch.frames for batch in batches]), expected.frames)
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(6))


def test_row_without_files_is_named_at_once(roots, tmp_path):
    for victim in ("frame_path", "mask_path", "audio"):
        root = tmp_path / victim
        shutil.copytree(roots["ms3"], root)
        clip = open_dataset(root, split="val", size=32).clips[1]
        path = clip.audio if victim == "audio" else getattr(clip, victim)(0)
        path.unlink()
        with pytest.raises(
            FileNotFoundError, match=rf"{path.name} \(line {clip.line} of .*got none"
        ):
            open_dataset(root, split="val", size=32)


def test_missing_and_truncated_files_are_named_when_read(roots, tmp_path):
    shutil.copytree(roots["ms3"], tmp_path / "ms3")
    dataset = open_dataset(tmp_path / "ms3", split="val", size=32)
    frame, sound = dataset.frame_paths(0)[3], dataset.audio_path(1)
    frame.unlink()
    sound.write_bytes(sound.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=rf"read_image: expected a file at .*{frame.name}"):
        dataset[0]
    with pytest.raises(ValueError, match=r"read_wav: .*the file is truncated"):
        dataset[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "dev"}, "expected split train, val or test, got 'dev'"),
        ({"audio_hop": 1.0}, "expected audio_hop vggish or second, got 1.0"),
        ({"log_mel": "npy"}, "expected log_mel wav or pickle, got 'npy'"),
        ({"size": 0}, "expected a positive size, got 0"),
        ({"num_frames": 6}, "expected num_frames 1 to 5, got 6"),
        ({"scales": (1.2, 0.8)}, r"expected scales \(low, high\) above 0, got \(1.2, 0.8\)"),
        ({"format": "avs"}, "expected format auto, s4, ms3 or avss, got 'avs'"),
    ],
)
def test_argument_errors(roots, arguments, message):
    with pytest.raises(ValueError, match=f"open_dataset: {message}"):
        open_dataset(roots["ms3"], **arguments)


def test_other_errors(roots, tmp_path):
    with pytest.raises(ValueError, match="expected log_mel 'wav' for avss, got 'pickle'"):
        open_dataset(roots["avss"], log_mel="pickle")
    synthesize(tmp_path, "ms3", (1, 0, 0), size=32)
    with pytest.raises(ValueError, match=r"expected clips of val in .*csv, got none"):
        open_dataset(tmp_path, split="val")
    with pytest.raises(IndexError, match="expected an index below 3, got 3"):
        open_dataset(roots["ms3"], split="val")[3]
