"""What every operator must pass, over the cases that its folder declares.

A module of cases holds ``OP``, ``arguments(dtype)`` (a call of ``torch.ops.avskernels.<OP>``),
``GENERIC`` (such calls in float32), ``COMPILED`` (functions and their calls, of changing shapes),
``ERRORS`` (wrong calls and the sentence that each gives) and ``GRADCHECK`` (functions and float64
tensors); ``LAYOUT_COMPARE`` where strides may change bits.
"""

import inspect
from pathlib import Path

import pytest
import torch
from checks import (
    assert_bit_equal,
    check_compile,
    check_deterministic,
    check_error,
    check_layouts,
    on_device,
    opcheck,
    run_with_grads,
    tensors_of,
)
from ops.discovery import all_cases
from torch.utils import _pytree as pytree

import avskernels
from avskernels.core.operator import OPERATORS
from avskernels.testing import assert_close

ROOT = Path(__file__).parents[2]
CASES = all_cases()
DIFFERENTIABLE = [op for op in CASES if OPERATORS[op].differentiable]
PUBLIC = sorted(op for op in OPERATORS if not op.startswith("_"))


def listed(name):
    """Name every entry of a list that the modules of cases hold: (op, entry)."""
    entries = []
    for op, cases in CASES.items():
        found = getattr(cases, name, [])
        found = [found] if isinstance(found, tuple) else found
        entries += [pytest.param(op, entry, id=f"{op}-{i}") for i, entry in enumerate(found)]
    return entries


def differentiable(op, args):
    if not OPERATORS[op].differentiable:
        return args
    return pytree.tree_map_only(
        torch.Tensor,
        lambda t: t.detach().requires_grad_() if t.is_floating_point() else t,
        args,
    )


def overload(op):
    return getattr(torch.ops.avskernels, op).default


def without_gradient(op):
    """Return the operator; one that has no gradient leaves the leaves of run_with_grads alone."""
    function = overload(op)
    return function if OPERATORS[op].differentiable else torch.no_grad()(function)


def test_every_public_operator_has_cases():
    assert sorted(CASES) == PUBLIC
    for op, cases in CASES.items():
        for name in ("arguments", "GENERIC", "COMPILED", "ERRORS"):
            assert getattr(cases, name, None), f"the cases of {op} lack {name}"
        if OPERATORS[op].differentiable:
            assert getattr(cases, "GRADCHECK", None), f"the cases of {op} lack GRADCHECK"


@pytest.mark.parametrize(("op", "args"), listed("GENERIC"))
def test_opcheck(op, args):
    opcheck(op, differentiable(op, args))


@pytest.mark.parametrize(("op", "args"), listed("GENERIC"))
def test_deterministic(op, args):
    check_deterministic(without_gradient(op), args)


@pytest.mark.parametrize(("op", "args"), listed("GENERIC"))
def test_layouts(op, args):
    check_layouts(
        without_gradient(op), args, getattr(CASES[op], "LAYOUT_COMPARE", assert_bit_equal)
    )


@pytest.mark.parametrize(("op", "compiled"), listed("COMPILED"))
def test_compiles(op, compiled):
    check_compile(*compiled)


@pytest.mark.parametrize(("op", "check"), listed("GRADCHECK"))
def test_gradcheck(op, check, isa):
    function, tensors = check
    assert torch.autograd.gradcheck(function, tuple(t.detach().requires_grad_() for t in tensors))


@pytest.mark.parametrize(
    ("op", "args", "sentence"),
    [
        pytest.param(op, *entry[1:], id=f"{op}-{entry[0]}")
        for op, cases in CASES.items()
        for entry in cases.ERRORS
    ],
)
def test_errors(op, args, sentence):
    """The kernel, the fake and plain torch give one sentence."""
    check_error(overload(op), args, f"{op}: {sentence}")
    with pytest.raises(RuntimeError) as error:
        OPERATORS[op].check(args)
    assert str(error.value) == f"{op}: {sentence}"


@pytest.mark.parametrize("op", CASES)
def test_a_call_that_passed_lets_no_other_pass(op):
    """A call's shapes and dtypes are remembered, so that they are checked once."""
    for dtype in (torch.float32, torch.float64):
        OPERATORS[op]._check_once(CASES[op].arguments(dtype))
    for _, args, sentence in CASES[op].ERRORS:
        with pytest.raises(RuntimeError) as error:
            OPERATORS[op]._check_once(args)
        assert str(error.value) == f"{op}: {sentence}"


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_calls_past_torch_compute_the_same(op):
    """An operator is called past torch's layer for operators with a gradient in Python."""
    args = CASES[op].arguments(torch.float32)
    expected = run_with_grads(overload(op), args)
    assert_bit_equal(run_with_grads(OPERATORS[op], args), expected)
    with torch.no_grad():
        assert_bit_equal(tensors_of(OPERATORS[op](*args)), expected[0])


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_a_second_derivative_is_an_error(op):
    args = differentiable(op, CASES[op].arguments(torch.float32))
    leaves = [t for t in pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
    leaves = [t for t in leaves if t.requires_grad]
    for function in (overload(op), OPERATORS[op]):
        outputs = [t for t in tensors_of(function(*args)) if t.requires_grad]
        total = sum(t.square().sum() for t in outputs)
        grads = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        with pytest.raises(RuntimeError, match=f"{op}: expected to be differentiated once"):
            sum(t.square().sum() for t in grads if t is not None).backward()


@pytest.mark.parametrize("op", sorted(set(CASES) - set(DIFFERENTIABLE)))
def test_results_without_a_gradient_ask_for_none(op):
    args = pytree.tree_map_only(
        torch.Tensor,
        lambda t: t.detach().requires_grad_() if t.is_floating_point() else t,
        CASES[op].arguments(torch.float32),
    )
    assert not any(t.requires_grad for t in tensors_of(OPERATORS[op](*args)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", CASES)
def test_plain_torch_computes_what_the_kernel_does(op, dtype):
    """The last implementation of every list serves every other device."""
    args = CASES[op].arguments(dtype)
    with torch.no_grad():
        expected = tensors_of(overload(op)(*args))
        actual = tensors_of(OPERATORS[op].implementations[-1].run(*args))
    for one, other in zip(actual, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.is_floating_point():
            unit = other.double().masked_fill(~other.isfinite(), 0).abs().max().clamp(min=1)
            assert_close(one.double() / unit, other.double() / unit, dtype, scale=4)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("op", PUBLIC)
def test_reference_has_the_public_signature(op):
    def parameters(function):
        found = inspect.signature(function).parameters
        return {
            name: (each.kind, each.default) for name, each in found.items() if name != "backend"
        }

    assert parameters(getattr(avskernels.reference, op)) == parameters(getattr(avskernels, op))


@pytest.mark.parametrize("op", PUBLIC)
def test_every_room_holds_its_furniture(op):
    room = Path(inspect.getfile(getattr(avskernels, op))).parent
    for file in ("README.md", "operator.py", "reference.py"):
        assert (room / file).is_file(), f"{room.name} lacks {file}"
    assert (ROOT / "csrc" / room.name / f"{room.name}.h").is_file()
    assert (ROOT / "benchmarks" / f"bench_{room.name}.py").is_file()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", CASES)
def test_computes_what_the_cpu_does(op, dtype):
    args = CASES[op].arguments(dtype)

    def run(args):
        if not OPERATORS[op].differentiable:
            return tensors_of(overload(op)(*args))
        return [part for parts in run_with_grads(overload(op), args) for part in tensors_of(parts)]

    actual = run(on_device(args))
    assert_bit_equal(run(on_device(args)), actual)
    for one, other in zip(actual, run(args), strict=True):
        assert (one.dtype, one.device.type) == (other.dtype, "cuda")
        if other.is_floating_point():
            unit = other.double().masked_fill(~other.isfinite(), 0).abs().max().clamp(min=1)
            # Sums are taken in another order.
            assert_close(one.cpu().double() / unit, other.double() / unit, dtype, scale=4)
        else:
            assert torch.equal(one.cpu(), other)


@pytest.mark.cuda
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_compiles_on_a_device(op):
    check_compile(overload(op), [on_device(CASES[op].arguments(torch.float32))])
