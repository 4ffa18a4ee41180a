# SPDX-License-Identifier: Apache-2.0
"""One registered operator: its fake, its gradient and who computes it, from its specification."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avskernels.core.backend import (
    EXPLAIN,
    Explained,
    Explanation,
    Implementation,
    current_backend,
)
from avskernels.core.specification import SPECIFICATIONS, Specification, fail, to_dtype

# Below an operator autocast has no say: its plain torch computes in the precision it asks for.
AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_KEYS = {"cpu": "CPU", "cuda": "CUDA", "any": "CompositeExplicitAutograd"}

_LIBRARY = torch.library.Library("avskernels", "FRAGMENT")
_CHECKED_CALLS = 1024  # remembered per operator

_fallback_warned = False

OPERATORS: dict[str, "Operator"] = {}


class Gradient(NamedTuple):
    """A backward pass written by hand, as :func:`torch.library.register_autograd` takes it."""

    setup_context: Callable[..., None]
    backward: Callable[..., Any]


class Operator:
    """``torch.ops.avskernels.<name>``, declared in ``csrc``, with what Python adds to it.

    Args:
        name: as declared.
        implementations: who computes it, in the order in which they are asked; the last takes
            everything.
        requires: conditions on the arguments (a named tuple) that are no shapes; raises.
        gradient: the operator that computes the gradients. Its arguments are named like the
            arguments and results that it needs, and ``grad_<result>``; its results
            ``grad_<argument>``. Or a :class:`Gradient`; None for no gradient.
        results: shapes that the specification cannot say: a function of the arguments that
            returns uninitialised results.
        autocast: the dtype that autocast casts floating-point arguments to; None leaves them.
    """

    def __init__(
        self,
        name: str,
        implementations: Iterable[Implementation],
        *,
        requires: Callable[[Any], None] | None = None,
        gradient: "Operator | Gradient | None" = None,
        results: Callable[[Any], Any] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if name not in SPECIFICATIONS:
            fail(name, "an operator of the compiled library (build it again?)", "none of this name")
        self.name = name
        self.specification: Specification = SPECIFICATIONS[name]
        self.implementations = tuple(implementations)
        self.overload = getattr(torch.ops.avskernels, name).default
        self._requires = requires
        self._results = results
        self._autocast = autocast
        self._function: Any = None
        self._checked: set[tuple[Any, ...]] = set()
        OPERATORS[name] = self
        qualified = f"avskernels::{name}"
        torch.library.register_fake(qualified, self._fake)
        self._register_implementations(qualified)
        if gradient is None:
            _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
        else:
            if isinstance(gradient, Operator):
                gradient = _named_gradient(self.specification, gradient)
            backward = _once(name, gradient.backward)
            torch.library.register_autograd(
                qualified, backward, setup_context=gradient.setup_context
            )
            self._function = _function(self, gradient.setup_context, backward)
        if autocast is not None:
            for device in ("cpu", "cuda"):
                torch.library.register_autocast(qualified, device, autocast)

    @property
    def differentiable(self) -> bool:
        """Whether it has a gradient."""
        return self._function is not None

    def __call__(self, *args: Any) -> Any:
        """Run the operator, past torch's layer for operators with a gradient in Python.

        That takes several times as long as a function of our own, or, without a gradient to record,
        none.
        """
        if (
            self._function is None
            or torch.compiler.is_dynamo_compiling()
            or torch._C._functorch.peek_interpreter_stack() is not None
        ):
            return self.overload(*args)
        if torch.is_grad_enabled() and self._any_requires_grad(args):
            return self._function.apply(*self._as_autocast_casts(args))
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args)

    def _any_requires_grad(self, args: Sequence[Any]) -> bool:
        for i in self.specification.tensors:
            if args[i] is not None and args[i].requires_grad:
                return True
        return False

    def check(self, args: Sequence[Any]) -> Any:
        """Check a call's arguments; return what the names of the declared shapes stand for."""
        sizes = self.specification.check(args)
        if self._requires is not None:
            self._requires(self.specification.Arguments(*args))
        return sizes

    def _check_once(self, args: Sequence[Any]) -> None:
        """Check a call's arguments, unless one like it has passed."""
        call = tuple(
            (x.shape, x.dtype, x.device, x.is_contiguous())
            if isinstance(x, Tensor)
            else (tuple(x) if isinstance(x, list) else x)
            for x in args
        )
        if call not in self._checked:
            self.check(args)
            if len(self._checked) >= _CHECKED_CALLS:
                self._checked.clear()
            self._checked.add(call)

    def wants_reference(self, backend: str | None, args: Sequence[Any]) -> bool:
        """Tell whether a call is to run as the reference, which gets checked arguments.

        Args:
            backend: what the user asked for in the call.
            args: the operator's arguments.

        Raises:
            RuntimeError: where a kernel is demanded and plain torch would run.
        """
        name = current_backend(backend)
        if name == "auto":
            return False
        args = self._as_autocast_casts(args)
        self.check(args)
        if name == "reference":
            return True
        explanation, chosen = self._select(args)
        if name == EXPLAIN:
            raise Explained(explanation)
        if not chosen.is_kernel:
            device = explanation.device
            reasons = [
                f"{each}: {why}" for each, why in explanation.refused if "runs on" not in why
            ]
            fail(
                self.name,
                f"arguments for a kernel on {device}" if reasons else "a device with a kernel",
                f"such for {chosen.name} ({'; '.join(reasons)})" if reasons else device,
            )
        return False

    def _as_autocast_casts(self, args: Sequence[Any]) -> Sequence[Any]:
        if self._autocast is None:
            return args
        return [
            to_dtype(arg, self._autocast)
            if isinstance(arg, Tensor)
            and arg.dtype != torch.float64
            and arg.device.type in ("cpu", "cuda")
            and torch.is_autocast_enabled(arg.device.type)
            else arg
            for arg in args
        ]

    def _select(self, args: Sequence[Any]) -> tuple[Explanation, Implementation]:
        arguments = self.specification.Arguments(*args)
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        refused: list[tuple[str, str]] = []
        for implementation in self.implementations:
            reason = implementation.refusal(device, arguments)
            if reason is None:
                return (
                    Explanation(self.name, device, implementation.name, tuple(refused)),
                    implementation,
                )
            refused.append((implementation.name, reason))
        raise AssertionError(f"{self.name}: the last implementation takes everything")

    def _fake(self, *args: Any) -> Any:
        sizes = self.check(args)
        if self._results is not None:
            return self._results(self.specification.Arguments(*args))
        results = self.specification.empty_results(args, sizes)
        return results[0] if len(results) == 1 else tuple(results)

    def _register_implementations(self, qualified: str) -> None:
        compiled = {each.device for each in self.implementations if each.run is None}
        for device in {each.device for each in self.implementations} - compiled:
            torch.library.impl(qualified, _KEYS[device], self._run)

    def _run(self, *args: Any) -> Any:
        """Compute with the first implementation that takes the arguments."""
        self._check_once(args)
        explanation, chosen = self._select(args)
        if not chosen.is_kernel and explanation.device != "cpu":
            _warn_of_fallback(self.name, explanation.device)
        assert chosen.run is not None
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
            return chosen.run(*args)


