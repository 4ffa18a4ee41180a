import os
import traceback

import pytest
import torch
from hypothesis import settings

from avskernels import _C

if not torch.cuda.is_available():
    # Read when a kernel is defined, so it stands before anything imports one.
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("avskernels", max_examples=30, deadline=None, derandomize=True)
settings.load_profile("avskernels")

# Imported as ops.<op>.cases; collected for their doctests, the modules of two folders would clash.
collect_ignore_glob = ["ops/*/cases*.py", "ops/*/triton_calls.py"]

ISA_LEVELS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16")


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Hold a kernel's fault against its own test, and let no other test suffer from it."""
    try:
        return (yield)
    finally:
        if torch.cuda.is_initialized():
            _finish_kernels(item)


def _finish_kernels(item):
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        # Nothing runs on this device in this process any more: xdist starts another worker.
        if "PYTEST_XDIST_WORKER" in os.environ:
            item.config.pluginmanager.getplugin("capturemanager").suspend(in_=True)
            traceback.print_exc()
            os._exit(1)
        raise


@pytest.fixture(params=ISA_LEVELS)
def isa(request):
    """Run a test once per instruction set that this machine has."""
    detected = _C.build_info()["cpu_detected"]
    if ISA_LEVELS.index(request.param) > ISA_LEVELS.index(detected):
        pytest.skip(f"this machine has {detected}, not {request.param}")
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(detected)
