# SPDX-License-Identifier: Apache-2.0
"""Audiovisual segmentation data: AVSBench on disk, clips as tensors, a synthetic data set."""

from avsmodel.data.audio import log_mel, read_wav
from avsmodel.data.avsbench import AVSDataset, open_dataset
from avsmodel.data.palette import colours_to_labels, palette
from avsmodel.data.sample import Batch, Sample, collate
from avsmodel.data.synthesize import synthesize
from avsmodel.data.verify import Report, verify

__all__ = [
    "AVSDataset",
    "Batch",
    "Report",
    "Sample",
    "collate",
    "colours_to_labels",
    "log_mel",
    "open_dataset",
    "palette",
    "read_wav",
    "synthesize",
    "verify",
]
