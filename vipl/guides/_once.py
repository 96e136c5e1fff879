"""What is computed with guides and programs, compiled once for all their numbers of the same shapes.

Law: `run_once(kind, fn, things, args)` is `fn(*things, *args)`.

A guide reads its model when it is made. Here it is made anew inside the compiled function, with the numbers of model,
data and frame as arguments of that. Where this cannot be (a model tests a number, or asks it for a length), or where
another guide would come of it (numbers decide which passes of a loop make a choice), the numbers are constants, and it
is compiled once for all that are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from vipl._checks import is_traced
from vipl._settings import with_own_settings
from vipl._types import PyTree
from vipl.cache.programs import compiled, parts_of
from vipl.ir.partition import Skeleton, partition, python_integer

Thing = Any
"""A guide, a program with its arguments, or data."""

_refused: set[Hashable] = set()
_MANY = 512


class NotMade(Exception):
    """A guide cannot be made anew, or would be another one."""


class Remade:
    """What can be made anew with other numbers: the base of guides."""

    def apart(self) -> tuple[Callable[[PyTree, PyTree], Any], PyTree, PyTree]:
        """A function and two pytrees of which it makes this again: of what is fixed, and of data.

        Raises:
          NotMade: it is not known how to.
        """
        raise NotMade

    def layout(self) -> Hashable:
        """What the numbers of its model have decided."""
        raise NotMade


@dataclass(frozen=True)
class Shape:
    """All of some things but their numbers.

    Attributes:
      fixed: guides, programs and their Python integers.
      data: the structure of the data.
      layouts: of each thing, what its numbers have decided.
    """

    fixed: Skeleton
    data: Skeleton
    layouts: Hashable

    def make(self, numbers: tuple[list[Any], list[Any]]) -> list[Any]:
        """The things with these numbers; raises where they would be others."""
        fixed, data = self.fixed.combine(numbers[0]), self.data.combine(numbers[1])
        things = [together(f, d) for f, d in zip(fixed, data, strict=True)]
        if tuple(map(layout, things)) != self.layouts:
            raise NotMade
        return things


def take_apart(things: Sequence[Thing]) -> tuple[Shape, tuple[list[Any], list[Any]]] | None:
    """The shape of things, and their numbers; None where a guide is of a class of the user's, or not hashable."""
    try:
        pairs = [apart(thing) for thing in things]
        fixed, numbers = partition([f for f, _ in pairs], keep=python_integer)
        data, of_data = partition([d for _, d in pairs])
        hash((fixed, data))
    except (NotMade, TypeError):
        return None
    return Shape(fixed, data, tuple(map(layout, things))), (numbers, of_data)


def can_make(shape: Shape, numbers: tuple[list[Any], list[Any]]) -> bool:
    """Whether the things can be made of numbers that are not known."""
    try:
        jax.eval_shape(lambda numbers: shape.make(numbers) and None, numbers)
    except Exception:  # of the model, which asks for a number
        return False
    return True


@with_own_settings
def run_once(
    kind: str,
    fn: Callable[..., PyTree],
    things: Sequence[Thing],
    args: Sequence[PyTree],
    *,
    static: Hashable = None,
    roots: Sequence[object] = (),
) -> Any:
    """`fn(*things, *args)`, compiled.

    Args:
      kind: of the computation.
      fn: a function of the things and the arguments, `static`, and what is in `roots`; of nothing else.
      things: guides, programs, data.
      args: pytrees of arrays.
      static: what else the function depends on.
      roots: functions that it calls, which are read.
    """
    taken = take_apart(things)
    if is_traced((args, taken and taken[1])):
        return jax.jit(lambda *args: fn(*things, *args))(*args)  # `vmap` alone would compile each equation by itself
    if taken is None:
        return compiled(kind, (*things, *roots), static, lambda *args: fn(*things, *args), args, seldom=True)
    shape, numbers = taken
    more, said = _key(shape)
    if (kind, shape) not in _refused:
        try:
            key = "numbers are arguments", static, said
            made = lambda numbers, *args: fn(*shape.make(numbers), *args)  # noqa: E731
            return compiled(kind, (*more, *roots), key, made, (numbers, *args), seldom=True)
        except Exception:  # of the model, which asks for a number; or an error that is raised again below
            if len(_refused) >= _MANY:
                _refused.clear()
            _refused.add((kind, shape))
    key = "numbers are constants", static, said
    return compiled(kind, (*more, numbers, *roots), key, lambda *args: fn(*things, *args), args, seldom=True)


def _key(shape: Shape) -> tuple[tuple[Skeleton, ...], Hashable]:
    """Of a shape, what is to be read, and the rest."""
    (roots, fixed), (more, data) = parts_of(shape.fixed), parts_of(shape.data)
    return (*roots, *more), (fixed, data, shape.layouts)


def apart(thing: Any) -> tuple[PyTree, PyTree]:
    """What a thing is made of with its maker first, and its data."""
    if isinstance(thing, Remade):
        make, fixed, data = thing.apart()
        return (make, fixed), data
    if isinstance(thing, Mapping):
        return (_the_data, ()), dict(thing)
    return (_the_same, thing), ()


def together(fixed: PyTree, data: PyTree) -> Any:
    """The inverse of `apart`."""
    make, rest = fixed
    return make(rest, data)


def layout(thing: Any) -> Hashable:
    """What the numbers of a thing have decided."""
    return thing.layout() if isinstance(thing, Remade) else None


def _the_data(_: PyTree, data: PyTree) -> Any:
    return data


def _the_same(thing: PyTree, _: PyTree) -> Any:
    return thing
