# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from avsmodel.sqd import SQDOutput, join_tracks, segment


def output(N=4, K=3, frame=(12, 16), seed=0) -> SQDOutput:
    random = torch.Generator().manual_seed(seed)
    cells = [-(-pixels // 4) for pixels in frame]
    return SQDOutput(
        class_logits=torch.randn(2, N, 3, K, generator=random) - 1.5,
        boxes=torch.rand(2, N, 3, 4, generator=random),
        mask_logits=2 * torch.randn(2, N, 3, *cells, generator=random),
        quantization_loss=torch.tensor(1.0),
        global_indices=torch.zeros(2, N, dtype=torch.int64),
        local_indices=None,
        frame_size=frame,
    )


def brute_force(output, masks, class_threshold, mask_threshold):
    """Eq. 11 at every pixel, with mask probabilities [B, N, T, H, W]."""
    probs = output.class_logits.double().sigmoid()
    B, N, T, K = probs.shape
    labels = torch.zeros(B, T, *masks.shape[-2:], dtype=torch.int64)
    for b, t in torch.cartesian_prod(torch.arange(B), torch.arange(T)).tolist():
        for y, x in torch.nonzero(torch.ones(masks.shape[-2:])).tolist():
            scores = [0.0] * K
            for n in range(N):
                mask = float(masks[b, n, t, y, x])
                for k in range(K):
                    p = float(probs[b, n, t, k])
                    if p > class_threshold and mask > mask_threshold:
                        scores[k] += p * mask
            if max(scores) > 0:
                labels[b, t, y, x] = 1 + scores.index(max(scores))
    return labels


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("thresholds", [(0.1, 0.5), (0.3, 0.6)])
def test_labels_against_brute_force(K, thresholds):
    example = output(K=K)
    found = segment(example, class_threshold=thresholds[0], mask_threshold=thresholds[1])
    frames = example.mask_logits.double().flatten(0, 2)[:, None]
    logits = F.interpolate(frames, scale_factor=4, mode="bilinear")[:, 0]
    masks = logits.unflatten(0, (2, 4, 3)).sigmoid()
    torch.testing.assert_close(found.token_masks.double(), masks, atol=1e-6, rtol=1e-5)
    expected = brute_force(example, masks, *thresholds)
    assert 0 < (expected > 0).float().mean() < 1
    assert torch.equal(found.labels, expected)


def test_one_class_gives_the_union_of_the_kept_masks():
    example = output(K=1)
    found = segment(example)
    kept = example.class_logits.sigmoid()[..., None] > 0.1  # [B, N, T, 1, 1]
    assert kept.any() and not kept.all()
    union = ((found.token_masks > 0.5) & kept).any(1)
    assert torch.equal(found.labels, union.long())


@pytest.mark.parametrize("K", [1, 3])
def test_scores_agree_with_labels(K):
    found = segment(output(K=K))
    assert torch.equal(found.scores > 0.5, found.labels > 0)
    assert found.scores.min() >= 0
    assert found.scores.max() <= 1


def test_nothing_left_is_background():
    example = output()
    found = segment(replace(example, class_logits=example.class_logits - 20))
    assert not found.labels.any()
    assert not found.scores.any()


def test_cells_beyond_the_frame_are_cut_off():
    small, large = output(frame=(10, 15)), output(frame=(12, 16))
    assert small.mask_logits.shape == large.mask_logits.shape
    torch.testing.assert_close(segment(small).scores, segment(large).scores[..., :10, :15])


def test_another_size():
    found = segment(output(frame=(10, 15)), (20, 30))
    assert found.labels.shape == (2, 3, 20, 30)
    expected = segment(output(frame=(12, 16)), (24, 32)).scores[..., :20, :30]
    torch.testing.assert_close(found.scores, expected)


def test_tracks_are_merged_as_tokens_of_one_clip():
    first, second = output(seed=1), output(seed=2)
    joined = join_tracks([first, second])
    assert joined.class_logits.shape == (2, 8, 3, 3)
    assert joined.global_indices.shape == (2, 8)
    assert joined.local_indices is None
    scores = torch.maximum(segment(first).scores, segment(second).scores)
    torch.testing.assert_close(segment(joined).scores, scores)
