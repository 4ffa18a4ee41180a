# SPDX-License-Identifier: Apache-2.0
import itertools
import math
from dataclasses import replace

import pytest
import torch

from avsmodel.criterion import TERMS, WEIGHTS, LossConfig, SQDCriterion
from avsmodel.data import Batch
from avsmodel.sqd import SQDOutput
from avsmodel.targets import clip_targets

B, N, T, K, H, W = 3, 4, 3, 3, 16, 12


def example(seed=0, layers=2) -> tuple[SQDOutput, Batch]:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def layer():
        boxes = draw(B, N, T, 4).sigmoid() * 0.8 + 0.1
        return draw(B, N, T, K), boxes, draw(B, N, T, H // 4, W // 4) * 3

    masks = torch.zeros(B, T, H, W, dtype=torch.int64)
    masks[0, :, 2:9, 1:8] = 1
    masks[0, 1:, 9:16, 4:12] = 3
    masks[1, 0, :8, :] = 2
    labelled = torch.tensor([[True] * 3, [True, False, False], [False, True, True]])
    last, *auxiliary = (layer() for _ in range(layers))
    output = SQDOutput(
        *last,
        quantization_loss=torch.tensor(0.25, dtype=torch.float64),
        global_indices=None,
        local_indices=None,
        frame_size=(H, W),
        auxiliary=auxiliary,
    )
    empty = torch.zeros(B, T, 1)
    return output, Batch(["a", "b", "c"], empty, empty, masks, labelled, labelled)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def focal(x, truth, alpha=0.25, gamma=2.0):
    p = sigmoid(x) if truth else 1 - sigmoid(x)
    weight = alpha if truth else 1 - alpha
    return -weight * (1 - p) ** gamma * math.log(p)


def bce(x, truth):
    return -math.log(sigmoid(x) if truth else 1 - sigmoid(x))


def giou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    width = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
    height = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
    inside = max(width, 0) * max(height, 0)
    union = aw * ah + bw * bh - inside
    hull = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
        max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    )
    return inside / union - (hull - union) / hull


