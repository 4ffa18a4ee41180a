# SPDX-License-Identifier: Apache-2.0
"""The options of the benchmarks, and what a run on a CUDA device asks for."""

import time

import common
import pytest

import avskernels

# New kernels may make the device unusable for the process; compiling is slow.
LAST = {"cuda": 1, "compiled": 2}

ENDS = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where to run: cpu or cuda (cpu)")
    parser.addoption(
        "--budget", type=float, default=float("inf"), help="seconds after which cells are skipped"
    )


def pytest_configure(config):
    try:
        common.use(config.getoption("--device"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[ENDS] = time.monotonic() + config.getoption("--budget")


def pytest_collection_modifyitems(items):
    if common.device.type == "cuda":
        items.sort(key=lambda item: LAST.get(item.callspec.params["variant"], 0))


def pytest_runtest_setup(item):
    if time.monotonic() > item.config.stash[ENDS]:
        pytest.skip("the time budget is spent")


@pytest.fixture(autouse=True)
def kernels_in_cuda(request):
    """Let the kernels in CUDA C++ serve CUDA tensors while the variant ``cuda`` is measured."""
    avskernels.use_cuda_cpp(request.node.callspec.params["variant"] == "cuda")
    yield
    avskernels.use_cuda_cpp(False)
