"""The runs at other values: Σ_a weight_a (W_a f_a - W f), whose value is 0 and whose first derivative counts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _jax
from vipl._jax import Jaxpr
from vipl._types import Array, Float, Int
from vipl.analysis.decomposition import Cost
from vipl.errors import EstimatorError
from vipl.expectation.plan import Plan
from vipl.expectation.run import RUNS, Run, SiteInput, along, collect_costs, fence_in, law_in, over_lanes, run_program
from vipl.gen import Alternatives
from vipl.ir.fence import fence_together
from vipl.ir.guards import undifferentiable
from vipl.ir.primitives import Path
from vipl.ir.sites import SiteInfo

MAX_SEPARATE = 2
"""Up to how many sites with alternatives run these apart."""


class _Group(NamedTuple):
    """Sites whose alternatives are run by one `vmap`.

    Attributes:
      sites: these.
      first: the number of the first run.
      is_pruned: whether one run is made for all of them.
    """

    sites: list[SiteInfo]
    first: int
    is_pruned: bool


def alternatives_term(
    plan: Plan, given: dict[Path, SiteInput], digits: dict[Path, Array], main: Run, pick: Array | None
) -> Float[Array, ""] | None:
    """Σ_a weight_a (W_a f_a - W f): a run for each alternative of each site and visit, and one for all pruned.

    Lanes that are kept apart take their alternatives in one run.
    """
    still = jax.tree.map(_still, given)
    jaxpr = _jax.with_consts(plan.staged.jaxpr, jax.tree.map(_still, list(plan.staged.jaxpr.consts)))
    weights, differences = [], []
    groups = _groups(plan)
    for group in groups:
        others = {p.path: main.emits[p.path].alternatives for p in group.sites}
        results = _run_group(plan, group, jaxpr, still, digits, others, pick)
        for p in group.sites:
            for cost, value, other in zip(plan.costs.costs, main.weighted, results, strict=True):
                if p.path in cost.reach and p.path not in cost.held:
                    weight, difference = _changes(plan, group, p, cost, others[p.path], other, value, pick)
                    weights.append(jnp.broadcast_to(weight, difference.shape).astype(difference.dtype).reshape(-1))
                    differences.append(lax.stop_gradient(difference).reshape(-1))
    if not weights:
        return None
    names = ", ".join(p.site.at() for p in plan.found if p.path in plan.runs.first)
    inputs = [x for x in plan.staged.jaxpr.consts if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.sum(_first_order(names)(jnp.concatenate(weights), jnp.concatenate(differences), inputs))


def _groups(plan: Plan) -> list[_Group]:
    """Few sites have a `vmap` each, so that only what a site reaches is run again.

    Many have one in common, so that the program does not grow with the square of their number.
    """
    first, num_full = plan.runs.first, plan.runs.num_full
    full = [p for p in plan.found if first.get(p.path, num_full) < num_full]
    pruned = [p for p in plan.found if first.get(p.path, -1) >= num_full]
    parts = [[p] for p in full] if len(full) <= MAX_SEPARATE else [full]
    groups = [_Group(sites, first[sites[0].path], False) for sites in parts]
    return [*groups, _Group(pruned, num_full, True)] if plan.runs.num_pruned else groups


def _run_group(
    plan: Plan,
    group: _Group,
    jaxpr: Jaxpr,
    still: dict[Path, SiteInput],
    digits: dict[Path, Array],
    others: dict[Path, Alternatives],
    pick: Array | None,
) -> list[Array]:
    """f[runs, *sizes] of each cost: its weighted value in the runs of a group."""
    count = sum(math.prod(plan.run_shape(p)) for p in group.sites)
    # A site by itself takes its values in order, one in each run; of several each is told which runs are its own.
    alone = not group.is_pruned and count == others[group.sites[0].path].weights.shape[-1]
    first = {p.path: None if alone else _first_run(plan, p) for p in group.sites}
    fence, values = fence_in(plan, still), [_still(others[path].values) for path in first]
    values = fence_together(fence, values) if plan.is_long else values
    site_inputs = still | {
        path: still[path]._replace(alternative=(x, number))
        for (path, number), x in zip(first.items(), values, strict=True)
    }

    def at(number):
        return collect_costs(plan, run_program(plan, jaxpr, site_inputs, digits, number), digits).weighted

    if group.is_pruned and pick is not None:
        runs = group.first + pick[None]
    else:
        runs = jnp.arange(count, dtype=jnp.int32) + (0 if alone else group.first)
    results = jax.vmap(at, axis_name=RUNS)(runs)
    return [fence(x) for x in results]


def _changes(
    plan: Plan,
    group: _Group,
    info: SiteInfo,
    cost: Cost,
    others: Alternatives,
    results: Array,
    value: Array,
    pick: Array | None,
) -> tuple[Array, Array]:
    """The weights of a site's alternatives for a cost, and by how much the cost is another in their runs."""
    weight = _run_weights(plan, info, law_in(plan, cost, info.path, others.weights), cost, pick)
    first = 0 if group.is_pruned else plan.runs.first[info.path] - group.first
    difference = results[first : first + weight.shape[0]] - value
    if others.possible is not None:
        possible = _run_weights(plan, info, others.possible.astype(weight.dtype), cost, pick)
        difference = jnp.where(possible == 0, 0, difference)
    return weight, difference


