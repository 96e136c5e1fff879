"""`seed`: a program becomes a pure JAX function of a key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jax import lax

from vipl._errors import ControlFlowError
from vipl.core._carried import check_marks
from vipl.core._decorated import check_function
from vipl.core._draw import handed, handed_in_while, site_program
from vipl.core._guard import undifferentiable
from vipl.core._interpret import Interpreter, Outcome, run
from vipl.core._keys import as_key, check_digests
from vipl.core._places import Place, places
from vipl.core._site import Site
from vipl.core._stage import stage_program


def draw_program(source: Any) -> Callable:
    """The site program of plain sampling: `(key, *leaves) -> value`."""

    def draw(key, *leaves):
        return source.unpack(leaves).sample(key)

    return draw


def seed(fn: Callable) -> Callable:
    """Turns a program into a pure JAX function of a PRNG key.

    `seed(fn)(key, *args)` runs `fn(*args)`, and draws every site from its distribution. Keys follow the address
    and the loops around a site (see `vipl.core._keys`), so that adding a site leaves all other draws alone.

    The result is differentiable through reparametrized sites only. A derivative through any other site would be
    silently wrong, and raises.

    Args:
      fn: a function that calls `sample`; any control flow, `while_loop` included.

    Returns:
      `(key, *args, **kwargs) -> result`.

    Raises:
      ControlFlowError: a site stands where it cannot be honoured; or the derivative of a draw is asked for.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> def walk():
      ...     return vipl.sample("a", dist.Normal(0.0, 1.0)) + vipl.sample("b", dist.Normal(5.0, 1.0))
      >>> vipl.seed(walk)(jax.random.key(0)).shape
      ()
    """
    check_function(fn, "vipl.seed")

    @functools.wraps(fn)
    def seeded(key, *args, **kwargs):
        staged = stage_program(fn, args, kwargs)
        return staged.result(seed_jaxpr(as_key(key), staged.jaxpr))

    return seeded


def seed_jaxpr(key: Any, jaxpr: Any) -> list[Any]:
    """Runs a closed jaxpr without arguments, drawing its sites."""
    check_marks(jaxpr)
    found = places(jaxpr)
    check_digests(found)
    programs = {p.path: site_program(draw_program, p.site.source, p.source_avals) for p in found}

    def handle(visit, operands, noise):
        site: Site = visit.site
        leaves = operands[: site.num_source]
        value = programs[visit.path].rest(noise, leaves)
        value = value.astype(site.dtype) if site.makes_float else value
        if not site.source.unpack(leaves).has_rsample:
            value = undifferentiable(_no_pathwise, site.at())(lax.stop_gradient(value), leaves)
        return Outcome(value, {}, {})

    def in_while(inner: list[Place], keys: Any, count: Any) -> Any:
        return handed_in_while(keys, inner, programs, count)

    return run(jaxpr, [], Interpreter(handle, in_while, "seed"), handed(key, found, programs)).value


def _no_pathwise(at: str) -> ControlFlowError:
    return ControlFlowError(
        "a derivative passes through a draw that is not reparametrized, and would be silently wrong.",
        at=at,
        got="jax.grad or jax.jvp of `seed` or of `simulate(key)`",
        expected="parameters of the site that are not differentiated, or an expectation",
        mend="differentiate vipl.expectation(...).estimate, or put jax.lax.stop_gradient around the parameters",
    )
