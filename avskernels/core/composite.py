# SPDX-License-Identifier: Apache-2.0
"""Operators made of passes over a map, with algebra on small tensors before each.

    small tensors               -- algebra -->  what the first pass takes
    the map                     -- pass ----->  small results
    these and the small tensors -- algebra -->  what the second pass takes
    the map                     -- pass ----->  the operator's result

A pass has kernels, and a gradient with kernels. The algebra is written once, in plain torch:
the backward computes it again, and autograd differentiates it. What the operator takes and returns,
and with it the fake, stands in its specification.
"""

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avskernels.core.operator import AUTOCAST_KEYS, Gradient, Operator
from avskernels.core.specification import SPECIFICATIONS, Argument


class Known(SimpleNamespace):
    """What is known so far in a call, by name.

    It holds the operator's arguments, what algebra and passes returned, and then the gradients of
    all of these, as ``grad_<name>``.
    """


# Returns what is to be added to what is known.
Step = Callable[[Known], dict[str, Any]]


class Stage(NamedTuple):
    """A pass over the map, and the algebra before it.

    Attributes:
        algebra: returns the small tensors that the pass takes.
        forward: the pass; returns its results.
        backward: returns the gradients of what ``algebra`` returned, and of the arguments that the
            pass itself takes. The last pass is differentiated first and begins the map's gradient,
            to which those before it add.
    """

    algebra: Step
    forward: Step
    backward: Step


def named(operator: Operator) -> Step:
    """Return an operator as a step: its arguments and results are known by their names."""
    arguments = [argument.name for argument in operator.specification.arguments]
    names = [result.name for result in operator.specification.results]

    def step(known: Known) -> dict[str, Any]:
        results = operator(*[getattr(known, name) for name in arguments])
        return dict(zip(names, _sequence(results), strict=True))

    return step


class Composite:
    """Forward and backward of an operator, whose first result alone has a gradient.

    Args:
        name: as declared.
        *stages: in the order of the forward.
    """

    def __init__(self, name: str, *stages: Stage) -> None:
        specification = SPECIFICATIONS[name]
        self.arguments = specification.arguments
        self.results = specification.results
        self.stages = stages

    def forward(self, *args: Any) -> Any:
        """Compute the operator."""
        known = _known(self.arguments, args)
        for stage in self.stages:
            vars(known).update(stage.algebra(known))
            vars(known).update(stage.forward(known))
        results = _values(known, self.results)
        return results if len(results) > 1 else results[0]

    def passes_backward(self, name: str) -> Callable[..., tuple[Tensor, ...]]:
        """Return what computes the operator ``name``: the gradients of the passes alone."""
        specification = SPECIFICATIONS[name]

        def run(*args: Any) -> tuple[Tensor, ...]:
            known = _known(specification.arguments, args)
            self._differentiate(known, [result.name for result in self.results[1:]])
            return _values(known, specification.results)

        return run

    def gradient(self, passes: Operator | None = None) -> Gradient:
        """Return the backward, for :class:`Operator`.

        Args:
            passes: computes :meth:`passes_backward`; None where the stages do, one by one.
        """

        def setup_context(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
            results = _sequence(output)[1:]
            ctx.mark_non_differentiable(*results)
            tensors = [x if isinstance(x, Tensor) else None for x in (*inputs, *results)]
            ctx.others = [None if isinstance(x, Tensor) else x for x in (*inputs, *results)]
            ctx.save_for_backward(*tensors)

        def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
            saved = zip(ctx.saved_tensors, ctx.others, strict=True)
            known = _known(
                [*self.arguments, *self.results[1:]],
                [other if tensor is None else tensor for tensor, other in saved],
            )
            setattr(known, f"grad_{self.results[0].name}", grad)
            for result in self.results[1:]:
                if result.condition and getattr(known, result.condition) is None:
                    setattr(known, result.name, None)  # it is [0]
            needs = [*zip(self.arguments, ctx.needs_input_grad, strict=True)]
            names = [argument.name for argument, needed in needs if needed]
            if passes is None:
                names += [result.name for result in self.results[1:]]
            with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
                self._differentiate(known, names, None if passes is None else named(passes))
            return tuple(
                _grad_of(argument, known) if needed else None for argument, needed in needs
            )

        return Gradient(setup_context, backward)

    def _differentiate(
        self, known: Known, names: Iterable[str], passes: Step | None = None
    ) -> None:
        """Add the gradients of the tensors named, and what the passes' gradients are besides."""
        # Below an operator autograd is shut out, not only switched off.
        autograd = torch._C.DispatchKey.AutogradFunctionality
        with torch.enable_grad(), torch._C._SetExcludeDispatchKeyGuard(autograd, False):
            leaves = {
                name: getattr(known, name).detach().requires_grad_()
                for name in names
                if getattr(known, name) is not None
            }
            own = Known(**{**vars(known), **leaves})
            prepared = [stage.algebra(own) for stage in self.stages]
        all_known = vars(known)
        for outputs in prepared:
            for name, tensor in outputs.items():
                if name not in all_known:  # what the forward saved is what it computed with
                    all_known[name] = None if tensor is None else tensor.detach()
        if passes is not None:
            all_known.update(passes(known))
            _through({k: v for outputs in prepared for k, v in outputs.items()}, leaves, all_known)
            return
        for stage, outputs in zip(reversed(self.stages), reversed(prepared), strict=True):
            all_known.update(stage.backward(known))
            _through(outputs, leaves, all_known)


def _through(
    outputs: dict[str, Tensor | None], leaves: dict[str, Tensor], known: dict[str, Any]
) -> None:
    """Add the gradients of leaves from those of what algebra made of them."""
    pairs = [
        (tensor, grad)
        for name, tensor in outputs.items()
        if tensor is not None and tensor.requires_grad
        if (grad := known.get(f"grad_{name}")) is not None
    ]
    if pairs:
        tensors, grads = zip(*pairs, strict=True)
        found = torch.autograd.grad(tensors, [*leaves.values()], grads, allow_unused=True)
        for name, grad in zip(leaves, found, strict=True):
            if grad is not None:
                before = known.get(f"grad_{name}")
                known[f"grad_{name}"] = grad if before is None else before + grad


def _known(declared: Iterable[Argument], values: Iterable[Any]) -> Known:
    return Known(**{each.name: value for each, value in zip(declared, values, strict=True)})


def _values(known: Known, declared: Iterable[Argument]) -> tuple[Any, ...]:
    return tuple(getattr(known, each.name) for each in declared)


def _sequence(results: Any) -> Sequence[Tensor]:
    return (results,) if isinstance(results, Tensor) else results


def _grad_of(argument: Argument, known: Known) -> Tensor | None:
    grad: Tensor | None = getattr(known, f"grad_{argument.name}", None)
    if grad is None and argument.type == "Tensor":  # what every call takes has one in every call
        return torch.zeros_like(getattr(known, argument.name))
    return grad
