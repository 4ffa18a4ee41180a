"""Checks that every operator passes; a test file brings the samples."""

import contextlib
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from avskernels.testing import assert_as_precise, assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(args):
    """Move the tensors among the arguments to the CUDA device, where there is one."""
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(DEVICE), args)


def amid_nan(tensor):
    """Return the same values in the same layout, with NaN around them in memory."""
    if not tensor.is_floating_point():
        return tensor.to(DEVICE)
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = max(0, sum((size - 1) * step for size, step in steps))
    margin = 64
    wide = tensor.new_full((last + 1 + 2 * margin,), torch.nan, device=DEVICE)
    return wide.as_strided(tensor.shape, tensor.stride(), margin).copy_(tensor)


def launch(function, *args):
    """Call a Triton launcher where it can run; return its results on the CPU.

    A kernel that reads beyond its arguments, even to multiply by zero, finds NaN.
    """
    results = function(*pytree.tree_map_only(torch.Tensor, amid_nan, args))
    return pytree.tree_map(lambda result: result.cpu(), results)


def in_double(args):
    """Take the floating-point tensors among the arguments to float64."""
    return pytree.tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, args
    )


def randomise(module):
    """Fill a module's parameters and statistics with values of a trained one's size."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            value = (
                torch.randn(tensor.shape, generator=generator) / max(tensor[0].numel(), 1) ** 0.5
            )
            tensor.copy_(value.abs() + 0.5 if name.endswith("running_var") else value)
    return module


@contextlib.contextmanager
def poisoned_empty():
    """Fill every fresh output buffer with NaN (or the largest integer), so that a gap shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensors_of(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def assert_bit_equal(actual, expected):
    for one, other in zip(tensors_of(actual), tensors_of(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, check_stride=False)


def run_with_grads(function, args):
    """Return outputs and input gradients of function(*args) for a fixed random cotangent."""
    leaves = [
        arg.detach().requires_grad_()
        if isinstance(arg, torch.Tensor) and arg.is_floating_point()
        else arg
        for arg in args
    ]
    outputs = tensors_of(function(*leaves))
    differentiable = [out for out in outputs if out.requires_grad]
    inputs = [leaf for leaf in tensors_of(leaves) if leaf.requires_grad]
    if not differentiable:
        return outputs, []
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(out.shape, generator=generator, dtype=torch.float64)
        .bfloat16()  # the same values in every precision
        .to(out)
        for out in differentiable
    ]
    grads = torch.autograd.grad(differentiable, inputs, cotangents, allow_unused=True)
    return [out.detach() for out in outputs], [grad for grad in grads if grad is not None]


def plain_and_exact(reference, args):
    """Return outputs and gradients of the reference in the arguments' precision and in float64."""
    return run_with_grads(reference, args), run_with_grads(reference, in_double(args))


def assert_all_as_precise(actual, plain, exact):
    """Outputs and gradients err at most twice as much as plain torch's in the same precision."""
    for results in zip(actual, plain, exact, strict=True):
        for one, same_precision, expected in zip(*results, strict=True):
            assert_as_precise(one, same_precision, expected)


def check_deterministic(function, args):
    """Two runs, one thread and two, and poisoned buffers all give the same bits."""
    expected = run_with_grads(function, args)
    with poisoned_empty():
        assert_bit_equal(run_with_grads(function, args), expected)
    with threads(1):
        assert_bit_equal(run_with_grads(function, args), expected)
    with threads(2):
        assert_bit_equal(run_with_grads(function, args), expected)


def sliced(tensor):
    """Return the same values inside a wider buffer: no dimension is dense."""
    wide = torch.full([2 * size + 1 for size in tensor.shape], 7, dtype=tensor.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def reversed_memory(tensor):
    """Return the same values with the order of the dimensions in memory reversed."""
    order = list(range(tensor.dim() - 1, -1, -1))
    return tensor.permute(order).contiguous().permute(order)


def layouts_of(tensor):
    layouts = [sliced, reversed_memory]
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.dim() in channels_last:
        memory_format = channels_last[tensor.dim()]
        layouts.append(lambda t: t.contiguous(memory_format=memory_format))
    return [layout(tensor) for layout in layouts]


def check_layouts(function, args, compare=assert_bit_equal):
    """Strided inputs give what contiguous ones give."""
    expected = run_with_grads(function, args)
    for position, arg in enumerate(args):
        if not isinstance(arg, torch.Tensor) or arg.dim() == 0:
            continue
        for variant in layouts_of(arg):
            changed = [*args[:position], variant, *args[position + 1 :]]
            compare(run_with_grads(function, changed), expected)


def assert_near(actual, expected):
    """Compare outputs, and gradients, where BLAS sees the strides of the parameters.

    Sums that cancel are as far off as their terms are large, whose size is that of the others.
    """
    for ours, theirs in zip(actual, expected, strict=True):
        unit = max(tensor.abs().max().double() for tensor in theirs if tensor.numel())
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one.double() / unit, other.double() / unit, other.dtype)


def check_large_outputs(function, args):
    """A batch of two whose outputs are written past the caches gives what its halves give.

    The outputs have 12 to 24 MiB, and rows of whole cache lines.
    """

    def run(part, cotangent=None):
        leaves = [arg[part].detach().requires_grad_() for arg in args]
        out = function(*leaves)
        cotangent = torch.randn_like(out) if cotangent is None else cotangent[part]
        return cotangent, [out, *torch.autograd.grad(out, leaves, cotangent)]

    cotangent, both = run(slice(None))
    for part in (slice(0, 1), slice(1, 2)):
        assert_bit_equal([tensor[part] for tensor in both], run(part, cotangent)[1])


def check_compile(function, samples):
    """torch.compile(fullgraph=True, dynamic=True) gives the eager result for every sample."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for args in samples:
        assert_bit_equal(run_with_grads(compiled, args), run_with_grads(function, args))


def check_error(function, args, message, exception=RuntimeError):
    """The same sentence from the kernel and from the fake, and nothing else happens."""
    with pytest.raises(exception) as real:
        function(*args)
    assert str(real.value) == message
    with FakeTensorMode() as mode, pytest.raises(exception) as fake:
        function(*[mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args])
    assert str(fake.value) == message


def opcheck(op, args):
    """Run torch's own checks: schema, autograd registration, fake tensors, AOT dispatch."""
    with warnings.catch_warnings():
        # The AOT check reads .grad of the tensors it made itself.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        torch.library.opcheck(getattr(torch.ops.avskernels, op).default, args)
