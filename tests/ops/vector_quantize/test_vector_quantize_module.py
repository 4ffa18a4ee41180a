# SPDX-License-Identifier: Apache-2.0
"""VectorQuantizer and ProductQuantizer; the operator under them has its own tests."""

import pytest
import torch
from checks import assert_bit_equal, threads
from torch import distributed as dist
from torch import multiprocessing

from avskernels import vector_quantize
from avskernels.core.testing import assert_close
from avskernels.nn import ProductQuantizer, VectorQuantizer

UPDATES = ["gradient", "ema", "frozen"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def moving_average_oracle(codebook, batches, decay):
    """One codeword and one row at a time, in float64."""
    codebook = codebook.double().clone()
    counts = torch.zeros(len(codebook), dtype=torch.float64)
    sums = torch.zeros_like(codebook)
    for batch in batches:
        nearest = torch.cdist(batch.double(), codebook).argmin(1)
        for k in range(len(codebook)):
            rows = batch.double()[nearest == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(rows)
            sums[k] = decay * sums[k] + (1 - decay) * rows.sum(0)
            if counts[k] > 0:
                codebook[k] = sums[k] / counts[k]
    return codebook


@pytest.mark.parametrize("update", UPDATES)
def test_forward_is_the_operator(update):
    quantizer = VectorQuantizer(6, 4, update=update, commitment_weight=0.7, codebook_weight=2.0)
    x = torch.randn(3, 5, 4)
    expected = vector_quantize(
        x,
        quantizer.codebook.detach().clone(),
        commitment_weight=0.7,
        codebook_weight=2.0 if update == "gradient" else 0.0,
    )
    for one, other in zip(quantizer(x), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("update", UPDATES)
def test_only_what_learns_is_a_parameter_and_moves(update):
    quantizer = VectorQuantizer(6, 4, update=update)
    before = quantizer.codebook.detach().clone()
    assert len(list(quantizer.parameters())) == (update == "gradient")
    x = torch.randn(9, 4, requires_grad=True)
    quantizer(x).loss.backward()
    assert x.grad.abs().sum() > 0
    if update == "gradient":
        assert quantizer.codebook.grad.abs().sum() > 0
    assert torch.equal(quantizer.codebook, before) == (update != "ema")


@pytest.mark.parametrize("update", UPDATES)
def test_commit_only_and_evaluation_move_nothing(update):
    quantizer = VectorQuantizer(6, 4, update=update, restart_after=1)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    x = torch.randn(9, 4, requires_grad=True)
    quantizer(x, commit_only=True).loss.backward()
    assert x.grad.abs().sum() > 0
    quantizer.eval()(x.detach())
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert quantizer.codebook.grad is None


def test_moving_average():
    quantizer = VectorQuantizer(5, 3, update="ema", decay=0.8)
    batches = torch.randn(4, 20, 3)
    expected = moving_average_oracle(quantizer.codebook, batches, 0.8)
    for batch in batches:
        quantizer(batch)
    assert_close(quantizer.codebook, expected)


def test_moving_average_of_directions():
    quantizer = VectorQuantizer(1, 3, update="ema", metric="cosine", decay=0.0)
    x = torch.randn(20, 3)
    quantizer(x)
    expected = torch.nn.functional.normalize(x.double(), dim=-1).mean(0, keepdim=True)
    assert_close(quantizer.codebook, expected)


def test_usage_and_perplexity():
    quantizer = VectorQuantizer(4, 2)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.eye(2).repeat(2, 1) * torch.tensor([[1.0], [1], [-1], [-1]]))
    assert quantizer.perplexity() == 1
    quantizer(quantizer.codebook.detach()[[0, 0, 2, 2]])
    assert quantizer.usage.tolist() == [2, 0, 2, 0]
    assert_close(quantizer.perplexity(), torch.tensor(2.0))
    quantizer.reset_usage()
    assert quantizer.usage.sum() == 0


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_dead_codewords_restart_from_rows(update):
    quantizer = VectorQuantizer(4, 3, update=update, restart_after=2)
    with torch.no_grad():
        quantizer.codebook[1:] = 1e3
    x = torch.randn(10, 3)
    quantizer(x)
    assert (quantizer.codebook[1:] == 1e3).all()
    quantizer(x)
    for codeword in quantizer.codebook[1:]:
        assert (codeword == x).all(1).any()
    quantizer(x)
    assert (quantizer.usage > 0).all()


@pytest.mark.parametrize("init", ["normal", "uniform", "xavier"])
def test_initialisation_spreads_codewords(init):
    codebook = VectorQuantizer(64, 32, init=init).codebook
    expected = {"normal": 1.0, "uniform": 1 / (64 * 3**0.5), "xavier": (2 / 96) ** 0.5}[init]
    assert codebook.std().item() == pytest.approx(expected, rel=0.1)


def test_kmeans_finds_separated_clusters():
    centres = 100 * torch.eye(4)
    x = centres.repeat(25, 1) + torch.randn(100, 4)
    quantizer = VectorQuantizer(30, 4, init="kmeans", update="frozen")
    assert quantizer(x, commit_only=True).loss > 100
    assert quantizer(x).loss < 1
    clustered = quantizer.codebook.clone()
    quantizer(torch.randn(100, 4))
    assert torch.equal(quantizer.codebook, clustered)


def test_kmeans_with_fewer_rows_than_codewords():
    quantizer = VectorQuantizer(8, 2, init="kmeans")
    assert quantizer(torch.empty(0, 2)).indices.shape == (0,)
    assert quantizer(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).loss == 0


@pytest.mark.parametrize("update", UPDATES)
def test_state_dict_round_trip_continues_the_run(update):
    arguments = {"update": update, "init": "kmeans", "restart_after": 3}
    first, second = VectorQuantizer(5, 3, **arguments), VectorQuantizer(5, 3, **arguments)
    first(torch.randn(20, 3))
    second.load_state_dict(first.state_dict())
    x = torch.randn(20, 3)
    for quantizer in (first, second):
        torch.manual_seed(1)
        quantizer(x)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_input_of_another_dtype(dtype):
    quantizer = VectorQuantizer(5, 3, update="ema", metric="cosine")
    result = quantizer(torch.randn(7, 3, dtype=dtype))
    assert result.quantized.dtype == dtype
    assert quantizer.codebook.dtype == torch.float32


def test_product_quantizer_shares_its_codebook():
    quantizer = ProductQuantizer(3, 6, num_codewords=5, dim=4, commitment_weight=0.5)
    x = torch.randn(2, 7, 6)
    quantized, indices, loss = quantizer(x)
    weights = quantizer.transforms.weight.view(3, 4, 6)
    biases = quantizer.transforms.bias.view(3, 4)
    for i in range(3):
        part = x @ weights[i].T + biases[i]
        expected = vector_quantize(part, quantizer.quantizer.codebook)
        assert torch.equal(indices[..., i], expected.indices)
        assert_close(quantized[..., 4 * i : 4 * i + 4], expected.quantized)
    loss.backward()
    assert quantizer.transforms.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"update": "adam"}, "expected update to be one of .*, got 'adam'"),
        ({"init": "zeros"}, "expected init to be one of .*, got 'zeros'"),
        ({"decay": 1.0}, r"expected decay in \[0, 1\), got 1.0"),
        ({"restart_after": -1}, "expected restart_after at least 0, got -1"),
        ({"num_codewords": 0}, "expected num_codewords at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"num_codewords": 4, "dim": 2, **arguments})


def train_in_process(rank, world, folder, x):
    """Train on every world-th row of the batches and save the state."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    try:
        torch.manual_seed(rank)
        quantizer = VectorQuantizer(5, 3, update="ema", init="kmeans", decay=0.5, restart_after=2)
        for batch in x:
            quantizer(batch[rank::world])
        torch.save(quantizer.state_dict(), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_processes_keep_one_codebook(tmp_path):
    x = torch.randn(3, 40, 3)
    other = multiprocessing.get_context("spawn").Process(
        target=train_in_process, args=(1, 2, tmp_path, x)
    )
    other.start()
    with threads(1):
        train_in_process(0, 2, tmp_path, x)
    other.join()
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert_bit_equal(states[0], states[1])
    assert states[0]["usage"].sum() == 120
    assert states[0]["clustered"]


def test_backward_after_a_restart_sees_the_codebook_of_its_forward():
    quantizer = VectorQuantizer(2, 1, restart_after=1, commitment_weight=1.0, reduction="sum")
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0], [9.0]]))
    x = torch.tensor([[1.0]], requires_grad=True)
    quantizer(x).loss.backward()
    assert x.grad.item() == 2
    assert quantizer.codebook.grad.flatten().tolist() == [-2, 0]
    assert quantizer.codebook.flatten().tolist() == [0, 1]
