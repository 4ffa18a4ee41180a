"""The library as a whole: slices, schemas, build information, the backend switch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_cuda import ARGUMENTS as ON_CUDA
from torch._dynamo.testing import CompileCounter

import avskernels
from avskernels import _C

ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "tests" / "schemas.txt"


def registered_schemas():
    names = [
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("avskernels::")
    ]
    return sorted(str(torch._C._get_schema(name, "")) for name in names)


def slice_name(op):
    """The stem of an operator's files: a backward operator lives with its forward one."""
    stem = op.removeprefix("avskernels::").removeprefix("_")
    stem = stem.removesuffix("_cuda").removesuffix("_backward")
    parts = {
        "nearest_codeword": "vector_quantize",
        "semantic_recombination_product": "semantic_recombination",
        "tpavi_scores": "tpavi",
        "tpavi_fuse": "tpavi",
    }
    return parts.get(stem, stem)


def public_operators():
    return sorted({slice_name(schema.split("(")[0]) for schema in registered_schemas()})


def test_schemas_are_those_of_the_golden_file():
    # The boxed C++ functions trust the schema, so a change of either must be seen.
    assert registered_schemas() == SCHEMAS.read_text().splitlines()


@pytest.mark.parametrize("op", public_operators())
def test_operator_has_its_slice(op):
    for path in (
        f"avskernels/{op}.py",
        f"avskernels/reference/{op}.py",
        f"tests/test_{op}.py",
    ):
        assert (ROOT / path).is_file(), f"{op} lacks {path}"
    assert hasattr(avskernels, op)
    assert hasattr(avskernels.reference, op)
    assert op in ON_CUDA


@pytest.mark.parametrize("folder", sorted(p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()))
def test_csrc_folder_is_an_operator(folder):
    assert folder == "common" or folder in public_operators()


def test_build_info():
    info = avskernels.build_info()
    assert info["torch_target"] == "2.11"
    assert info["torch"] == torch.__version__
    assert info["cpu_active"] == info["cpu_detected"]


def test_cpu_capability_can_be_lowered(isa):
    assert avskernels.build_info()["cpu_active"] == isa


def test_unknown_cpu_capability():
    with pytest.raises(ValueError, match="expected portable"):
        _C.set_cpu_capability("sse9")


def test_unknown_backend():
    x = torch.eye(2)
    with pytest.raises(ValueError, match=r"backend: expected one of .*, got 'fast'"):
        avskernels.vector_quantize(x, x, backend="fast")


def test_compiled_code_follows_the_backend():
    graphs = CompileCounter()
    x = torch.eye(2)
    compiled = torch.compile(avskernels.attention_pool, fullgraph=True, backend=graphs)
    compiled(x[None], x[None])
    kernel = graphs.op_count
    with avskernels.backend("reference"):
        compiled(x[None], x[None])
    assert graphs.op_count > kernel + 1
    compiled(x[None], x[None])
    assert graphs.frame_count == 2


def test_backend_of_another_thread():
    with avskernels.backend("kernel"), ThreadPoolExecutor(1) as pool:
        x = torch.empty(3, 2, device="meta")
        pool.submit(avskernels.vector_quantize, x, x).result()


def test_kernel_backend_refuses_a_device_without_kernel():
    x = torch.empty(3, 2, device="meta")
    with pytest.raises(RuntimeError, match="expected a device with a kernel, got meta"):
        avskernels.vector_quantize(x, x, backend="kernel")
