"""Load the installed library under this environment's torch and compare a few results.

Run by ``make abi`` in environments of the oldest and other supported versions of torch.
"""

import sys

import torch

import avskernels


def main():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 64, generator=generator).requires_grad_()
    codebook = torch.randn(50, 64, generator=generator).requires_grad_()
    out = avskernels.vector_quantize(x, codebook)
    assert torch.equal(out.indices, torch.cdist(x.double(), codebook.double()).argmin(1))
    (out.quantized.square().sum() + out.loss).backward()
    reference_x, reference_codebook = (t.detach().clone().requires_grad_() for t in (x, codebook))
    expected = avskernels.vector_quantize(reference_x, reference_codebook, backend="reference")
    (expected.quantized.square().sum() + expected.loss).backward()
    torch.testing.assert_close(x.grad, reference_x.grad)
    torch.testing.assert_close(codebook.grad, reference_codebook.grad)
    compiled = torch.compile(avskernels.vector_quantize, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, codebook).loss, out.loss)
    sys.stdout.write(f"torch {torch.__version__}: {avskernels.build_info()}\n")


if __name__ == "__main__":
    main()
