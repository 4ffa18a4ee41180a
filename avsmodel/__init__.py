# SPDX-License-Identifier: Apache-2.0
"""Audiovisual segmentation models assembled on the operators of avskernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avsmodel.pretrained import Model

__all__ = ["load"]


def load(folder: str | Path, device: str = "auto") -> Model:
    """Load a trained model from a folder; no network is needed.

    Args:
        folder: what ``avsmodel train`` or :meth:`Model.save_pretrained` wrote; a run folder gives
            its best model.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if the weights are damaged or do not fit the configuration.
    """
    # Imported here, so that the command line answers --help without waiting for torch.
    from avsmodel.pretrained import Model

    return Model.from_pretrained(folder, device)
