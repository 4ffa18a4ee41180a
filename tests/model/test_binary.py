# SPDX-License-Identifier: Apache-2.0
"""Binary protocols against plain loops over frames, batches and thresholds."""

import math

import pytest
import torch

from avsmodel.metrics import BinaryEvaluator
from avsmodel.metrics.davis import boundary_accuracy


def clips(count=7, frames=3, size=(20, 24), seed=0):
    """Scores that correlate with their masks; some frames and one whole clip are silent."""
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(count, frames, *size, generator=generator) > 0.7).long()
    masks[1] = 0
    masks[-1, 1] = 0
    noise = torch.randn(count, frames, *size, generator=generator)
    return (2.0 * masks - 1 + noise).sigmoid(), masks


def plain_j(score, mask):
    predicted, true = score > 0.5, mask > 0
    if not true.any():
        return float((~predicted).sum()) / (true.numel() + 1e-7)
    return float((predicted & true).sum()) / (float((predicted | true).sum()) + 1e-7)


def plain_curve(score, mask):
    true, curve = mask > 0, []
    for threshold in torch.linspace(0, 1 - 1e-10, 255):
        predicted = score >= threshold
        hits = float((predicted & true).sum())
        precision = hits / max(float(predicted.sum()), 1e-20)
        recall = hits / max(float(true.sum()), 1e-20)
        lower = 0.3 * precision + recall
        curve.append(1.3 * precision * recall / lower if lower else 0.0)
    return curve


def plain_avsbench(scores, masks, batch_size):
    """J and F of one pass of a loader with this batch size."""
    js, fs = [], []
    for start in range(0, len(scores), batch_size):
        frames = [
            (score, mask)
            for b in range(start, min(start + batch_size, len(scores)))
            for score, mask in zip(scores[b], masks[b], strict=True)
        ]
        js.append(sum(plain_j(*frame) for frame in frames) / len(frames))
        curves = [plain_curve(*frame) for frame in frames if (frame[1] > 0).any()]
        columns = zip(*curves, strict=True)
        fs.append(max((sum(column) / len(curves) for column in columns), default=0.0))
    return sum(js) / len(js), sum(fs) / len(fs)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_avsbench_equals_the_loop(batch_size):
    scores, masks = clips()
    evaluator = BinaryEvaluator(batch_size=batch_size)
    evaluator.update(scores, masks)
    result = evaluator.compute()
    j, f = plain_avsbench(scores, masks, batch_size)
    assert result["J"] == pytest.approx(j, abs=1e-12)
    assert result["F"] == pytest.approx(f, abs=1e-12)
    assert result["JF"] == pytest.approx((j + f) / 2, abs=1e-12)
    j, f = plain_avsbench(scores, masks, len(scores))
    assert result["J_batch_free"] == pytest.approx(j, abs=1e-12)
    assert result["F_batch_free"] == pytest.approx(f, abs=1e-12)
    assert result["JF_batch_free"] == pytest.approx((j + f) / 2, abs=1e-12)


def test_avsbench_agrees_with_published_float32_arithmetic():
    scores, masks = clips(count=2)
    curve = torch.zeros(255)
    for i, threshold in enumerate(torch.linspace(0, 1 - 1e-10, 255)):
        predicted = (scores[0, 0] >= threshold).float()
        hits = (predicted * masks[0, 0]).sum()
        precision, recall = hits / (predicted.sum() + 1e-20), hits / (masks[0, 0].sum() + 1e-20)
        curve[i] = 1.3 * precision * recall / (0.3 * precision + recall)
    evaluator = BinaryEvaluator()
    evaluator.update(scores[:1, :1], masks[:1, :1])
    assert evaluator.compute()["F"] == pytest.approx(curve.nan_to_num().max().item(), abs=1e-6)


def test_f_depends_on_the_test_batch_and_the_batch_free_values_do_not():
    scores, masks = clips()
    results = []
    for batch_size in (1, 4):
        evaluator = BinaryEvaluator(batch_size=batch_size)
        evaluator.update(scores, masks)
        results.append(evaluator.compute())
    assert results[0]["F"] != results[1]["F"]
    assert results[0]["F_batch_free"] == results[1]["F_batch_free"]
    assert results[0]["J_batch_free"] == results[1]["J_batch_free"]


def test_dataset_protocol_sums_first():
    scores, masks = clips()
    evaluator = BinaryEvaluator("dataset")
    evaluator.update(scores, masks)
    result = evaluator.compute()
    predicted, true = scores > 0.5, masks > 0
    assert result["J"] == pytest.approx(
        float((predicted & true).sum()) / float((predicted | true).sum()), abs=1e-12
    )
    expected = max(plain_curve(scores.flatten(0, 2), masks.flatten(0, 2)))
    assert result["F"] == pytest.approx(expected, abs=1e-12)


