# SPDX-License-Identifier: Apache-2.0
import numpy as np

import avsmodel
from avsmodel.clip_view import view_clip
from avsmodel.evaluate import open_split


def test_a_view_holds_the_real_frames_only(semantic_run):
    model = avsmodel.load(semantic_run.folder, "cpu")
    dataset = open_split(model.config.data, "test")
    for index, sample in enumerate(dataset):
        view = view_clip(model, dataset, index)
        count = int(sample.real.sum())
        assert len(view.images) == len(view.labels) == view.token_masks.shape[1] == count
        assert np.array_equal(view.truth, sample.masks[sample.real].numpy())
        assert view.other_uid != view.uid
