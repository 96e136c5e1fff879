"""Values whose derivative in some parameters would be wrong: it raises instead."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax


@functools.lru_cache(maxsize=1024)
def undifferentiable(error: Callable[[str], Exception], at: str) -> Callable:
    """`(value, parameters) -> value`, whose derivative in the parameters raises `error(at)`.

    It raises when the derivative is traced, and only if a parameter is differentiated. The value itself has to be
    without derivative.
    """

    @jax.custom_jvp
    def guarded(value, parameters):
        return value

    @guarded.defjvp
    def _(primals, tangents):
        raise error(at)

    return guarded
