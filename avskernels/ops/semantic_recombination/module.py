# SPDX-License-Identifier: Apache-2.0
"""SQD's recombination of decomposed semantics with a visual map."""

from torch import Tensor, nn

from avskernels.ops.semantic_recombination.operator import semantic_recombination

NORMS = ("batch", "group", None)


class SemanticRecombination(nn.Module):
    r"""Modulate a map by N tokens, project the concatenation, add the map, normalise.

    .. math:: F' = \mathrm{norm}(\varphi(w_1 F \oplus \dots \oplus w_N F) + F)

    The :math:`w_i` come from the tokens by two linear layers.

    Args:
        dim: channels.
        num_tokens: N.
        norm: ``"batch"``, ``"group"`` or None.
        num_groups: of ``"group"``, a divisor of dim.

    Raises:
        ValueError: for an unknown norm.

    Source: QDFormer, Eq. 5.

    Example:
        >>> import torch
        >>> recombine = SemanticRecombination(16, num_tokens=3)
        >>> recombine(torch.randn(2, 5, 16, 7, 7), torch.randn(2, 3, 16)).shape
        torch.Size([2, 5, 16, 7, 7])
    """

    def __init__(
        self,
        dim: int = 256,
        num_tokens: int = 5,
        *,
        norm: str | None = "batch",
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(
                f"SemanticRecombination: expected norm to be one of {NORMS}, got {norm!r}"
            )
        self.filters = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.phi = nn.Conv2d(num_tokens * dim, dim, 1)
        self.norm: nn.Module = nn.Identity()
        if norm is not None:
            self.norm = nn.BatchNorm2d(dim) if norm == "batch" else nn.GroupNorm(num_groups, dim)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Recombine a map with tokens.

        Args:
            features: ``Tensor[B, C, H, W]``, or ``Tensor[B, T, C, H, W]`` for T frames with the
                same tokens.
            tokens: ``Tensor[B, N, C]``.

        Returns:
            Tensor: the features' shape.

        Raises:
            RuntimeError: for shapes, dtypes or devices that do not fit.
        """
        mixed = semantic_recombination(
            features, self.filters(tokens), self.phi.weight, self.phi.bias
        )
        normalised: Tensor = self.norm(mixed.reshape(-1, *mixed.shape[-3:]))
        return normalised.view(mixed.shape)
