"""Which site is the first where a number is not finite.

While `probing()` is active, the sites of a program that is staged tell the host what they see when it runs: whether
their parameters, their value and its log density are finite, and the derivatives that come back to their parameters.

Invariant: outside `probing()` nothing is added to a program.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl import _jax
from vipl._types import Array, ArrayLike
from vipl.ir.primitives import Site

DRAWN, WEIGHED = range(2)
"""Which sites come first: all that an objective draws, then all that its programs weigh; each in its order."""


class Report:
    """What the sites of one run told.

    Attributes:
      values: (order, site) of those with a number that is not finite -> what it is.
      slopes: the same of derivatives.
    """

    def __init__(self):
        """Nothing yet."""
        self.values: dict[tuple[tuple[int, int], str], str] = {}
        self.slopes: dict[tuple[tuple[int, int], str], str] = {}
        self.numbers = itertools.count()

    def tell(
        self, order: tuple[int, int], at: str, parameters: ArrayLike, value: ArrayLike, log_prob: ArrayLike
    ) -> None:
        """Notes the first of them that is not finite."""
        parts = ("a parameter of its distribution", parameters), ("its value", value), ("its log density", log_prob)
        for what, x in parts:
            bad = np.asarray(x)[~np.isfinite(x)]
            if bad.size:
                self.values.setdefault((order, at), f"{what} is {bad.flat[0]}")
                return

    def tell_slope(self, order: tuple[int, int], at: str, slope: ArrayLike) -> None:
        """Notes a derivative that is not finite."""
        if not np.all(np.isfinite(slope)):
            self.slopes[order, at] = "the derivative that comes back to its parameters is not finite"

    def sentence(self, *, of_derivative: bool) -> str | None:
        """What is to be said; None where no site is at fault. Derivatives count where they alone are not finite."""
        if self.values:
            (_, at), what = min(self.values.items())
            return f"The first site where a number is not finite is {at}: {what}."
        if of_derivative and self.slopes:  # they go backwards, from where they arise to all that comes before
            (_, at), what = max(self.slopes.items())
            return f"The numbers of all sites are finite. The last site at which a derivative is not is {at}: {what}."
        return None


_active: Report | None = None
_generations = itertools.count(-1, -1)


@contextlib.contextmanager
def probing() -> Iterator[Report]:
    """Programs that are staged in the block tell the report when they run."""
    global _active
    before, _active = _active, Report()
    try:
        with _jax.in_generation(next(_generations)):  # no trace is shared with programs that do not tell
            yield _active
    finally:
        _active = before


def watch(kind: int, site: Site, operands: Sequence[Array]) -> Sequence[Array]:
    """The operands of a site, whose derivatives are told."""
    if _active is None:
        return operands
    tell = functools.partial(_active.tell_slope, (kind, next(_active.numbers)), site.at())
    return [_watched(tell, x) if _is_float(x) else x for x in operands]


def probe(kind: int, site: Site, operands: Sequence[Array], value: Array, log_prob: ArrayLike = 0.0) -> None:
    """Tells what a site sees: its operands, its value, and the log density of that."""
    if _active is None:
        return
    tell = functools.partial(_active.tell, (kind, next(_active.numbers)), site.at())
    parameters = [jnp.ravel(x).astype(float) for x in operands[: site.num_distribution] if _is_float(x)]
    _call(tell, jnp.concatenate([jnp.zeros(0), *parameters]), value, log_prob)


def _is_float(x: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _call(tell: Callable[..., None], *values: ArrayLike) -> None:
    """Calls the host once for all lanes, where `jax.debug.callback` alone calls it once for each, written out."""

    @jax.custom_batching.custom_vmap
    def call(*values):
        jax.debug.callback(tell, *values)
        return ()

    @call.def_vmap
    def _(size, in_lanes, *values):
        pairs = zip(values, in_lanes, strict=True)
        _call(tell, *(x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in pairs))
        return (), ()

    call(*(lax.stop_gradient(jnp.asarray(x)) for x in values))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(tell: Callable[[Array], None], x: Array) -> Array:
    return x


def _backward(tell: Callable[[Array], None], _: None, slope: Array) -> tuple[Array]:
    _call(tell, slope)
    return (slope,)


_watched.defvjp(lambda tell, x: (x, None), _backward)
