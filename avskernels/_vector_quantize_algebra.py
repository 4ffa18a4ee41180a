"""What vector_quantize computes beside its kernels: its checks, and plain torch."""

import torch
from torch.nn import functional

from avskernels._check import accumulate_dtype


def check(op, x, codebook):
    # The same sentences as check_quantize in csrc/vector_quantize/vector_quantize.h.
    if codebook.dim() not in (2, 3):
        raise RuntimeError(
            f"{op}: expected codebook [K, D] or [G, K, D], got {list(codebook.shape)}"
        )
    tail = codebook.shape[-1:] if codebook.dim() == 2 else (codebook.shape[0], codebook.shape[2])
    if x.shape[x.dim() - len(tail) :] != torch.Size(tail):
        raise RuntimeError(
            f"{op}: expected x [..., {', '.join(map(str, tail))}] to match codebook "
            f"{list(codebook.shape)}, got {list(x.shape)}"
        )
    if 0 in codebook.shape[-2:]:
        raise RuntimeError(
            f"{op}: expected a codebook with at least one codeword and one dimension, "
            f"got {list(codebook.shape)}"
        )
    if x.dtype != codebook.dtype:
        raise RuntimeError(
            f"{op}: expected x and codebook of one dtype, got {x.dtype} and {codebook.dtype}"
        )
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"{op}: expected a floating-point dtype, got {x.dtype}")
    if x.device != codebook.device:
        raise RuntimeError(
            f"{op}: expected x and codebook on one device, got {x.device} and {codebook.device}"
        )


def flat_codes(codebook, indices):
    """Number the codewords over all groups: ``[M * G]``."""
    if codebook.dim() == 3:
        groups, codewords, _ = codebook.shape
        indices = indices + torch.arange(groups, device=indices.device) * codewords
    return indices.flatten()


def _chosen(codebook, indices):
    if codebook.dim() == 3:
        return codebook[torch.arange(codebook.shape[0], device=codebook.device), indices]
    return codebook[indices]


def nearest_algebra(x, codebook):
    """Screen with |c|^2 - 2 x.c in slices of bounded memory, then measure in difference form."""
    check("nearest_codeword", x, codebook)
    dtype = accumulate_dtype(x.dtype)
    books = codebook.to(dtype).view(-1, *codebook.shape[-2:])  # [G, K, D]
    groups, codewords, dim = books.shape
    centre = books.nan_to_num(0.0, 0.0, 0.0).mean(1, keepdim=True)  # [G, 1, D]
    books = books - centre
    bias = books.square().sum(-1).unsqueeze(1)  # [G, 1, K]
    bias = torch.where(bias.isfinite(), bias, torch.inf)
    books = books.nan_to_num(0.0, 0.0, 0.0)
    rows = x.reshape(-1, groups, dim)
    indices = torch.cat(
        [
            torch.baddbmm(bias, part.to(dtype).transpose(0, 1) - centre, books.mT, alpha=-2).argmin(
                -1
            )
            for part in rows.split(max(1, 2**22 // (groups * codewords)))
        ],
        dim=1,
    ).T  # [M, G]
    indices = indices.reshape(x.shape[:-1])
    indices = torch.where(x.isfinite().all(-1), indices, 0)
    distance = (x.to(dtype) - _chosen(codebook, indices).to(dtype)).square().sum(-1)
    return indices, torch.where(distance.isfinite(), distance, torch.nan)


def algebra(x, codebook, commitment_weight, codebook_weight, reduction):
    check("vector_quantize", x, codebook)
    indices, distance = nearest_algebra(x, codebook)
    loss = distance * (commitment_weight + codebook_weight)
    if reduction == "mean":
        loss = loss.sum() / x.numel()
    elif reduction == "sum":
        loss = loss.sum()
    quantized = torch.empty_like(x).copy_(_chosen(codebook, indices))
    return quantized, indices, loss


def backward_algebra(
    grad_quantized, grad_loss, x, codebook, indices, commitment_weight, codebook_weight, reduction
):
    grad_x = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    if grad_quantized is not None:
        grad_x += grad_quantized
    grad_codebook = torch.zeros_like(codebook)
    scale = 2 * grad_loss / (x.numel() if reduction == "mean" else 1)
    dtype = accumulate_dtype(x.dtype)
    difference = (x.to(dtype) - _chosen(codebook, indices).to(dtype)) * scale.to(dtype).unsqueeze(
        -1
    )
    grad_x += (commitment_weight * difference).to(x.dtype)
    if codebook_weight != 0:
        total = codebook.new_zeros(codebook[..., 0].numel(), codebook.shape[-1], dtype=dtype)
        rows = max(1, 2**22 // len(total))
        flat = flat_codes(codebook, indices).split(rows)
        # Products, because index_add_ is not deterministic on CUDA.
        for codewords, values in zip(flat, difference.flatten(0, -2).split(rows), strict=True):
            total += functional.one_hot(codewords, len(total)).to(dtype).T @ values
        grad_codebook = (-codebook_weight * total).view(codebook.shape).to(codebook.dtype)
    return grad_x, grad_codebook
