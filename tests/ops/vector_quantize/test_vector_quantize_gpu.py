# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: interpreted on the CPU, or on a CUDA device where there is one."""

import pytest
import torch
from checks import launch
from ops.vector_quantize.cases import oracle_distances, published, sample

from avskernels.core.testing import assert_close

kernels = pytest.importorskip("avskernels.ops.vector_quantize.triton")
# The interpreter computes with NumPy, which announces what the kernels expect.
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide):RuntimeWarning"),
]


@pytest.fixture(params=["screen", "scan"])
def path(request, monkeypatch):
    """Send small problems through the screening too."""
    if request.param == "screen":
        monkeypatch.setattr(kernels, "SMALL", 0)


@pytest.fixture
def screening_alone(monkeypatch):
    """Leave out the scan of what the screening does not certify."""

    class NoKernel:
        def __getitem__(self, grid):
            return lambda *_: None

    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(kernels, "scan_kernel", NoKernel())


def check_exact(x, codebook):
    indices, distance = launch(kernels.nearest, x, codebook)
    expected = oracle_distances(x, codebook)
    assert torch.equal(indices, expected.argmin(-1))
    assert_close(distance, expected.amin(-1).to(distance.dtype))  # may overflow


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ((1, 0, 1, 1), torch.float32),
        ((0, 0, 5, 8), torch.float32),
        ((65, 0, 65, 17), torch.float32),
        ((9, 2, 67, 31), torch.float32),
        ((5, 0, 70, 270), torch.float32),
        ((9, 0, 40, 32), torch.float16),
        ((9, 0, 40, 32), torch.bfloat16),
        ((3, 2, 12, 5), torch.float64),
    ],
)
def test_nearest_codeword_is_exact(case, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", 0)
    check_exact(*sample(*case, dtype=dtype))


def test_screening_certifies_almost_all_rows(screening_alone):
    x, codebook = sample(64, 0, 300, 40)
    indices, _ = launch(kernels.nearest, x, codebook)
    certified = indices >= 0
    assert certified.float().mean() > 0.9
    expected = oracle_distances(x, codebook).argmin(-1)
    assert torch.equal(indices[certified], expected[certified])


def test_ties_duplicates_and_shifts(path):
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randint(-1, 2, (70, 5), generator=generator).float()
    check_exact(torch.randint(-1, 2, (20, 5), generator=generator).float(), codebook)
    x, codebook = sample(10, 0, 70, 24)
    check_exact(x + 1e4, codebook + 1e4)
    check_exact(x * 1e25, codebook * 1e25)
    check_exact(x * torch.logspace(-6, 6, 24), codebook * torch.logspace(-6, 6, 24))


def test_rows_and_codewords_that_are_not_finite(path):
    x, codebook = sample(20, 0, 30, 8)
    x[3, 5], x[7, 0] = torch.nan, torch.inf
    codebook[:10, 2] = torch.nan
    codebook[12, 1] = -torch.inf
    indices, distance = launch(kernels.nearest, x, codebook)
    assert indices[[3, 7]].tolist() == [0, 0]
    assert distance[[3, 7]].isnan().all()
    others = torch.ones(20, dtype=torch.bool)
    others[[3, 7]] = False
    expected = oracle_distances(x, codebook).nan_to_num(nan=torch.inf)
    assert torch.equal(indices[others], expected.argmin(-1)[others])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_outputs_and_layouts(reduction, path):
    x, codebook = sample(8, 2, 20, 6)
    expected = published(x.double(), codebook.double(), 0.3, 0.9, reduction)
    channel_first = x.view(2, 1, 4, 2, 6).permute(3, 4, 0, 1, 2).contiguous().permute(2, 3, 4, 0, 1)
    for variant in (x, channel_first, x.repeat_interleave(2, -1)[..., ::2]):
        arguments = variant, codebook, 0.3, 0.9, reduction
        quantized, indices, loss = launch(kernels.forward, *arguments)
        assert_close(quantized.reshape(x.shape), expected[0])
        assert torch.equal(indices.reshape(8, 2), expected[1])
        assert_close(loss.reshape(expected[2].shape), expected[2])
