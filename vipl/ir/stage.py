"""Staging: a program and its arguments become a jaxpr without arguments, in which no plain `jit` is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from vipl._jax import ClosedJaxpr, by_site, wants_by_site
from vipl._types import PyTree
from vipl.errors import ProgramError
from vipl.ir.constants import with_own_constants
from vipl.ir.frames import user_frame
from vipl.ir.inline import inline_jits
from vipl.ir.partition import Skeleton, partition
from vipl.ir.staging_rules import staging


class Staged(NamedTuple):
    """A staged program.

    Attributes:
      jaxpr: closed, no inputs; arrays of the arguments are its constants.
      skeleton: the result's structure, with what in it is not an array.
    """

    jaxpr: ClosedJaxpr
    skeleton: Skeleton

    def result(self, outs: Iterable[object]) -> Any:
        """The program's result from the jaxpr's outputs."""
        return self.skeleton.combine(outs)


def stage_program(fn: Callable, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Staged:
    """Traces `fn(*args, **kwargs)`, with its sites as equations.

    Python numbers among the arguments stay Python numbers, so that a length may depend on them. A program is traced
    once; a second time, in another context, if it reads log densities by site: what does not read them is without them.
    """
    try:
        return _staged(fn, args, kwargs)
    except ProgramError as error:
        if wants_by_site() or not error.needs_by_site:
            raise
    with by_site(True):
        return _staged(fn, args, kwargs)


def _staged(fn: Callable, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Staged:
    box: list[Skeleton] = []

    def flat():
        with staging():  # inside: JAX takes the user's lines out of a traceback that leaves `make_jaxpr`
            skeleton, leaves = partition(fn(*args, **kwargs))
        try:
            hash(skeleton)
        except TypeError:
            raise ProgramError(
                "a program returns something that is neither an array nor hashable.",
                at=getattr(fn, "__qualname__", None) or user_frame(),
                got=", ".join(type(v).__name__ for kept, v in skeleton.static if kept),
                expected="a pytree of arrays",
                fix="return arrays, in tuples or dicts",
            ) from None
        box.append(skeleton)
        return leaves

    jaxpr = jax.make_jaxpr(flat)()
    return Staged(inline_jits(with_own_constants(jaxpr)), box[0])


def stage(fn: Callable, *args: PyTree) -> tuple[ClosedJaxpr, PyTree]:
    """Traces `fn(*args)` to a jaxpr of the flat arguments, without plain `jit`s, and the shapes of its result."""
    flat, treedef = jax.tree.flatten(args)
    jaxpr, shape = jax.make_jaxpr(lambda *flat: fn(*jax.tree.unflatten(treedef, flat)), return_shape=True)(*flat)
    return inline_jits(with_own_constants(jaxpr)), shape