def test_davis_protocol_averages_clips():
    scores, masks = clips()
    evaluator = BinaryEvaluator("davis")
    evaluator.update(scores, masks)
    result = evaluator.compute()
    js, fs = [], []
    for score, mask in zip(scores.flatten(0, 1), masks.flatten(0, 1), strict=True):
        predicted, true = score > 0.5, mask > 0
        union = float((predicted | true).sum())
        js.append(float((predicted & true).sum()) / union if union else 1.0)
        fs.append(boundary_accuracy(predicted[None], true[None]).item())
    assert result["J"] == pytest.approx(sum(js) / len(js), abs=1e-12)
    assert result["F"] == pytest.approx(sum(fs) / len(fs), abs=1e-12)


@pytest.mark.parametrize("protocol", ["avsbench", "dataset", "davis"])
def test_perfect_and_worst(protocol):
    _, masks = clips()
    masks = masks[[0, 2, 3]]
    for scores, value in ((masks.float(), 1.0), (1.0 - masks, 0.0)):
        evaluator = BinaryEvaluator(protocol)
        evaluator.update(scores, masks)
        result = evaluator.compute()
        assert result["J"] == pytest.approx(value, abs=1e-6)
        if protocol != "davis" and value:
            assert result["F"] == pytest.approx(1.0)


def test_silent_frame_predicted_empty_is_perfect_j():
    masks = torch.zeros(1, 2, 8, 8, dtype=torch.int64)
    evaluator = BinaryEvaluator()
    evaluator.update(torch.zeros(1, 2, 8, 8), masks)
    assert evaluator.compute()["J"] == pytest.approx(1.0)
    evaluator.reset()
    evaluator.update(torch.ones(1, 2, 8, 8), masks)
    assert evaluator.compute()["J"] == 0.0


@pytest.mark.parametrize("protocol", ["avsbench", "dataset", "davis"])
def test_invalid_frames_change_nothing(protocol):
    scores, masks = clips()
    whole, padded = BinaryEvaluator(protocol), BinaryEvaluator(protocol)
    whole.update(scores[:, :2], masks[:, :2])
    valid = torch.tensor([True, True, False]).expand(len(scores), 3)
    padded.update(scores, masks, valid)
    assert whole.compute() == padded.compute()


def test_clip_without_valid_frames_is_in_no_batch():
    scores, masks = clips(count=3)
    masks[1] = masks[0]
    valid = torch.ones(3, 3, dtype=torch.bool)
    valid[1] = False
    some, fewer = BinaryEvaluator(batch_size=2), BinaryEvaluator(batch_size=2)
    some.update(scores, masks, valid)
    fewer.update(scores[[0, 2]], masks[[0, 2]])
    assert some.compute() == fewer.compute()


def test_result_names_its_protocol():
    scores, masks = clips()
    evaluator = BinaryEvaluator(batch_size=2)
    evaluator.update(scores, masks)
    result = evaluator.compute()
    assert result["protocol"] == "avsbench" and result["batch_size"] == 2
    assert result["resolution"] == "20x24" and result["clips"] == 7 and result["frames"] == 21


def test_class_ids_are_foreground():
    scores, masks = clips()
    one, many = BinaryEvaluator(), BinaryEvaluator()
    one.update(scores, masks)
    many.update(scores, masks * 37)
    assert one.compute() == many.compute()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s, m: (s[0], m[0]), r"expected floating-point scores \[B, T, H, W\], got"),
        (
            lambda s, m: (s.long(), m),
            r"expected floating-point scores \[B, T, H, W\], got torch.int",
        ),
        (lambda s, m: (s, m[:, :2]), r"expected integer masks \[7, 3, 20, 24\], got"),
        (lambda s, m: (s, m.float()), r"expected integer masks .* got torch.float32"),
        (lambda s, m: (s * 3, m), r"expected scores in 0..1, got"),
        (lambda s, m: (s * math.nan, m), r"expected scores in 0..1, got nan"),
        (lambda s, m: (s, m, torch.ones(7, 3)), r"expected bool valid \[7, 3\], got torch.float32"),
        (lambda s, m: (s, m, None, [1, 2]), r"expected 7 clips, got 2"),
    ],
)
def test_update_errors(change, message):
    with pytest.raises(ValueError, match=rf"BinaryEvaluator.update: {message}"):
        BinaryEvaluator().update(*change(*clips()))


def test_construction_and_compute_errors():
    with pytest.raises(ValueError, match="expected protocol avsbench, dataset or davis, got 'x'"):
        BinaryEvaluator("x")
    with pytest.raises(ValueError, match="expected a positive batch_size, got 0"):
        BinaryEvaluator(batch_size=0)
    with pytest.raises(ValueError, match="compute: expected a counted frame, got none"):
        BinaryEvaluator().compute()
