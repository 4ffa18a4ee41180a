# SPDX-License-Identifier: Apache-2.0
import numpy
import pytest
import torch
from ops.linear_assignment.cases import CASES, FLOATS, KINDS, random_costs
from scipy.optimize import linear_sum_assignment

import avskernels
from avskernels import _C


def total(cost, columns):
    rows = (columns >= 0).nonzero().flatten()
    return cost.double()[rows, columns[rows]].sum().item()


def assert_matching(columns, pairs):
    used = columns[columns >= 0].tolist()
    assert len(used) == pairs
    assert len(set(used)) == pairs


def assert_optimal(cost, columns):
    assert_matching(columns, min(cost.shape))
    rows, expected = linear_sum_assignment(cost.double().numpy())
    best = cost.double().numpy()[rows, expected].sum()
    assert total(cost, columns) == pytest.approx(best, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("size", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"], indirect=True)
def test_total_is_scipys(size, dtype, isa):
    generator = torch.Generator().manual_seed(1)
    for kind in KINDS:
        if dtype == torch.float16 and kind == "offset 1e6":  # beyond its range
            continue
        cost = random_costs(kind, size, generator, dtype)
        columns = avskernels.linear_assignment(cost, backend="kernel")
        assert columns.shape == size[:2]
        assert columns.dtype == torch.int64
        for problem, found in zip(cost, columns, strict=True):
            assert_optimal(problem, found)


def test_ten_thousand_problems():
    generator = torch.Generator().manual_seed(2)
    problems = 10
    for trial in range(1000):
        rows, cols = torch.randint(1, 25, (2,), generator=generator).tolist()
        dtype = (torch.float32, torch.float64)[trial % 2]
        cost = random_costs(KINDS[trial % len(KINDS)], (problems, rows, cols), generator, dtype)
        num_rows = torch.randint(0, rows + 1, (problems,), generator=generator)
        num_cols = torch.randint(0, cols + 1, (problems,), generator=generator)
        ragged = trial % 3 == 0
        sizes = {"num_rows": num_rows, "num_cols": num_cols} if ragged else {}
        columns = avskernels.linear_assignment(cost, **sizes)
        for b in range(problems):
            r, c = (int(num_rows[b]), int(num_cols[b])) if ragged else (rows, cols)
            assert (columns[b, r:] == -1).all()
            assert_optimal(cost[b, :r, :c], columns[b, :r])


@pytest.mark.parametrize("shape", [(4, 300, 100), (2, 200, 300), (2, 300, 300), (1, 500, 500)])
@pytest.mark.parametrize("kind", KINDS)
def test_large_problems(shape, kind):
    cost = random_costs(kind, shape, torch.Generator().manual_seed(3))
    for problem, found in zip(cost, avskernels.linear_assignment(cost), strict=True):
        assert_optimal(problem, found)


def best_with_policy(cost):
    """The matching's (pairs, preferred pairs, sum of finite costs), by trying every one."""
    best = (0, 0, 0.0)

    def extend(row, used, pairs, preferred, value):
        nonlocal best
        if row == cost.shape[0]:
            found = (pairs, preferred, value)
            if (-pairs, -preferred, value) < (-best[0], -best[1], best[2]):
                best = found
            return
        extend(row + 1, used, pairs, preferred, value)
        for column, entry in enumerate(cost[row].tolist()):
            if column not in used and entry == entry and entry != numpy.inf:
                minus = entry == -numpy.inf
                extend(
                    row + 1,
                    used | {column},
                    pairs + 1,
                    preferred + minus,
                    value + (0 if minus else entry),
                )

    extend(0, frozenset(), 0, 0, 0.0)
    return best


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 3), (2, 5), (5, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"], indirect=True)
def test_non_finite_costs(shape, dtype, isa):
    generator = torch.Generator().manual_seed(4)
    extremes = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    for trial in range(20):
        cost = torch.rand(shape, generator=generator, dtype=dtype)
        chosen = torch.rand(shape, generator=generator) < (0.3, 0.6, 0.9)[trial % 3]
        kinds = extremes[torch.randint(0, 3 if trial % 2 else 2, shape, generator=generator)]
        cost = torch.where(chosen, kinds, cost)
        columns = avskernels.linear_assignment(cost.unsqueeze(0))[0]
        rows = (columns >= 0).nonzero().flatten()
        entries = cost[rows, columns[rows]].double()
        finite = entries.isfinite()
        found = (len(rows), int((entries == -torch.inf).sum()), entries[finite].sum().item())
        assert not entries.isnan().any()
        assert not (entries == torch.inf).any()
        assert len(set(columns[rows].tolist())) == len(rows)
        assert found == pytest.approx(best_with_policy(cost))


@pytest.mark.parametrize("shape", [(8, 20, 30), (8, 30, 20), (8, 40, 40), (8, 7, 7)])
@pytest.mark.parametrize("kind", ["integer", "equal", "uniform"])
@pytest.mark.parametrize("isa", ["avx2", "avx512"], indirect=True)
def test_instruction_sets_break_ties_alike(kind, shape, isa):
    cost = random_costs(kind, shape, torch.Generator().manual_seed(8))
    columns = avskernels.linear_assignment(cost)
    _C.set_cpu_capability("portable")  # the fixture restores it
    assert torch.equal(avskernels.linear_assignment(cost), columns)


def test_a_bad_problem_leaves_the_others_alone():
    cost = random_costs("uniform", (3, 20, 7), torch.Generator().manual_seed(5))
    expected = avskernels.linear_assignment(cost)
    cost[1, 3] = torch.nan
    cost[1, :, 2] = torch.inf
    columns = avskernels.linear_assignment(cost)
    assert torch.equal(columns[[0, 2]], expected[[0, 2]])
    assert columns[1, 3] == -1
    assert_matching(columns[1], 6)
    assert (avskernels.linear_assignment(torch.full((2, 9, 4), torch.nan)) == -1).all()


def test_extreme_magnitudes():
    largest = torch.finfo(torch.float64).max
    cost = torch.tensor([[[largest, -largest], [largest, largest / 2]]], dtype=torch.float64)
    assert avskernels.linear_assignment(cost).tolist() == [[1, 0]]
    tiny = torch.finfo(torch.float64).tiny
    cost = torch.tensor([[[2 * tiny, tiny], [tiny, 2 * tiny]]], dtype=torch.float64)
    assert avskernels.linear_assignment(cost).tolist() == [[1, 0]]
    cost = torch.tensor([[[1e30, 1.0], [1e30, 2.0]]])
    assert_optimal(cost[0], avskernels.linear_assignment(cost)[0])


def test_agrees_with_the_reference():
    cost = random_costs("uniform", (3, 8, 5), torch.Generator().manual_seed(7))
    cost[0, :3] = torch.nan
    cost[1, 2, 4] = -torch.inf
    sizes = {"num_rows": torch.tensor([8, 7, 3]), "num_cols": torch.tensor([5, 5, 4])}
    actual = avskernels.linear_assignment(cost, **sizes)
    assert torch.equal(actual, avskernels.linear_assignment(cost, **sizes, backend="reference"))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_sizes_out_of_range(wrong):
    with pytest.raises(RuntimeError) as error:
        avskernels.linear_assignment(torch.zeros(1, 3, 4), num_cols=torch.tensor([wrong]))
    assert str(error.value) == f"linear_assignment: expected num_cols in 0..4, got {wrong}"


def test_fallback_serves_other_devices():
    cost = torch.zeros(2, 3, 4, device="meta")
    with pytest.raises(RuntimeError, match="expected a device with a kernel, got meta"):
        avskernels.linear_assignment(cost, backend="kernel")