def _function(
    operator: Operator, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Any:
    """Return a ``torch.autograd.Function`` that runs the operator."""

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = operator.overload(*args)
        setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(operator.name, (torch.autograd.Function,), members)


def _once(name: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a backward pass be differentiated to an error: it has no gradient, and none is not 0."""
    message = f"{name}: expected to be differentiated once, got a gradient of its gradient".encode()

    def run(ctx: Any, *grads: Any) -> Any:
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return results
        results = [None if x is None else x.detach().requires_grad_() for x in results]
        return torch._C._functions.DelayedError(message, len(results))(*results)

    return run


def autocast_to(tensor: Tensor) -> Tensor:
    """Cast to the dtype that autocast gives a matrix product; the same tensor outside autocast."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def _warn_of_fallback(name: str, device: str) -> None:
    global _fallback_warned
    if not _fallback_warned:
        _fallback_warned = True
        warnings.warn(
            f"avskernels: no kernel for {name} on {device}, running it in plain torch; "
            "avskernels.explain() tells why (this is said once per process)",
            stacklevel=3,
        )


def _named_gradient(forward: Specification, backward: Operator) -> Gradient:
    """Derive the autograd glue from the names in both specifications."""
    inputs = {argument.name: i for i, argument in enumerate(forward.arguments)}
    outputs = {result.name: i for i, result in enumerate(forward.results)}
    # Where each of the backward's arguments comes from: (kind, position).
    sources: list[tuple[str, int]] = []
    for argument in backward.specification.arguments:
        name = argument.name
        if name.startswith("grad_") and name[5:] in outputs:
            sources.append(("grad", outputs[name[5:]]))
        elif name in inputs:
            sources.append(("input", inputs[name]))
        elif name in outputs:
            sources.append(("output", outputs[name]))
        else:
            known = [*inputs, *outputs, *(f"grad_{output}" for output in outputs)]
            fail(backward.name, f"arguments named as {', '.join(known)}", name)
    for result in backward.specification.results:
        if result.name.removeprefix("grad_") not in inputs:
            fail(backward.name, "results named grad_<argument>", result.name)
    positions = [inputs[result.name[5:]] for result in backward.specification.results]
    has_gradient = {position for kind, position in sources if kind == "grad"}
    count = len(inputs)

    def setup_context(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        results = (output,) if isinstance(output, Tensor) else output
        ctx.mark_non_differentiable(
            *[result for i, result in enumerate(results) if i not in has_gradient]
        )
        saved = [
            None if kind == "grad" else (inputs if kind == "input" else results)[i]
            for kind, i in sources
        ]
        ctx.others = [value for value in saved if not isinstance(value, Tensor)]
        ctx.is_tensor = [isinstance(value, Tensor) for value in saved]
        ctx.save_for_backward(*[value for value in saved if isinstance(value, Tensor)])

    def run_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        saved = [next(tensors) if tensor else next(others) for tensor in ctx.is_tensor]
        args = [
            grads[i] if kind == "grad" else value
            for (kind, i), value in zip(sources, saved, strict=True)
        ]
        results = backward(*args)
        returned: list[Any] = [None] * count
        for position, result in zip(
            positions, (results,) if isinstance(results, Tensor) else results, strict=True
        ):
            returned[position] = result if ctx.needs_input_grad[position] else None
        return tuple(returned)

    return Gradient(setup_context, run_backward)
