# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

import avsmodel
from avsmodel.config import EvaluateConfig
from avsmodel.distributed import ALONE
from avsmodel.evaluate import evaluate, evaluate_folder, open_split


@pytest.fixture
def model(run):
    return avsmodel.load(run.folder, "cpu")


class Told:
    """A model that is told the masks that belong to the sound it hears, or a fixed answer."""

    def __init__(self, model, dataset):
        self.model, self.dataset = model, dataset
        self.answer = None

    def __getattr__(self, name):
        return getattr(self.model, name)

    def segment(self, frames, log_mel, real=None, size=None):
        segmentation, raw = self.model.segment(frames, log_mel, real, size)
        if self.answer is not None:
            scores = self.answer.expand_as(segmentation.scores)
            return dataclasses.replace(segmentation, scores=scores), raw
        masks = [sample.masks for sample in self.dataset]
        found = [
            next(index for index, sample in enumerate(self.dataset) if sample.log_mel.equal(sound))
            for sound in log_mel
        ]
        labels = torch.stack([masks[index] for index in found])
        scores = (labels > 0).float()
        return dataclasses.replace(segmentation, labels=labels, scores=scores), raw


def test_a_perfect_answer_scores_one_and_another_clips_answer_less(model):
    dataset = open_split(model.config.data, "test")
    told = Told(model, dataset)
    own = evaluate(told, dataset, EvaluateConfig(), progress=False)
    assert own["metrics"]["J"] == pytest.approx(1, abs=1e-4)
    assert own["metrics"]["F"] == pytest.approx(1, abs=0.02)
    other = evaluate(told, dataset, EvaluateConfig(), sound="shuffled", progress=False)
    assert other["metrics"]["J"] < 0.5
    assert (own["sound"], other["sound"]) == ("own", "shuffled")


@pytest.mark.parametrize("protocol", ["avsbench", "dataset", "davis"])
def test_a_result_names_its_protocol_resolution_and_test_batch(run, protocol):
    result = evaluate_folder(run.folder, ALONE, protocol=protocol, batch_size=3, progress=False)
    assert set(result["metrics"]) >= {"J", "F", "JF"}
    assert all(0 <= value <= 1 for value in result["metrics"].values())
    facts = ("protocol", "resolution", "batch_size", "split", "format", "data", "clips")
    assert [result[name] for name in facts] == [protocol, "64x64", 3, "test", "ms3", "ms3", 4]


def test_a_data_set_with_classes_is_measured_by_class(semantic_run):
    result = evaluate_folder(semantic_run.folder, ALONE, progress=False)
    assert set(result["metrics"]) == {"mIoU", "F", "J"}
    assert not result["real_frames"]
    real = evaluate_folder(semantic_run.folder, ALONE, real_frames=True, progress=False)
    assert real["real_frames"] and real["frames"] < result["frames"]
    assert list(result["per_class"])[:2] == ["background", "deep-steady"]
    with pytest.raises(ValueError, match="avsbench or dataset"):
        evaluate_folder(semantic_run.folder, ALONE, protocol="davis", progress=False)
    with pytest.raises(ValueError, match="a positive batch size, got 0"):
        evaluate_folder(semantic_run.folder, ALONE, batch_size=0, progress=False)


def test_a_data_set_of_other_classes_is_refused(run, semantic_run):
    with pytest.raises(ValueError, match="a data set of the model's 2 classes, got 25 in"):
        evaluate_folder(run.folder, ALONE, data=str(semantic_run.data), progress=False)


@pytest.mark.parametrize("sound", ["silence", "noise"])
def test_what_is_segmented_without_a_source_is_counted_as_false(model, sound):
    dataset = open_split(model.config.data, "test")
    told = Told(model, dataset)
    told.answer = torch.zeros(64, 64)
    result = evaluate(told, dataset, EvaluateConfig(), sound=sound, progress=False)
    assert result["metrics"] == {"pixels": 0.0, "frames": 0.0}
    told.answer[:16] = 1
    result = evaluate(told, dataset, EvaluateConfig(), sound=sound, progress=False)
    assert result["metrics"] == {"pixels": 0.25, "frames": 1.0}
    assert result["sound"] == sound
