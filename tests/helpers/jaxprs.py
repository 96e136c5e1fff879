"""What a jaxpr consists of."""

from collections.abc import Iterator
from typing import Any

import jax

from vipl._jax import Eqn


def equations(jaxpr: Any) -> Iterator[Eqn]:
    """All equations of an open jaxpr, those of the jaxprs in it included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(x, "jaxpr", x)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def sizes(jaxpr, name):
    """How many numbers each equation of a primitive makes."""
    return [sum(v.aval.size for v in eqn.outvars) for eqn in equations(jaxpr) if eqn.primitive.name == name]
