# SPDX-License-Identifier: Apache-2.0
"""Transformer layers and positions that the systems share."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avskernels.nn import DeformableAttention


def temporal_positions(
    length: int, dim: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Return sine and cosine positions of a sequence, interleaved: float32 ``Tensor[length, dim]``.

    Source: Vaswani et al. 2017, section 3.5.
    """
    frequency = 10000 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :dim]


def spatial_positions(
    height: int, width: int, dim: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Return sine positions of a map, row-major: float32 ``Tensor[height * width, dim]``.

    The first half of the channels holds y, the second x; both run from 0 to 2 pi over the map.

    Source: Carion et al. 2020 (DETR), appendix A.4.
    """
    half = dim // 2
    frequency = 10000 ** (-2 * (torch.arange(half, device=device) // 2) / half)

    def axis(length: int) -> Tensor:
        centre = (torch.arange(length, device=device) + 0.5) / length
        angle = 2 * math.pi * centre[:, None] * frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=-1).flatten(1)

    rows = axis(height)[:, None].expand(height, width, half)
    columns = axis(width)[None].expand(height, width, half)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def pixel_centres(
    shapes: list[tuple[int, int]], *, device: torch.device | str | None = None
) -> Tensor:
    """Return the normalised (x, y) of every pixel of maps: float32 ``Tensor[sum(h * w), 2]``."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grid = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack((grid[1], grid[0]), dim=-1).flatten(0, 1))
    return torch.cat(centres)


def feed_forward(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    """Build two linear layers with ReLU between."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
    )


def _projection(dim: int) -> nn.Linear:
    linear = nn.Linear(dim, dim)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Attention(nn.Module):
    """Multi-head attention ``W_o softmax(W_q q (W_k k)^T / sqrt(d)) W_v v``."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = _projection(dim)
        self.key = _projection(dim)
        self.value = _projection(dim)
        self.output = _projection(dim)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend from ``query[B, Q, C]`` to ``key[B, S, C]`` and sum ``value[B, S, C]``.

        Args:
            query: ``Tensor[B, Q, C]``.
            key: ``Tensor[B, S, C]``.
            value: ``Tensor[B, S, C]``.
            mask: bool ``Tensor[B, S]``, true where a key may be attended to. A row without any
                attends to all keys, so that an empty clip gives a number and not a NaN.

        Returns:
            ``Tensor[B, Q, C]``.
        """
        if mask is not None:
            mask = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.output(attended.transpose(1, 2).flatten(2))


class OneTokenAttention(nn.Module):
    """:class:`Attention` over a memory of one token: every weight is 1, so it is ``W_o W_v v``.

    The result is that of :class:`Attention` with the same ``value`` and ``output``; its ``query``
    and ``key`` would have no effect and do not exist here.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.value = _projection(dim)
        self.output = _projection(dim)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return what any query receives from ``value[B, 1, C]``: ``[B, 1, C]``.

        ``query``, ``key`` and ``mask`` have no effect; :class:`Attention` has them too.
        """
        return self.output(self.value(value))


class Residual(nn.Module):
    """Dropout, residual sum and LayerNorm around a sub-layer.

    Post-norm ``LN(x + f(x))`` as in the papers, or pre-norm ``x + f(LN(x))``.
    """

    def __init__(self, dim: int, dropout: float, norm_first: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``sublayer``, a function of one tensor, to ``x[..., C]``."""
        if self.norm_first:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class DecoderLayer(nn.Module):
    """Self-attention among tokens, attention to a memory, feed-forward.

    Args:
        one_token: whether the memory always holds one token (:class:`OneTokenAttention`).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        *,
        norm_first: bool = False,
        one_token: bool = False,
    ):
        super().__init__()
        self.self_attention = Attention(dim, num_heads, dropout)
        self.cross_attention = (
            OneTokenAttention(dim) if one_token else Attention(dim, num_heads, dropout)
        )
        self.ffn = feed_forward(dim, ffn_dim, dropout)
        self.residuals = nn.ModuleList(Residual(dim, dropout, norm_first) for _ in range(3))
        if one_token and norm_first:
            self.residuals[1].norm = nn.Identity()  # its queries have no effect

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        token_positions: Tensor | float = 0.0,
        memory_positions: Tensor | float = 0.0,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Update ``tokens[B, N, C]`` from ``memory[B, S, C]``; positions are added to q and k."""
        tokens = self.residuals[0](
            tokens,
            lambda x: self.self_attention(x + token_positions, x + token_positions, x),
        )
        tokens = self.residuals[1](
            tokens,
            lambda x: self.cross_attention(
                x + token_positions, memory + memory_positions, memory, memory_mask
            ),
        )
        return self.residuals[2](tokens, self.ffn)


class DeformableDecoderLayer(nn.Module):
    """A decoder layer whose cross-attention samples a feature pyramid around reference points."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        *,
        num_levels: int = 4,
        num_points: int = 4,
        norm_first: bool = False,
    ):
        super().__init__()
        self.self_attention = Attention(dim, num_heads, dropout)
        self.cross_attention = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.ffn = feed_forward(dim, ffn_dim, dropout)
        self.residuals = nn.ModuleList(Residual(dim, dropout, norm_first) for _ in range(3))

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        token_positions: Tensor,
        references: Tensor,
        shapes: Tensor,
    ) -> Tensor:
        """Update ``tokens[B, N, C]`` from ``memory[B, S, C]`` of maps ``shapes[L, 2]``.

        Args:
            tokens: ``Tensor[B, N, C]``.
            memory: ``Tensor[B, S, C]``, the maps of all levels, flattened and concatenated.
            token_positions: ``Tensor[N, C]``, added to queries (and to keys of the self-attention).
            references: ``Tensor[B, N, L, 2 or 4]``, points or cxcywh boxes in 0..1.
            shapes: int64 ``Tensor[L, 2]``, (height, width) of each level.
        """
        tokens = self.residuals[0](
            tokens,
            lambda x: self.self_attention(x + token_positions, x + token_positions, x),
        )
        tokens = self.residuals[1](
            tokens,
            lambda x: self.cross_attention(x + token_positions, references, memory, shapes),
        )
        return self.residuals[2](tokens, self.ffn)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over a feature pyramid, then feed-forward."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        *,
        num_levels: int = 4,
        num_points: int = 4,
        norm_first: bool = False,
    ):
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.ffn = feed_forward(dim, ffn_dim, dropout)
        self.residuals = nn.ModuleList(Residual(dim, dropout, norm_first) for _ in range(2))

    def forward(
        self, memory: Tensor, positions: Tensor, references: Tensor, shapes: Tensor
    ) -> Tensor:
        """Update ``memory[B, S, C]`` of maps ``shapes[L, 2]``; ``references[B, S, L, 2]``."""
        memory = self.residuals[0](
            memory, lambda x: self.attention(x + positions, references, x, shapes)
        )
        return self.residuals[1](memory, self.ffn)