def _first_run(plan: Plan, info: SiteInfo) -> Int[Array, "*loops"]:
    """i[*loops]: the run in which a site takes the first of its alternatives; the others follow in order."""
    *together, count = plan.run_shape(info)
    first = plan.runs.first[info.path] + count * jnp.arange(math.prod(together), dtype=jnp.int32).reshape(together)
    return over_lanes(info, first, plan.apart[info.path], first=0)


def _run_weights(plan: Plan, info: SiteInfo, weights: Array, cost: Cost, pick: Array | None) -> Array:
    """f[runs, ...]: the weights of a site's alternatives in the runs that are its own, broadcasting to a cost."""
    apart = plan.apart[info.path]
    together, lanes = ([i for i, x in enumerate(apart) if x is kept] for kept in (False, True))
    x = jnp.transpose(weights, [*together, len(apart), *lanes])
    x = x.reshape(math.prod(plan.run_shape(info)), *(info.loop_shape[i] for i in lanes))
    axes = [cost.reach[info.path][i] for i in lanes]
    x = jax.vmap(lambda row: along(plan, row, tuple(axes), cost.sizes))(x)
    number = plan.runs.first[info.path] - plan.runs.num_full
    if number < 0 or pick is None:
        return x
    mine = (pick >= number) & (pick < number + x.shape[0])
    survivor = lax.dynamic_index_in_dim(x, pick - number, keepdims=True)
    return jnp.where(mine, plan.runs.num_pruned * survivor, 0)


def _still(x: Array) -> Array:
    """Without derivative; a key may be used again, since common random numbers are wanted."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        return jax.random.clone(x)
    return lax.stop_gradient(x)


@functools.lru_cache(maxsize=256)
def _first_order(names: str) -> Callable[[Array, Array, list[Array]], Array]:
    """Weights * differences, whose first derivative is right and whose second derivative raises.

    The differences depend on all inputs of the program, although no derivative passes them: so a second derivative
    in any of these raises, mixed ones included.
    """

    @jax.custom_jvp
    def first_order(weights, differences, inputs):
        # Weights are 0 in value, whatever comes out at the other values. Of these nothing is joined to them, which the
        # compiler drops, so that a `vmap` over differences alone is one of the value, too.
        return jnp.concatenate([weights, differences[:0]])

    @first_order.defjvp
    def _(primals, tangents):
        weights, differences, inputs = primals
        guard = undifferentiable(_once_only, names)
        # The zero keeps the guard in the program where only the inputs are differentiated, weights later.
        zero = guard(jnp.zeros((), differences.dtype), (weights, inputs))
        kept = sum((jnp.sum(zero * dx.astype(zero.dtype)) for dx in tangents[2]), jnp.zeros((), zero.dtype))
        return first_order(*primals), tangents[0] * guard(differences, (weights, inputs)) + kept

    return first_order


def _once_only(names: str) -> EstimatorError:
    return EstimatorError(
        "a second derivative is taken through an estimator that is unbiased for the first only.",
        at=names,
        got="jax.hessian, or jax.grad of jax.grad, of `estimate`",
        expected="first derivatives; or Reparam(), Score(), Enumerate() at the site",
        fix='objective.with_estimators({"site": vipl.Score()}).estimate has unbiased second derivatives',
    )
