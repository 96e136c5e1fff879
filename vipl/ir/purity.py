"""Which equations may be merged, dropped, moved or evaluated once more: those known to be pure.

Invariant: an equation that is not known to give the same for the same operands, and to do nothing else, stays where it
is, as often as it stands there. `vipl.ir.traits` has the one list; a primitive that is not on it is not pure.
"""

from __future__ import annotations

import weakref

from vipl import _jax
from vipl._jax import Eqn, Jaxpr
from vipl.errors import ControlFlowError
from vipl.ir.traits import traits_of

_PURE: weakref.WeakKeyDictionary[Jaxpr, bool] = weakref.WeakKeyDictionary()


def is_pure(eqn: Eqn) -> bool:
    """Says whether an equation is known to be pure, and all programs inside it."""
    return not eqn.effects and traits_of(eqn).pure and all(map(_pure_program, _jax.bodies(eqn)))


def _pure_program(jaxpr: Jaxpr) -> bool:
    if jaxpr not in _PURE:
        _PURE[jaxpr] = all(map(is_pure, _jax.parts(jaxpr).eqns))
    return _PURE[jaxpr]


def check_unordered(jaxpr: Jaxpr, why: str) -> None:
    """Raises where a program has a callback with an order, and is run several times at once.

    Args:
      jaxpr: the program.
      why: what runs it several times, for the message.
    """
    for eqn in _jax.parts(jaxpr).eqns:
        if not any(map(_jax.is_ordered, eqn.effects)):
            continue
        for inner in _jax.bodies(eqn):
            check_unordered(inner, why)
        raise ControlFlowError(
            "a callback with an order stands in a program that is run several times at once.",
            at=f"`{eqn.primitive.name}` in {_jax.source_line(eqn) or 'a line that JAX does not know'}",
            got=f"ordered=True, and {why}",
            expected="callbacks without an order, or estimators that run the program once, and num_samples=1",
            fix="pass ordered=False, or return the value as aux and look at it outside",
        )
