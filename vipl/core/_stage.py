"""Staging: a program and its arguments become a jaxpr without arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from vipl._errors import ProgramError
from vipl.core._packed import Packed, pack
from vipl.core._site import user_frame
from vipl.core._staging import staging


class Staged(NamedTuple):
    """A staged program.

    Attributes:
      jaxpr: closed, no inputs; arrays of the arguments are its constants.
      packed: the result's structure, with what in it is not an array.
    """

    jaxpr: Any
    packed: Packed

    def result(self, outs: Any) -> Any:
        """The program's result from the jaxpr's outputs."""
        return self.packed.unpack(outs)


def stage_program(fn: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
    """Traces `fn(*args, **kwargs)` once, with its sites as equations.

    Python numbers among the arguments stay Python numbers, so that a length may depend on them.
    """
    box: list[Packed] = []

    def flat():
        with staging():  # inside: JAX takes the user's lines out of a traceback that leaves `make_jaxpr`
            packed, leaves = pack(fn(*args, **kwargs))
        try:
            hash(packed)
        except TypeError:
            raise ProgramError(
                "a program returns something that is neither an array nor hashable.",
                at=getattr(fn, "__qualname__", None) or user_frame(),
                got=", ".join(type(v).__name__ for kept, v in packed.static if kept),
                expected="a pytree of arrays",
                mend="return arrays, in tuples or dicts",
            ) from None
        box.append(packed)
        return leaves

    jaxpr = jax.make_jaxpr(flat)()
    return Staged(jaxpr, box[0])
