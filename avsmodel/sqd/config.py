# SPDX-License-Identifier: Apache-2.0
"""The configuration of the model; the defaults are the paper's."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class SQDConfig:
    """The architecture of SQD.

    Attributes:
        backbone, backbone_options, pretrained, freeze_batchnorm: see :func:`build_backbone`.
        extra_levels: maps beyond stride 32, each half the size of the one before.
        encoder_layers: layers of the deformable encoder.
        vggish_width: factor on VGGish's channels; 1 is the published network.
        vggish_weights: file with the published weights, ``""`` to start from random ones.
        freeze_vggish: whether VGGish is not trained.

        dim, num_heads, ffn_dim, dropout: of every transformer layer.
        num_points: sampling points per head and level.
        decoder_layers: of the global, the local and the mask decoder.
        norm_first: pre-norm in place of post-norm.

        num_tokens, num_codewords: N and K.
        fusion: Eq. 3, audio attends to video before it is decomposed.
        gsd, avsr, lsd, shared_codebook: the components that the paper's ablation switches. Without
            ``lsd`` the queries of the mask decoder are the global tokens, and without ``gsd`` too
            they are the prototypes plus the frame's audio.
        shared_decoder: one decoder with one set of prototypes serves clips and frames, so that
            global and local tokens mean the same from the start.
        codebook_init, codebook_update: see :class:`VectorQuantizer`; codebook_restart is its
            ``restart_after``.
        quantize_after: training steps in which tokens stay unquantized while the codebook learns
            from them; an evaluation always quantizes. A model from scratch needs some: its tokens
            hardly depend on the sound, and after quantization they would not depend on it at all.
        commitment: weight of the two commitment terms of Eq. 9.
        quantization_reduction: ``"mean"`` over channels, tokens and frames, or ``"sum"`` over them
            (and mean over clips), as the equation is written.
        recombination_norm: the normalisation of Eq. 5.

        segm_attention: cross-attention of the mask decoder.
        box_refinement: each layer of the mask decoder corrects the box of the one before, and the
            deformable attention samples there.
        mask_head: ``"conditional"`` (two hidden layers with relative coordinates) or ``"filter"``
            (one filter per token).
        mask_dim, mask_hidden, coord_scale: channels of the mask features and of the hidden
            layers, and the factor on relative coordinates in pixels.
        class_prior: class probability of an untrained model.
        class_threshold, mask_threshold: what the inference rule keeps (see :func:`segment`).
    """

    backbone: str = "resnet50"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    freeze_batchnorm: bool = True
    extra_levels: int = 1
    encoder_layers: int = 4
    vggish_width: float = 1.0
    vggish_weights: str = ""
    freeze_vggish: bool = True

    dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.1
    num_points: int = 4
    decoder_layers: int = 3
    norm_first: bool = False

    num_tokens: int = 5
    num_codewords: int = 128
    fusion: bool = True
    gsd: bool = True
    avsr: bool = True
    lsd: bool = True
    shared_codebook: bool = True
    shared_decoder: bool = False
    codebook_init: Literal["normal", "uniform", "xavier", "kmeans"] = "xavier"
    codebook_update: Literal["gradient", "ema", "frozen"] = "gradient"
    codebook_restart: int = 0
    quantize_after: int = 0
    commitment: float = 0.5
    quantization_reduction: Literal["mean", "sum"] = "mean"
    recombination_norm: Literal["batch", "group"] = "batch"

    segm_attention: Literal["deformable", "plain"] = "deformable"
    box_refinement: bool = True
    mask_head: Literal["conditional", "filter"] = "conditional"
    mask_dim: int = 256
    mask_hidden: tuple[int, ...] = (8, 8)
    coord_scale: float = 1.0
    class_prior: float = 0.01
    class_threshold: float = 0.1
    mask_threshold: float = 0.5

    def validate(self) -> None:
        """Raise ValueError if two choices contradict each other."""
        if self.avsr and not self.gsd:
            raise ValueError("SQDConfig: expected gsd=true where avsr=true, got gsd=false")
        if self.lsd and self.shared_codebook and not self.gsd:
            raise ValueError(
                "SQDConfig: expected gsd=true where lsd=true and shared_codebook=true, "
                "got gsd=false"
            )
        if self.shared_decoder and not (self.gsd and self.lsd):
            raise ValueError(
                "SQDConfig: expected gsd=true and lsd=true where shared_decoder=true, got false"
            )
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(
                f"SQDConfig: expected dim divisible by 4 and by num_heads={self.num_heads}, "
                f"got {self.dim}"
            )
        for name in ("num_tokens", "num_codewords", "decoder_layers", "mask_dim"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"SQDConfig: expected {name} of at least 1, got {getattr(self, name)}"
                )
