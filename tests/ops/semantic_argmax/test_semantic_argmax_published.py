# SPDX-License-Identifier: Apache-2.0
"""The inference rules of published segmenters, expressed with semantic_argmax."""

from types import SimpleNamespace

import pytest
import torch
from ops.semantic_argmax.cases import sample
from torch.nn import functional

from avskernels import semantic_argmax


def test_inference_rule_of_sqd():
    probs, logits, _ = sample(2, 5, 7, 9, 10)
    padded = functional.pad(probs, (1, 0))
    labels = semantic_argmax(padded, logits, class_threshold=0.2, mask_threshold=0.5)
    kept = torch.where(probs > 0.2, probs, 0)
    masks = logits.sigmoid()
    scores = torch.einsum("bnk,bnhw->bkhw", kept, torch.where(masks > 0.5, masks, 0))
    expected = torch.where(scores.amax(1) > 0, scores.argmax(1) + 1, 0)
    assert torch.equal(labels, expected)


def published_sample():
    _, logits, _ = sample(2, 5, 7, 9, 10)
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)), logits


def test_post_processing_of_mask2former():
    class_logits, logits = published_sample()
    probs = class_logits.softmax(-1)[..., :-1]
    masks = functional.interpolate(logits, (20, 24), mode="bilinear", align_corners=False)
    volume = torch.einsum("bqc,bqhw->bchw", probs, masks.sigmoid())
    assert torch.equal(semantic_argmax(probs, logits, size=(20, 24)), volume.argmax(1))


def hugging_face(class_logits, logits, size):
    """Resize probabilities of 384 x 384 pixels: what its Mask2Former processor does."""
    masks = functional.interpolate(logits, (384, 384), mode="bilinear", align_corners=False)
    probs = class_logits.softmax(-1)[..., :-1]
    volume = torch.einsum("bqc,bqhw->bchw", probs, masks.sigmoid())
    volume = functional.interpolate(volume, size, mode="bilinear", align_corners=False)
    return volume.argmax(1)


def test_post_processing_of_hugging_face():
    class_logits, logits = published_sample()
    probs = class_logits.softmax(-1)[..., :-1]
    masks = functional.interpolate(logits, (384, 384), mode="bilinear", align_corners=False)
    labels = semantic_argmax(probs, masks.sigmoid(), size=(31, 45), activation="none")
    assert torch.equal(labels, hugging_face(class_logits, logits, (31, 45)))


def test_hugging_face_is_its_own_processor():
    transformers = pytest.importorskip("transformers")
    class_logits, logits = published_sample()
    outputs = SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=logits)
    labels = transformers.Mask2FormerImageProcessor().post_process_semantic_segmentation(
        outputs, target_sizes=[(31, 45)] * 2
    )
    assert torch.equal(torch.stack(labels), hugging_face(class_logits, logits, (31, 45)))
