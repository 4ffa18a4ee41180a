# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: cases, variants, timing, peak memory.

A file ``bench_<op>.py`` names its ``OPERATOR``, lists ``CASES`` and builds ``VARIANTS`` with
:func:`variants`; its one test function is parametrized by :func:`grid` and calls :func:`measure`.
``report.py`` reads the same names for the short table of ``make demo``.

Times are those of a caller who waits for the result. On a CUDA device every round ends with a
synchronization, so it counts launches and copies too, which events would leave out; the time of the
device alone is measured beside it (:func:`device_seconds`).
"""

import contextlib
import ctypes
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import scipy.stats
import torch
from torch.utils import _pytree as pytree

SECONDS_PER_CELL = {"cpu": 2.0, "cuda": 0.3}
CYCLES_PER_SECOND = 2e9  # of a GPU, about

device = torch.device("cpu")

# glibc keeps freed blocks of up to 32 MiB instead of returning them to the system, for all variants
# alike: otherwise what ran before decides whether a call pays for page faults, which for one clip's
# 16 MB take longer than the kernels. Larger outputs always pay for them.
with contextlib.suppress(OSError, AttributeError):
    for _parameter, _value in ((-1, 2**31 - 1), (-3, 2**25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        ctypes.CDLL(None).mallopt(_parameter, _value)
FEWEST_ROUNDS = 3  # after three passes that are not timed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def use(name):
    """Run on this device, "cpu" or "cuda"; to be called before a benchmark file is imported."""
    global device
    if name not in SECONDS_PER_CELL or (name == "cuda" and not torch.cuda.is_available()):
        present = (
            "cpu or cuda" if torch.cuda.is_available() else "cpu, since no CUDA device is here"
        )
        raise ValueError(f"benchmarks: expected --device to be {present}, got {name!r}")
    device = torch.device(name)


def device_name():
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


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


def in_cuda(function):
    """Name ``function`` a second time on a CUDA device: with its kernels in CUDA C++."""
    return {"cuda": function} if device.type == "cuda" else {}


def grid(cases, functions, forward_only=(), backward_only=()):
    """Parametrize a test by (case, mode, dtype, variant)."""
    cells = [
        pytest.param(case, mode, dtype, variant, id=f"{case.name}-{mode}-{dtype}-{variant}")
        for case in cases
        for mode, dtype, variant in itertools.product(case.modes, case.dtypes, functions)
        if variant not in (backward_only if mode == "forward" else forward_only)
    ]
    return pytest.mark.parametrize(("case", "mode", "dtype", "variant"), cells)


def step_of(function, case, mode, dtype):
    """Return a callable without arguments that runs one forward (and backward) pass."""
    args = pytree.tree_map(_to_device, case.arguments(DTYPES[dtype]))
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
        outputs = [leaf for leaf in pytree.tree_leaves(function(*args)) if has_grad(leaf)]
        if not cotangents:
            cotangents.extend(torch.randn_like(out) for out in outputs)
        return torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)

    return forward_backward


def finished(step):
    """Return a step that ends when its work is done, which on a CUDA device is after it returns."""
    if device.type == "cpu":
        return step

    def run():
        result = step()
        torch.cuda.synchronize()
        return result

    return run


def measure(benchmark, function, case, mode, dtype):
    """Time one cell with pytest-benchmark and attach what the report needs."""
    step = step_of(function, case, mode, dtype)
    whole = finished(step)
    whole()
    seconds, _ = timed(whole)
    rounds = SECONDS_PER_CELL[device.type] / max(seconds, 1e-6)
    rounds = int(min(max(rounds, FEWEST_ROUNDS), 1000))
    on_cuda = device.type == "cuda"
    benchmark.extra_info |= {
        "case": case.name,
        "mode": mode,
        "dtype": dtype,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "bytes": case.bytes,
        "flops": case.flops,
        "peak_bytes": peak_cuda_memory(step) if on_cuda else peak_memory(step),
        "device_seconds": device_seconds(step, seconds) if on_cuda else None,
    }
    # A GPU raises its clock while it works.
    benchmark.pedantic(whole, rounds=rounds, iterations=1, warmup_rounds=on_cuda * rounds // 4)


def measure_in_turn(benchmark, steps, *, case, part, rounds):
    """Time two variants in turn, since they differ by less than the machine drifts.

    ``steps`` are ours and its baseline; a step returns the seconds of one ``part`` of itself. The
    time saved is the median difference between a step and the mean of the baseline's steps before
    and after it, with an interval of 95 % confidence.
    """
    ours, baseline = steps
    times = {variant: [] for variant in steps}  # (seconds of the step, of the part)

    def run(variant):
        times[variant].append(timed(finished(steps[variant])))

    for variant in (ours, baseline):
        run(variant)
        times[variant].clear()
    benchmark.pedantic(lambda: run(ours), setup=lambda: run(baseline), rounds=rounds, iterations=1)
    run(baseline)
    rows = []
    for i, mode in enumerate(("whole", part)):
        own, other = ([seconds[i] for seconds in times[variant]] for variant in steps)
        between = zip(itertools.pairwise(other), own, strict=True)
        saved = [(before + after) / 2 - seconds for (before, after), seconds in between]
        interval = scipy.stats.quantile_test(saved).confidence_interval(0.95)
        rows += [
            {"variant": variant, "mode": mode, "median_ms": round(1e3 * statistics.median(each), 3)}
            for variant, each in ((ours, own), (baseline, other))
        ]
        rows[-2]["saved_ms"] = [
            round(1e3 * ms, 3) for ms in (statistics.median(saved), interval.low, interval.high)
        ]
    benchmark.extra_info |= {
        "case": case,
        "dtype": "float32",
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "in_turn": rows,
    }


def timed(step):
    """Return the seconds that a step takes, and its result."""
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def median_seconds(step, seconds=1.0):
    """Return the median time of a step, measured for about ``seconds``."""
    step = finished(step)
    step()
    times, started = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - started < seconds:
        times.append(timed(step)[0])
    return statistics.median(times)


def peak_memory(step):
    """Return by how many bytes the resident set grows in a step at most (Linux; else None)."""
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


def peak_cuda_memory(step):
    """Return the most bytes that torch's allocator has handed out at a time in a step."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def device_seconds(step, seconds):
    """Return the median time that the device takes for a step when it never waits for the host.

    The device is kept busy for longer than ``seconds``, which the host takes for a step, so that
    all of the step is queued before it starts. For a step that itself waits for the device, as a
    copy to the CPU does, the host's time is included.
    """
    times = []
    for _ in range(7 if seconds < 0.03 else 3):
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(CYCLES_PER_SECOND * (1.5 * seconds + 1e-4)))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _to_device(leaf):
    return leaf.to(device) if hasattr(leaf, "to") else leaf


def _status_bytes(key):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024


def _differentiable(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def has_grad(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad
