# SPDX-License-Identifier: Apache-2.0
"""Quantizers with a codebook of their own: VectorQuantizer and ProductQuantizer."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from avskernels.core.specification import check_choice
from avskernels.ops.vector_quantize.operator import (
    VectorQuantized,
    codeword_residuals,
    nearest_codeword,
    vector_quantize,
)

UPDATES = ("gradient", "ema", "frozen")
INITS = ("normal", "uniform", "xavier", "kmeans")
KMEANS_ITERATIONS = 10


class VectorQuantizer(nn.Module):
    r"""Quantize rows with a learned codebook and keep account of its use.

    ``update`` says how the codebook learns in training mode: by the ``"gradient"`` of the loss, by
    an exponential moving average (``"ema"``), or not at all (``"frozen"``). With batch counts
    :math:`n_k` and sums :math:`s_k = \sum_{i: k_i = k} x_i` the moving average is

    .. math::
        N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \quad
        S_k \leftarrow \gamma S_k + (1 - \gamma) s_k, \quad
        c_k \leftarrow S_k / N_k

    Where torch.distributed runs, counts and sums are those of all processes, and the codebooks of
    all processes stay equal; every process must then call the module the same number of times.

    Args:
        num_codewords: K.
        dim: D.
        update: ``"gradient"``, ``"ema"`` or ``"frozen"``.
        init: ``"normal"`` (variance 1), ``"uniform"`` (within 1/K of 0), ``"xavier"``, or
            ``"kmeans"``: clusters of the first training batch.
        commitment_weight: weight of the loss term that moves x.
        codebook_weight: weight of the loss term that moves the codebook, with ``"gradient"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, see :func:`avskernels.vector_quantize`.
        metric: ``"l2"`` or ``"cosine"``.
        decay: :math:`\gamma` of the moving average.
        restart_after: training batches that a codeword may go unused before a random row of the
            batch replaces it; 0 never replaces.

    Attributes:
        codebook: ``Tensor[K, D]``, a parameter with ``"gradient"``, else a buffer.
        usage: int64 ``Tensor[K]``, rows that chose each codeword in training since
            :meth:`reset_usage`.

    Raises:
        ValueError: for an unknown name, or a number out of its range.

    Source: van den Oord et al. 2017, Eq. 3 and Appendix A.1; QDFormer, Eq. 9.

    Example:
        >>> quantizer = VectorQuantizer(8, 4, init="xavier")
        >>> quantized, indices, loss = quantizer(torch.randn(2, 3, 4))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3]), torch.Size([]))
    """

    codebook: Tensor
    usage: Tensor
    idle_batches: Tensor
    average_count: Tensor
    average_sum: Tensor
    clustered: Tensor

    def __init__(
        self,
        num_codewords: int,
        dim: int,
        *,
        update: str = "gradient",
        init: str = "normal",
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        reduction: str = "mean",
        metric: str = "l2",
        decay: float = 0.99,
        restart_after: int = 0,
    ) -> None:
        super().__init__()
        check_choice("VectorQuantizer", "update", update, UPDATES)
        check_choice("VectorQuantizer", "init", init, INITS)
        _check_range("num_codewords", num_codewords, num_codewords >= 1, "at least 1")
        _check_range("dim", dim, dim >= 1, "at least 1")
        _check_range("decay", decay, 0 <= decay < 1, "in [0, 1)")
        _check_range("restart_after", restart_after, restart_after >= 0, "at least 0")
        self.update = update
        self.init = init
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight if update == "gradient" else 0.0
        self.reduction = reduction
        self.metric = metric
        self.decay = decay
        self.restart_after = restart_after
        codebook = torch.empty(num_codewords, dim)
        if update == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("usage", torch.zeros(num_codewords, dtype=torch.int64))
        self.register_buffer("idle_batches", torch.zeros(num_codewords, dtype=torch.int64))
        if update == "ema":
            self.register_buffer("average_count", torch.zeros(num_codewords))
            self.register_buffer("average_sum", torch.zeros(num_codewords, dim))
        if init == "kmeans":
            self.register_buffer("clustered", torch.tensor(False))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a fresh codebook and forget all statistics."""
        with torch.no_grad():
            if self.init == "uniform":
                self.codebook.uniform_(-1 / len(self.codebook), 1 / len(self.codebook))
            elif self.init == "xavier":
                nn.init.xavier_uniform_(self.codebook)
            else:
                self.codebook.normal_()
            for name, buffer in self.named_buffers():
                if name != "codebook":
                    buffer.zero_()

    def reset_usage(self) -> None:
        """Start the account of :attr:`usage` anew."""
        self.usage.zero_()

    def perplexity(self) -> Tensor:
        """Return exp of the entropy of :attr:`usage`, a scalar: 1 (one codeword) to K (all)."""
        share = self.usage.double() / self.usage.sum().clamp(min=1)
        return torch.special.entr(share).sum().exp().float()

    def forward(self, x: Tensor, *, commit_only: bool = False) -> VectorQuantized:
        """Quantize the rows of ``x[..., D]``.

        Args:
            x: ``Tensor[..., D]``, any floating-point dtype.
            commit_only: rows commit to the codebook but neither move it nor count in its
                statistics (the local tokens of QDFormer).

        Returns:
            VectorQuantized: see :func:`avskernels.vector_quantize`.
        """
        learning = self.training and not commit_only and x.numel() > 0
        if learning and self.init == "kmeans" and not self.clustered:
            self._cluster(x.detach())
        moved = self.update == "gradient" and not commit_only
        codebook = self.codebook if moved else self.codebook.detach()
        if self.training and (self.update == "ema" or self.restart_after or self.init == "kmeans"):
            codebook = codebook.clone()  # backward needs it as it is before it is written to
        result = vector_quantize(
            x,
            codebook.to(x.dtype),
            commitment_weight=self.commitment_weight,
            codebook_weight=self.codebook_weight if moved else 0.0,
            reduction=self.reduction,
            metric=self.metric,
        )
        if learning:
            self._learn(x.detach(), result.indices)
        return result

    def extra_repr(self) -> str:
        """Describe the codebook and how it learns."""
        return f"{len(self.codebook)}, {self.codebook.shape[1]}, update={self.update!r}"

    @torch.no_grad()
    def _learn(self, x: Tensor, indices: Tensor) -> None:
        counts = self._counts(indices)
        self.usage += counts
        if self.update == "ema":
            self._average(x, indices, counts)
        if self.restart_after > 0 and self.update != "frozen":
            self._restart(x, counts)

    def _counts(self, indices: Tensor) -> Tensor:
        flat = indices.flatten()
        return _total(torch.zeros_like(self.usage).scatter_add_(0, flat, torch.ones_like(flat)))

    def _sums(self, x: Tensor, indices: Tensor, counts: Tensor) -> Tensor:
        """Add up the rows of each codeword: n_k c_k + sum of (x - c_k)."""
        if self.metric == "cosine":
            x = nn.functional.normalize(x, dim=-1)
        residuals = codeword_residuals(x.to(self.codebook.dtype), self.codebook, indices)
        return _total(residuals) + counts.unsqueeze(1) * self.codebook

    def _average(self, x: Tensor, indices: Tensor, counts: Tensor) -> None:
        weight = 1 - self.decay
        self.average_count.lerp_(counts.to(self.average_count.dtype), weight)
        self.average_sum.lerp_(self._sums(x, indices, counts), weight)
        used = (self.average_count > 0).unsqueeze(1)
        self.codebook.copy_(
            torch.where(used, self.average_sum / self.average_count.unsqueeze(1), self.codebook)
        )

    def _restart(self, x: Tensor, counts: Tensor) -> None:
        self.idle_batches += 1
        self.idle_batches[counts > 0] = 0
        dead = (self.idle_batches >= self.restart_after).unsqueeze(1)
        rows = self._random_rows(x)
        self.codebook.copy_(torch.where(dead, rows, self.codebook))
        self.idle_batches.masked_fill_(dead[:, 0], 0)
        if self.update == "ema":
            self.average_count.masked_fill_(dead[:, 0], 1)
            self.average_sum.copy_(torch.where(dead, rows, self.average_sum))

    def _random_rows(self, x: Tensor) -> Tensor:
        """Choose K rows, different ones while there are, the same in all processes."""
        rows = x.reshape(-1, x.shape[-1])
        missing = max(0, len(self.codebook) - len(rows))
        order = torch.cat(
            [
                torch.randperm(len(rows), device=x.device),
                torch.randint(len(rows), (missing,), device=x.device),
            ]
        )
        chosen = rows[order[: len(self.codebook)]].to(self.codebook.dtype)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(chosen, 0)
        return chosen

    @torch.no_grad()
    def _cluster(self, x: Tensor) -> None:
        """Run Lloyd's algorithm from random rows; a cluster without rows stays where it is."""
        self.codebook.copy_(self._random_rows(x))
        for _ in range(KMEANS_ITERATIONS):
            indices, _ = nearest_codeword(x, self.codebook.to(x.dtype), metric=self.metric)
            counts = self._counts(indices)
            means = self._sums(x, indices, counts) / counts.unsqueeze(1)
            self.codebook.copy_(torch.where(counts.unsqueeze(1) > 0, means, self.codebook))
        self.clustered.fill_(True)


class ProductQuantizer(nn.Module):
    r"""Decompose rows by N learned transforms and quantize all with one shared codebook.

    .. math:: PQ(x) = VQ(f_1(x)) \oplus \dots \oplus VQ(f_N(x)), \quad f_i(x) = W_i x + b_i

    Args:
        num_transforms: N.
        in_dim: size of x's rows.
        num_codewords: K.
        dim: D, size of the codewords.
        quantizer: further arguments of :class:`VectorQuantizer`.

    Raises:
        ValueError: for an unknown name, or a number out of its range.

    Source: QDFormer, Eq. 2.

    Example:
        >>> quantizer = ProductQuantizer(3, 16, num_codewords=8, dim=4)
        >>> quantized, indices, loss = quantizer(torch.randn(2, 16))
        >>> quantized.shape, indices.shape
        (torch.Size([2, 12]), torch.Size([2, 3]))
    """

    def __init__(
        self, num_transforms: int, in_dim: int, num_codewords: int, dim: int, **quantizer: Any
    ) -> None:
        super().__init__()
        _check_range("num_transforms", num_transforms, num_transforms >= 1, "at least 1")
        self.transforms = nn.Linear(in_dim, num_transforms * dim)
        self.quantizer = VectorQuantizer(num_codewords, dim, **quantizer)

    def forward(self, x: Tensor, *, commit_only: bool = False) -> VectorQuantized:
        """Quantize ``x[..., in_dim]``: ``quantized[..., N * D]``, ``indices[..., N]``, loss."""
        parts = self.transforms(x).unflatten(-1, (-1, self.quantizer.codebook.shape[1]))
        result = self.quantizer(parts, commit_only=commit_only)
        return result._replace(quantized=result.quantized.flatten(-2))


def _check_range(name: str, value: float, ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(f"VectorQuantizer: expected {name} {what}, got {value}")


def _total(tensor: Tensor) -> Tensor:
    """Add up over all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
