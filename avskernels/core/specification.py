# SPDX-License-Identifier: Apache-2.0
"""What an operator takes and returns, as declared in ``csrc/<op>/<op>.h``.

The language of the declarations is explained in ``csrc/common/specification.h``, which reads them;
``csrc/common/operator.cpp`` checks a call's arguments with the same rules and the same sentences.
"""

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, overload

import torch
from torch import Tensor

from avskernels import _C

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def fail(op: str, expected: object, got: object) -> NoReturn:
    """Raise the error that every wrong argument gives."""
    raise RuntimeError(f"{op}: expected {expected}, got {got}")


def check_choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` for a word that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{op}: expected {name} to be one of {tuple(choices)}, got {value!r}")


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@overload
def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def to_dtype(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None: ...
def to_dtype(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Cast a floating-point tensor; leave others alone, for the operator's check to refuse."""
    if tensor is None or tensor.dtype == dtype or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype)


class Dimension(NamedTuple):
    """One dimension of a declared shape."""

    text: str
    factors: tuple[str, ...]
    open: bool
    optional: bool


class Argument(NamedTuple):
    """One argument or result of an operator."""

    type: str
    name: str
    dtype: str
    position: int
    shape: tuple[Dimension, ...]
    condition: str
    anywhere: bool

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor, or may be one."""
        return self.type.startswith("Tensor")


class _Sizes:
    """What the names of a declaration stand for in one call."""

    def __init__(self) -> None:
        self.bound: dict[str, Any] = {}
        self.with_optional: bool | None = None

    def of(self, dimension: Dimension) -> Any:
        size = 1
        for factor in dimension.factors:
            value = int(factor) if factor.isdecimal() else self.bound.get(factor)
            if value is None:
                return None
            size = size * value
        return size

    def listed(self, shape: Sequence[Dimension], with_optional: bool) -> str:
        items: list[str] = []
        for dimension in shape:
            if dimension.optional and not with_optional:
                continue
            if dimension.open:
                items += map(str, self.bound.get(dimension.text, ["..."]))
            else:
                size = self.of(dimension)
                items.append(dimension.text if size is None else str(size))
        return f"[{', '.join(items)}]"

    def fit(self, shape: Sequence[Dimension], sizes: Sequence[Any]) -> bool:
        """Compare a tensor's sizes with its declared shape; bind the names that are new."""
        closed = sum(not dimension.open for dimension in shape)
        is_open = closed < len(shape)
        open_last = is_open and shape[-1].open and len(shape) > 1
        if self.with_optional is None and any(dimension.optional for dimension in shape):
            self.with_optional = len(sizes) == closed
        if not self.with_optional:
            shape = [dimension for dimension in shape if not dimension.optional]
            closed = len(shape) - is_open
        if len(sizes) < closed + open_last or (not is_open and len(sizes) != closed):
            return False
        new: dict[str, Any] = {}
        at = 0
        for dimension in shape:
            if dimension.open:
                own = tuple(sizes[at : at + len(sizes) - closed])
                at += len(own)
                if tuple(self.bound.get(dimension.text, own)) != own:
                    return False
                new[dimension.text] = own
                continue
            wanted, size = self.of(dimension), sizes[at]
            at += 1
            if wanted is None:
                wanted = new.setdefault(dimension.text, size)
            if wanted != size:
                return False
        self.bound |= new
        return True

    def shape(self, shape: Sequence[Dimension]) -> list[Any]:
        sizes: list[Any] = []
        for dimension in shape:
            if dimension.open:
                sizes += self.bound[dimension.text]
            elif not dimension.optional or self.with_optional:
                sizes.append(self.of(dimension))
        return sizes


class Specification:
    """An operator's declaration.

    Attributes:
        name: the operator's.
        arguments: in their order; ``results`` likewise.
        schema: as torch prints it.
        Arguments: a named tuple of a call's arguments.
    """

    def __init__(self, declared: _C.Specification) -> None:
        def read(argument: _C.Argument) -> Argument:
            shape = tuple(
                Dimension(each.text, tuple(each.factors), each.open, each.optional)
                for each in argument.shape
            )
            return Argument(
                argument.type,
                argument.name,
                argument.dtype.name.removesuffix("_"),
                argument.position,
                shape,
                argument.condition,
                argument.anywhere,
            )

        self.name: str = declared.name
        self.arguments = [read(argument) for argument in declared.arguments]
        self.results = [read(result) for result in declared.results]
        self.schema: str = declared.schema
        names = [argument.name for argument in self.arguments]
        self.Arguments: Callable[..., Any] = namedtuple("Arguments", names)  # type: ignore[misc]
        self.tensors = [i for i, argument in enumerate(self.arguments) if argument.is_tensor]

    def check(self, args: Sequence[Any]) -> _Sizes:
        """Check dtypes, shapes and devices; return what the declared names stand for.

        Raises:
            RuntimeError: ``<op>: expected <name> <what>, got <value>``.
        """
        sizes = _Sizes()
        for argument, value in zip(self.arguments, args, strict=True):
            if argument.type in ("int", "SymInt"):
                sizes.bound[argument.name] = value
        device = None
        for argument, tensor in zip(self.arguments, args, strict=True):
            if not argument.is_tensor or (tensor is None and argument.type == "Tensor?"):
                continue
            if not isinstance(tensor, Tensor):
                fail(self.name, f"{argument.name} to be a tensor", type(tensor).__name__)
            self._check_shape(argument, tensor, sizes)
            self._check_dtype(argument, tensor.dtype, args)
            if argument.anywhere:
                continue
            device = device or tensor.device
            if tensor.device != device:
                fail(self.name, f"{argument.name} on {device}", tensor.device)
        return sizes

    def _check_shape(self, argument: Argument, tensor: Tensor, sizes: _Sizes) -> None:
        undecided = sizes.with_optional is None
        if sizes.fit(argument.shape, tensor.shape):
            return
        wanted = sizes.listed(argument.shape, bool(sizes.with_optional))
        if undecided and any(dimension.optional for dimension in argument.shape):
            wanted = (
                f"{sizes.listed(argument.shape, False)} or {sizes.listed(argument.shape, True)}"
            )
        fail(self.name, f"{argument.name} {wanted}", list(tensor.shape))

    def _check_dtype(self, argument: Argument, dtype: torch.dtype, args: Sequence[Any]) -> None:
        allowed: tuple[torch.dtype, ...] = FLOATS
        words = "floating point"
        if argument.dtype == "masks":
            allowed = (torch.bool, torch.uint8, *FLOATS)
            words = "torch.bool or torch.uint8 or floating point"
        elif (only := self._only_dtype(argument, args)) is not None:
            allowed, words = (only,), str(only)
        if dtype not in allowed:
            fail(self.name, f"{argument.name} of {words}", dtype)

    def _only_dtype(self, argument: Argument, args: Sequence[Any]) -> torch.dtype | None:
        if argument.dtype in ("boolean", "int64"):
            return torch.bool if argument.dtype == "boolean" else torch.int64
        if argument.position < 0 or args[argument.position] is None:
            return None
        dtype: torch.dtype = args[argument.position].dtype
        return accumulate_dtype(dtype) if argument.dtype == "sums" else dtype

    def empty_results(self, args: Sequence[Any], sizes: _Sizes) -> list[Tensor]:
        """Return tensors like the results, uninitialised."""
        given = dict(zip((argument.name for argument in self.arguments), args, strict=True))
        first = next(value for value in args if isinstance(value, Tensor))
        results = []
        for result in self.results:
            if result.dtype == "like":
                results.append(torch.empty_like(args[result.position]))
                continue
            condition = given.get(result.condition, True)
            there = condition is not None and condition is not False
            results.append(
                first.new_empty(
                    sizes.shape(result.shape) if there else (0,),
                    dtype=self._only_dtype(result, args),
                )
            )
        return results


SPECIFICATIONS = {declared.name: Specification(declared) for declared in _C.specifications()}
