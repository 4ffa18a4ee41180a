# SPDX-License-Identifier: Apache-2.0
"""Semantic protocols against loops over frames and classes."""

import pytest
import torch

from avsmodel.metrics import BinaryEvaluator, SemanticEvaluator

CLASSES = 6  # the last one never occurs


def clips(count=4, frames=5, size=(13, 11)):
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, CLASSES - 1, (count, frames, *size), generator=generator)
    masks[0, 1] = 0
    masks[2:, 3:] = 0
    wrong = torch.rand(masks.shape, generator=generator) < 0.4
    labels = torch.where(wrong, (masks + 1) % (CLASSES - 2), masks)
    real = torch.ones(count, frames, dtype=torch.bool)
    real[2:, 3:] = False
    return labels, masks, real


def plain_avsbench(labels, masks, frames):
    """IoU and F per class, averaged over the frames in which the class is seen or predicted."""
    iou, f, count = [0.0] * CLASSES, [0.0] * CLASSES, [0] * CLASSES
    for b, t in frames:
        for c in range(CLASSES):
            predicted, true = labels[b, t] == c, masks[b, t] == c
            hits, union = float((predicted & true).sum()), float((predicted | true).sum())
            if union == 0:
                continue
            count[c] += 1
            iou[c] += hits / union
            if hits:
                precision, recall = hits / float(predicted.sum()), hits / float(true.sum())
                f[c] += 1.3 * precision * recall / (0.3 * precision + recall)
    return [[v / max(n, 1) for v, n in zip(values, count, strict=True)] for values in (iou, f)]


@pytest.mark.parametrize("real_frames", [False, True])
def test_avsbench_equals_the_loop(real_frames):
    labels, masks, real = clips()
    evaluator = SemanticEvaluator(CLASSES, real_frames=real_frames)
    evaluator.update(labels, masks, real)
    result = evaluator.compute()
    labels = labels * real[:, :, None, None]  # published evaluators predict background on padding
    frames = [(b, t) for b in range(4) for t in range(5) if not real_frames or bool(real[b, t])]
    iou, f = plain_avsbench(labels, masks, frames)
    assert result["mIoU"] == pytest.approx(sum(iou) / CLASSES, abs=1e-12)
    assert result["F"] == pytest.approx(sum(f) / CLASSES, abs=1e-12)
    assert result["per_class"][:-1] == pytest.approx(iou[:-1], abs=1e-12)
    assert result["per_class"][-1] is None
    assert result["frames"] == len(frames) and result["real_frames"] is real_frames


def test_padding_counts_as_background_unless_left_out():
    labels, masks, real = clips()
    results = {}
    for real_frames in (False, True):
        for on_padding in (0, 1):
            labels[2:, 3:] = on_padding
            evaluator = SemanticEvaluator(CLASSES, real_frames=real_frames)
            evaluator.update(labels, masks, real)
            results[real_frames, on_padding] = evaluator.compute()["mIoU"]
    assert results[False, 0] == results[False, 1] > results[True, 0] == results[True, 1]


def test_sounding_region_is_measured_as_in_a_binary_set():
    labels, masks, real = clips()
    evaluator = SemanticEvaluator(CLASSES)
    evaluator.update(labels, masks, real)
    binary = BinaryEvaluator(batch_size=100)
    binary.update((labels > 0).float(), (masks > 0).long(), real)
    assert evaluator.compute()["J"] == pytest.approx(binary.compute()["J"], abs=1e-6)


def test_dataset_protocol_sums_first_and_leaves_absent_classes_out():
    labels, masks, real = clips()
    evaluator = SemanticEvaluator(CLASSES, "dataset", real_frames=True)
    evaluator.update(labels, masks, real)
    result = evaluator.compute()
    iou, f = [], []
    for c in range(CLASSES - 1):
        predicted, true = (
            (labels == c) & real[..., None, None],
            (masks == c) & real[..., None, None],
        )
        hits = float((predicted & true).sum())
        iou.append(hits / float((predicted | true).sum()))
        precision, recall = hits / float(predicted.sum()), hits / float(true.sum())
        f.append(1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0)
    assert result["mIoU"] == pytest.approx(sum(iou) / len(iou), abs=1e-12)
    assert result["F"] == pytest.approx(sum(f) / len(f), abs=1e-12)
    assert result["per_class"] == [*(pytest.approx(v, abs=1e-12) for v in iou), None]


@pytest.mark.parametrize("protocol", ["avsbench", "dataset"])
def test_perfect_prediction(protocol):
    _, masks, _ = clips()
    evaluator = SemanticEvaluator(CLASSES - 1, protocol)
    evaluator.update(masks, masks)
    result = evaluator.compute()
    assert result["mIoU"] == pytest.approx(1.0) and result["F"] == pytest.approx(1.0)


def test_errors():
    labels, masks, real = clips()
    evaluator = SemanticEvaluator(3)
    with pytest.raises(ValueError, match=r"update: expected labels in 0..2, got 0 to"):
        evaluator.update(labels, masks, real)
    with pytest.raises(ValueError, match=r"update: expected masks in 0..2, got -1 to -1"):
        evaluator.update(labels * 0, labels * 0 - 1, real)
    with pytest.raises(
        ValueError, match=r"expected integer labels \[B, T, H, W\], got torch.float"
    ):
        evaluator.update(labels.float(), masks, real)
    with pytest.raises(ValueError, match="expected protocol avsbench or dataset, got 'davis'"):
        SemanticEvaluator(71, "davis")
    with pytest.raises(ValueError, match="expected at least 2 classes, got 1"):
        SemanticEvaluator(1)
    with pytest.raises(ValueError, match="compute: expected a counted frame, got none"):
        evaluator.compute()
