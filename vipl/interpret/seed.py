"""`seed`: a program becomes a pure JAX function of a key."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import Transform

from vipl._jax import Jaxpr, staging
from vipl._types import Array, Int, PRNGKeyArray
from vipl.analysis.supports import check_marks
from vipl.cache.programs import compiled, parts_of
from vipl.distributions._draws import draw, log_density, total
from vipl.errors import ControlFlowError
from vipl.interpret.interpreter import Inputs, Interpreter, Outcome, run
from vipl.interpret.noise import draw_noise, draw_noise_in_while, site_program
from vipl.ir import devices
from vipl.ir.functions import check_function
from vipl.ir.guards import undifferentiable
from vipl.ir.keys import as_key, check_digests, key_by_keyword
from vipl.ir.partition import Skeleton, partition, python_integer
from vipl.ir.primitives import Site
from vipl.ir.sites import SiteInfo, list_sites
from vipl.ir.stage import stage_program


def draw_program(config: tuple[Skeleton, bool, int]) -> Callable:
    """The site program of plain sampling: `(key, *leaves) -> [value]`, or `[value, log density]`."""
    source, weighs, ndim = config

    def program(key, *leaves):
        d = source.combine(leaves)
        point = draw(d, key)
        return [point.value, total(log_density(d, point), ndim)] if weighs else [point.value]

    return program


def seed(fn: Callable) -> Callable:
    """Turns a program into a pure JAX function of a PRNG key.

    `seed(fn)(key, *args)` runs `fn(*args)`, and draws every site from its distribution. Keys follow the address
    and the loops around a site (see `vipl.ir.keys`), so that adding a site leaves all other draws alone.

    The result is differentiable through reparametrized sites only. A derivative through any other site would be
    silently wrong, and raises.

    Called from ordinary Python it is compiled once for each kind of arguments, and anew where something that `fn` reads
    has changed.

    Args:
      fn: a function that calls `sample`; any control flow, `while_loop` included.

    Returns:
      `(key, *args, **kwargs) -> result`.

    Raises:
      ControlFlowError: a site stands where it is not supported; or the derivative of a draw is asked for.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> def walk():
      ...     return vipl.sample("a", dist.Normal(0.0, 1.0)) + vipl.sample("b", dist.Normal(5.0, 1.0))
      >>> vipl.seed(walk)(jax.random.key(0)).shape
      ()
    """
    check_function(fn, "vipl.seed")

    @key_by_keyword
    @functools.wraps(fn)
    def seeded(key, *args, **kwargs):
        key = as_key(key)

        skeleton, leaves = partition((args, kwargs), keep=python_integer)

        def drawn(key, leaves):
            args, kwargs = skeleton.combine(leaves)
            staged = stage_program(fn, args, kwargs)
            return staged.result(seed_jaxpr(key, staged.jaxpr))

        def plainly():
            return devices.on_devices(drawn)(key, leaves)

        if staging():
            return plainly()
        try:
            roots, static = parts_of(skeleton)
        except TypeError:
            return plainly()

        def run(key, leaves):
            args, kwargs = skeleton.combine(leaves)
            staged = stage_program(fn, args, kwargs)
            out = _drawn(key, staged.jaxpr, check=True)
            return staged.result(out.value), out.totals.get("violations", 0) > 0

        return compiled("seed", (fn, *roots), static, run, (key, leaves), plainly)

    return seeded


def seed_jaxpr(key: PRNGKeyArray, jaxpr: Jaxpr) -> list[Array]:
    """Runs a closed jaxpr without arguments, drawing its sites."""
    return _drawn(key, jaxpr).value


def violations(d: Distribution | Transform) -> Int[Array, ""]:
    """i[], how many parameters of a distribution, and of those in it, violate NumPyro's constraints.

    NumPyro looks at values only, not at tracers.
    """
    total = jnp.int32(0)
    constraints = getattr(d, "arg_constraints", {})
    for name, x in vars(d).items():
        parts = x if isinstance(x, (list, tuple)) else [x]
        total += sum(violations(p) for p in parts if hasattr(p, "arg_constraints"))
        if name in constraints and not getattr(constraints[name], "is_dependent", False):
            total += jnp.any(~constraints[name](x)).astype(total.dtype)
    return total


def _drawn(key: PRNGKeyArray, jaxpr: Jaxpr, check: bool = False) -> Outcome:
    """Draws the sites of a program; with `check` it counts violations."""
    check_marks(jaxpr)
    found = list_sites(jaxpr)
    check_digests(found)
    programs = {
        p.path: site_program(
            draw_program,
            (p.site.distribution, p.site.weighs, len(p.site.log_shape)),
            p.distribution_avals,
            p.site.at(),
        )
        for p in found
    }

    def handle(visit, operands, noise):
        site: Site = visit.site
        leaves = operands[: site.num_distribution]
        source = site.distribution.combine(leaves)
        outs = programs[visit.path].rest(noise, leaves)
        outs[0] = outs[0].astype(site.dtype) if site.makes_float else outs[0]
        if not source.has_rsample:
            outs = [undifferentiable(_no_pathwise, site.at())(lax.stop_gradient(x), leaves) for x in outs]
        return Outcome(outs if site.weighs else outs[0], {"violations": violations(source)} if check else {}, {})

    def in_while(inner: list[SiteInfo], keys: Inputs, count: Array) -> Inputs:
        return draw_noise_in_while(keys, inner, programs, count)

    return run(jaxpr, [], Interpreter(handle, in_while, "seed"), draw_noise(key, found, programs))


def _no_pathwise(at: str) -> ControlFlowError:
    return ControlFlowError(
        "a derivative passes through a draw that is not reparametrized, and would be silently wrong.",
        at=at,
        got="jax.grad or jax.jvp of `seed` or of `simulate(key)`",
        expected="parameters of the site that are not differentiated, or an expectation",
        fix="differentiate vipl.expectation(...).estimate, or put jax.lax.stop_gradient around the parameters",
    )