class SlowLoss:
    """The loss in plain loops over Python numbers, with all matchings tried."""

    def __init__(self, output, batch, weights, pixel_loss=focal):
        self.output, self.batch, self.weights = output, batch, weights
        self.pixel_loss = pixel_loss
        self.sums = [0.0] * 5
        self.pairs = self.targets = 0
        layers = [(output.class_logits, output.boxes, output.mask_logits), *output.auxiliary]
        for index, clip in itertools.product(range(len(layers)), range(B)):
            self.add_clip(clip, *(part[clip].tolist() for part in layers[index]), index == 0)

    def add_clip(self, clip, classes, boxes, masks, first_layer):
        frames = [t for t in range(T) if self.batch.labelled[clip, t]]
        truth = {}
        for t in frames:
            for value in self.batch.masks[clip, t].unique().tolist():
                if value:
                    truth.setdefault(value, []).append(t)
        if first_layer:
            self.targets += len(truth)
            self.pairs += sum(len(shown) for shown in truth.values())
        names = sorted(truth)
        terms = {
            (n, name): self.terms(clip, frames, truth[name], name, classes[n], boxes[n], masks[n])
            for n in range(N)
            for name in names
        }
        best = min(
            itertools.permutations(range(N), len(names)),
            key=lambda chosen: sum(
                self.cost(classes[n], terms[n, name], truth[name], name)
                for n, name in zip(chosen, names, strict=True)
            ),
        )
        matched = dict(zip(best, names, strict=True))
        for n in range(N):
            for t in frames:
                for k in range(K):
                    wanted = n in matched and k == matched[n] - 1 and t in truth[matched[n]]
                    self.sums[0] += focal(classes[n][t][k], wanted)
        for n, name in matched.items():
            for position, value in enumerate(terms[n, name]):
                self.sums[position + 1] += value

    def terms(self, clip, frames, shown, name, classes, boxes, masks):
        l1 = overlap = 0.0
        for t in shown:
            pixels = (self.batch.masks[clip, t] == name).nonzero().tolist()
            ys, xs = zip(*pixels, strict=True)
            left, right, top, bottom = min(xs), max(xs) + 1, min(ys), max(ys) + 1
            box = [
                (left + right) / 2 / W,
                (top + bottom) / 2 / H,
                (right - left) / W,
                (bottom - top) / H,
            ]
            l1 += sum(abs(a - b) for a, b in zip(boxes[t], box, strict=True))
            overlap += 1 - giou(boxes[t], box)
        loss = inside = size = count = 0.0
        for t in frames:
            for y, x in itertools.product(range(H // 4), range(W // 4)):
                block = self.batch.masks[clip, t, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] == name
                wanted = int(block.sum()) >= 8
                loss += self.pixel_loss(masks[t][y][x], wanted)
                inside += sigmoid(masks[t][y][x]) * wanted
                size += sigmoid(masks[t][y][x]) + wanted
                count += 1
        return l1, overlap, loss / count, 1 - (2 * inside + 1) / (size + 1)

    def cost(self, classes, terms, shown, name):
        l1, overlap, mask, dice = terms
        logits = [classes[t][name - 1] for t in shown]
        cls = sum(focal(x, True) - focal(x, False) for x in logits) / len(shown)
        w = self.weights
        boxes = (w.l1 * l1 + w.giou * overlap) / len(shown)
        return w.cls * cls + boxes + w.mask * mask + w.dice * dice

    def result(self):
        frames = int(self.batch.labelled.sum())
        divisors = (max(self.pairs, frames), self.pairs, self.pairs, self.targets, self.targets)
        return [
            weight * value / divisor
            for weight, value, divisor in zip(self.weights, self.sums, divisors, strict=True)
        ]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mask_loss", ["focal", "bce"])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_against_loops(weights, mask_loss, seed):
    output, batch = example(seed)
    criterion = SQDCriterion(LossConfig(weights=weights, mask_loss=mask_loss))
    total, terms = criterion(output, batch)
    slow = SlowLoss(output, batch, WEIGHTS[weights], focal if mask_loss == "focal" else bce)
    expected = [*slow.result(), 0.25]
    assert list(terms) == list(TERMS)
    assert list(terms.values()) == pytest.approx(expected, rel=1e-6)
    assert float(total) == pytest.approx(sum(expected), rel=1e-6)


def test_weights_can_be_replaced():
    output, batch = example()
    _, base = SQDCriterion()(output, batch)
    config = LossConfig(quantization_weight=3.0)
    _, same = SQDCriterion(config)(output, batch)
    assert same == pytest.approx(base | {"quantization": 0.75})
    assert LossConfig(weights="referformer", l1_weight=1.0).matching_weights() == (2, 1, 2, 2, 5)


def test_auxiliary_layers_can_be_left_out():
    output, batch = example()
    _, terms = SQDCriterion(LossConfig(auxiliary=False))(output, batch)
    _, expected = SQDCriterion()(replace(output, auxiliary=[]), batch)
    assert terms == expected


def test_order_of_tokens_does_not_matter():
    output, batch = example()
    order = torch.tensor([2, 0, 3, 1])
    layers = ("class_logits", "boxes", "mask_logits")
    moved = replace(
        output,
        **{name: getattr(output, name)[:, order] for name in layers},
        auxiliary=[tuple(part[:, order] for part in layer) for layer in output.auxiliary],
    )
    criterion = SQDCriterion()
    assert criterion(moved, batch)[1] == pytest.approx(criterion(output, batch)[1])
    targets = clip_targets(batch.masks, batch.labelled)
    columns = [
        criterion.match(item.class_logits, item.boxes, item.mask_logits, targets, batch.labelled)
        for item in (output, moved)
    ]
    assert torch.equal(columns[0][:, order], columns[1])


def test_unlabelled_frames_have_no_say():
    output, batch = example()
    total, _ = SQDCriterion()(output, batch)
    hidden = ~batch.labelled
    batch.masks[hidden] = 2
    for part in (output.class_logits, output.boxes, output.mask_logits):
        part.transpose(1, 2)[hidden] = 0.3
    for layer in output.auxiliary:
        for part in layer:
            part.transpose(1, 2)[hidden] = 0.3
    changed, _ = SQDCriterion()(output, batch)
    torch.testing.assert_close(changed, total)


def test_gradients_reach_all_predictions_of_labelled_frames_only():
    output, batch = example(layers=1)
    for name in ("class_logits", "boxes", "mask_logits"):
        getattr(output, name).requires_grad_()
    SQDCriterion()(output, batch)[0].backward()
    hidden = ~batch.labelled
    for name in ("class_logits", "boxes", "mask_logits"):
        grad = getattr(output, name).grad.transpose(1, 2)
        assert grad.isfinite().all()
        assert not grad[hidden].any()
    assert output.class_logits.grad.transpose(1, 2)[batch.labelled].all()


def test_silent_and_unlabelled_batches():
    output, batch = example()
    batch.masks.zero_()
    total, terms = SQDCriterion()(output, batch)
    assert total.isfinite()
    assert terms["class"] > 0
    assert terms["l1"] == terms["giou"] == terms["mask"] == terms["dice"] == 0
    batch.labelled.zero_()
    assert SQDCriterion()(output, batch)[1]["class"] == 0


def test_more_targets_than_tokens():
    output, batch = example(layers=1)
    batch.masks[0, 0, :2] = 2
    few = replace(
        output,
        **{name: getattr(output, name)[:, :1] for name in ("class_logits", "boxes", "mask_logits")},
    )
    assert SQDCriterion()(few, batch)[0].isfinite()
