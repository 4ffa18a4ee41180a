"""The library as a whole: slices, schemas, build information, the backend switch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import readme
import torch
from torch._dynamo.testing import CompileCounter

import avskernels
from avskernels import _C

ROOT = Path(__file__).parent.parent


def registered_schemas():
    names = [
        name
        for name in torch._C._dispatch_get_all_op_names()
        # The CUDA library, where it is loaded, adds kernels with the arguments of others.
        if name.startswith("avskernels::") and not name.endswith("_cuda")
    ]
    return sorted(str(torch._C._get_schema(name, "")) for name in names)


def test_schemas_are_those_of_the_golden_files():
    """A change of an operator's arguments is seen, and is a change of its room's golden file."""
    golden = [path.read_text().splitlines() for path in ROOT.glob("tests/ops/*/schemas.txt")]
    lines = {line for lines in golden for line in lines}
    registered = set(registered_schemas())
    assert lines == registered, f"no longer: {lines - registered}, not yet: {registered - lines}"


def test_the_readme_has_the_table_of_who_computes():
    text = (ROOT / "README.md").read_text()
    assert readme.table() in text, "make readme writes it"


def test_specification_errors():
    text = "f(\n  Tensor x: floating [B]\n  float\n) ->\n  Tensor y: floating [B]"
    with pytest.raises(RuntimeError, match=r"expected a type, a name, .*got 'float'"):
        _C.parse_specification(text)
    with pytest.raises(RuntimeError, match="expected a dtype, got 'Tensor x: complex"):
        _C.parse_specification("f(\n  Tensor x: complex [B]\n) ->\n  Tensor y: floating [B]")
    with pytest.raises(RuntimeError, match=r"expected the sizes in B\*C .*got 'B'"):
        _C.parse_specification("f(\n  Tensor x: floating [B, B*C]\n) ->\n  Tensor y: floating [B]")
    with pytest.raises(RuntimeError, match=r"specification of f: expected the sizes in K"):
        _C.parse_specification("f(\n  Tensor x: floating [B]\n) ->\n  Tensor y: floating [K]")
    with pytest.raises(RuntimeError, match="expected an argument, got 'z'"):
        _C.parse_specification("f(\n  Tensor x: as(z) [B]\n) ->\n  Tensor y: floating [B]")


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


def test_explain():
    explanation = avskernels.explain(
        avskernels.attention_pool, torch.ones(1, 2, 3), torch.ones(1, 1, 2)
    )
    assert (explanation.op, explanation.device, explanation.chosen) == (
        "attention_pool",
        "cpu",
        "C++",
    )
    x = torch.empty(3, 2, device="meta")
    explanation = avskernels.explain(avskernels.vector_quantize, x, x)
    assert explanation.chosen == "plain torch"
    assert ("C++", "runs on cpu") in explanation.refused
    assert "not C++: runs on cpu" in str(explanation)
    with pytest.raises(RuntimeError, match="expected queries"):
        avskernels.explain(avskernels.attention_pool, torch.ones(1, 2, 3), torch.ones(1, 1, 3))
    with pytest.raises(TypeError, match="expected an operator of avskernels"):
        avskernels.explain(torch.add, x, x)
