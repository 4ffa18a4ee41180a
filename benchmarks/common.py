"""What every benchmark shares: cases, variants, timing, peak memory.

A file ``bench_<op>.py`` names its ``OPERATOR``, lists ``CASES`` and builds ``VARIANTS`` with
:func:`variants`; its one test function is parametrized by :func:`grid` and calls :func:`measure`.
``report.py`` reads the same names for the short table of ``make demo``.
"""

import contextlib
import ctypes
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.utils import _pytree as pytree

SECONDS_A_CELL = 2.0

# glibc keeps what is freed (up to 32 MiB a piece) instead of returning it to the system, for all
# variants alike: otherwise what ran before decides whether each call pays for page faults, and at
# one clip's 16 MB these take longer than the kernels. Larger outputs pay for them always.
with contextlib.suppress(OSError, AttributeError):
    for _parameter, _value in ((-1, 2**31 - 1), (-3, 2**25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        ctypes.CDLL(None).mallopt(_parameter, _value)
FEWEST_ROUNDS = 3  # behind three passes that are not timed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One problem size.

    ``arguments(dtype)`` builds the positional inputs. ``bytes`` and ``flops`` bound the forward
    pass in float32: what must be moved, and what must be computed. ``demo`` puts the case into the
    short table; ``modes`` and ``dtypes`` say what is timed.
    """

    name: str
    arguments: Callable[[torch.dtype], tuple]
    bytes: int
    flops: int
    modes: tuple[str, ...] = ("forward", "forward+backward")
    dtypes: tuple[str, ...] = ("float32",)
    demo: bool = False


def variants(*, eager, algebra, avskernels, **peers):
    """Name the functions that compute the same thing; ``compiled`` is torch.compile of eager."""
    return {
        "eager": eager,
        "compiled": torch.compile(eager),
        "algebra": algebra,
        "avskernels": avskernels,
        **peers,
    }


def grid(cases, functions, forward_only=()):
    """Parametrize a test by (case, mode, dtype, variant)."""
    cells = [
        pytest.param(case, mode, dtype, variant, id=f"{case.name}-{mode}-{dtype}-{variant}")
        for case in cases
        for mode, dtype, variant in itertools.product(case.modes, case.dtypes, functions)
        if mode == "forward" or variant not in forward_only
    ]
    return pytest.mark.parametrize(("case", "mode", "dtype", "variant"), cells)


def step_of(function, case, mode, dtype):
    """Return a callable without arguments that runs one forward (and backward) pass."""
    args = case.arguments(DTYPES[dtype])
    if mode == "forward":
        args = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, args)

        def forward():
            with torch.no_grad():
                return function(*args)

        return forward

    leaves = [leaf for leaf in pytree.tree_leaves(args) if _differentiable(leaf)]
    for leaf in leaves:
        leaf.requires_grad_()
    cotangents = []

    def forward_backward():
        outputs = [leaf for leaf in pytree.tree_leaves(function(*args)) if _has_grad(leaf)]
        if not cotangents:
            cotangents.extend(torch.randn_like(out) for out in outputs)
        return torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)

    return forward_backward


def measure(benchmark, function, case, mode, dtype):
    """Time one cell with pytest-benchmark and attach what the report needs."""
    step = step_of(function, case, mode, dtype)
    step()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    rounds = int(min(max(SECONDS_A_CELL / max(seconds, 1e-6), FEWEST_ROUNDS), 1000))
    benchmark.extra_info |= {
        "case": case.name,
        "mode": mode,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "bytes": case.bytes,
        "flops": case.flops,
        "peak_bytes": peak_memory(step),
    }
    benchmark.pedantic(step, rounds=rounds, iterations=1)


def median_seconds(step, seconds=1.0):
    """Return the median time of a step, measured for about ``seconds``."""
    step()
    times, started = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - started < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory(step):
    """Return how many bytes the resident set grows at most while a step runs (Linux; else None)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        before = _status_bytes("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM
        result = step()
        peak = _status_bytes("VmHWM")
        del result
        return max(0, peak - before)
    return None


def _status_bytes(key):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024


def _differentiable(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _has_grad(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad
