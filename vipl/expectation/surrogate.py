"""One run of the estimator: a surrogate S, whose value is unbiased for E[f], and its JAX derivatives for those of E[f].

The program is staged once. Each site's estimator gives weighted points (`vipl.gen._estimator`); the objective is a sum
of costs, f = Σ_c cost_c (`analysis.decomposition`), of which f alone is the simplest case; and the program is run

- once in direct style, at the drawn points, with the log weights of the sites that reach a cost added up to L_c, and
  all controls to C: surrogate  S = Σ_c cost_c box(L_c) + C;
- for every value of the enumerated sites, under one `vmap` for each such site, so that only what depends on a
  value is evaluated several times:  S = Σ_e W_e S_e;
- once more, without derivatives and under one `vmap` over all alternatives of all sites, steps and lanes (or one for
  each site, if they are few):
  S += Σ_a weight_a sg(f_a - f).  Run a is the whole program with one site set to its alternative, and the same
  noise everywhere else.

Lanes that every cost keeps apart take their values, or their alternatives, all in one run; lanes that meet only in the
end of the program take theirs in one run up to there, and only the end is evaluated for all joint values
(`analysis.joint_end`).

So the size of the compiled program is linear in the number of sites, whatever their estimators, and a loop's
body is traced a fixed number of times.

Value of S: an unbiased estimate of E[f]. JAX derivatives of S: unbiased for those of E[f]. See docs/theory.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl._types import Array, ArrayLike, Float, Int, PRNGKeyArray
from vipl.analysis.decomposition import Cost
from vipl.analysis.joint_end import JointEnd
from vipl.errors import ProgramError, show_aval
from vipl.expectation.joint import (
    added_up,
    before_end,
    for_each,
    is_apart,
    joint_numbers,
    looked_up,
    over_loops,
    run_end,
)
from vipl.expectation.other_runs import alternatives_term
from vipl.expectation.plan import Plan
from vipl.expectation.run import (
    Emitted,
    Run,
    SiteInput,
    along,
    collect_costs,
    law_in,
    over_lanes,
    probability,
    run_program,
    values_axis,
    weighted,
)
from vipl.gen import box
from vipl.interpret.interpreter import Outcome
from vipl.interpret.noise import draw_noise
from vipl.ir.keys import fold_tag
from vipl.ir.primitives import Path
from vipl.ir.sites import Loop, SiteInfo

T = TypeVar("T")

Noise = dict[Path, list[Array]]
"""What each site's program draws with."""


class Sample(NamedTuple):
    """One run of the estimator.

    Attributes:
      surrogate: f[], S without shared controls.
      values: f[*sizes] of each cost, or f[costs, *sizes] of several, the estimates of their expected values; empty
        where nothing is shared.
      shared_controls: of the same shapes, what the other samples' mean values are multiplied by.
      outs: the program's outputs.
    """

    surrogate: Float[Array, ""]
    values: list[Array]
    shared_controls: list[Array]
    outs: list[Array]


def draws(plan: Plan, key: PRNGKeyArray, num_samples: int | None = None) -> tuple[Noise, Array | None]:
    """What `one_sample` is handed: noise, and which of the pruned runs is made; for several samples, an axis more."""
    around, shape = ((), ()) if num_samples is None else ((Loop("sample", num_samples),), (num_samples,))
    drawn = {path: origin for path, origin in plan.origins.items() if origin.info.outside_while is None}
    programs = {origin.info.path: plan.programs[path] for path, origin in drawn.items()}
    infos = list({o.info.path: o.info for o in drawn.values()}.values())
    noise = draw_noise(key, infos, programs, around, once=plan.is_long)
    mine = {path: [o.of_passes(x, len(around)) for x in noise[o.info.path]] for path, o in drawn.items()}
    pick = jax.random.randint(fold_tag(key, "prune"), shape, 0, plan.runs.num_pruned) if plan.runs.num_pruned else None
    return mine, pick if plan.pruned_order is None else jnp.asarray(plan.pruned_order)[pick]


def one_sample(plan: Plan, noise: Noise, pick: Array | None) -> Sample:
    """Runs the estimator once."""
    end = plan.joint_end
    inner = [p for p in plan.enumerated if end and p.path in end.lanes]
    outer = [p for p in plan.enumerated if p not in inner]

    def at(*digits):
        chosen = {p.path: d for p, d in zip(outer, digits, strict=True)}
        if end and inner:
            return _over_joint_values(plan, end, noise, inner, chosen), None
        given = {path: SiteInput(x, None) for path, x in noise.items()}
        run = collect_costs(plan, run_program(plan, plan.staged.jaxpr, given, chosen, None), chosen)
        correction = alternatives_term(plan, given, chosen, run, pick) if plan.runs.first else None
        return _weighed(plan, run, chosen), correction

    sample, correction = for_each(at, {values_axis(p.path): _digits(plan, p, plan.apart[p.path]) for p in outer})
    sample = added_up(sample, len(outer))
    if correction is not None:
        sample = sample._replace(surrogate=sample.surrogate + jnp.sum(correction))
    return sample


def _digits(plan: Plan, info: SiteInfo, apart: Sequence[bool]) -> Int[Array, " values *loops"]:
    """For every joint value of a site's visits, the number of its value at each: i[size**count, *loops].

    Lanes that are kept apart all have the same; i[size] where all visits have.
    """
    size = plan.programs[info.path].shape.log_weights.shape[0]
    together = [n for n, alone in zip(info.loop_shape, apart, strict=True) if not alone]
    if math.prod(together) == 1:
        return jnp.arange(size, dtype=jnp.int32)
    return over_lanes(info, joint_numbers(size, together), apart, first=1)


def _over_joint_values(
    plan: Plan, end: JointEnd, noise: Noise, inner: list[SiteInfo], digits: dict[Path, Array]
) -> Sample:
    """The sum over the values of sites whose lanes meet in the end of the program.

    What is before the end is run for every value of one lane, in all lanes at once; the end for all joint values. Costs
    that each lane has for itself are summed over its own values.
    """
    lanes = end.lanes
    alone = {p.path: [a or i in lanes[p.path] for i, a in enumerate(plan.apart[p.path])] for p in inner}
    tables = {p.path: _digits(plan, p, alone[p.path]) for p in inner}
    axes = {p.path: f"joint {values_axis(p.path)}" for p in inner}
    costs = plan.costs.costs
    before = [group for group in plan.cost_groups if all(is_apart(end, costs[k]) for k in group)]
    after = [group for group in plan.cost_groups if group not in before]

    def weigh(out, chosen):
        return _weighed(plan, collect_costs(plan, out, chosen, alone), chosen, before)

    heads, first = before_end(plan, end, noise, tables, digits, weigh)

    def at(*numbers):
        joint = dict(zip(tables, numbers, strict=True))
        env, here = run_end(plan, end, heads, joint, axes, tuple(map(values_axis, digits)))
        chosen = digits | {
            p.path: looked_up(over_loops(p, tables[p.path]), joint[p.path], lanes[p.path]) for p in inner
        }
        return _weighed(plan, collect_costs(plan, Outcome(env, {}, here), chosen), chosen, after)

    joint = {
        axes[p.path]: joint_numbers(tables[p.path].shape[0], [p.loop_shape[i] for i in lanes[p.path]]) for p in inner
    }
    last = added_up(for_each(at, joint), len(inner))
    surrogate = first.surrogate + last.surrogate
    return Sample(
        surrogate, first.values + last.values, first.shared_controls + last.shared_controls, [surrogate, *last.outs[1:]]
    )


def _total(plan: Plan, name: str, emits: dict[Path, Emitted], costs: Sequence[Cost]) -> Array | None:
    """The sum over the sites whose law counts in a cost, broadcasting to it; None where no site has it.

    Of several costs f[costs, *sizes]; none of them sees a value both ways, so that what counts in one counts in all.
    """
    numbers = {path: getattr(emitted, name) for path, emitted in emits.items()}
    counted = [_counted(cost, numbers) for cost in costs]
    own = {site: cost for cost, sites in zip(costs, counted, strict=True) for site in sites}
    parts = [along(plan, law_in(plan, cost, p, numbers[p]), axes, cost.sizes) for (p, axes), cost in own.items()]
    if not parts:
        return None
    return (
        functools.reduce(jnp.add, parts) if len(costs) == 1 else _by_matrix(counted, list(own), parts, costs[0].sizes)
    )


def _counted(cost: Cost, numbers: dict[Path, Array | None]) -> list[tuple[Path, Any]]:
    """The sites whose law counts in a cost, those that have a number, and along which axes."""
    return [(p, axes) for p, axes in cost.reach.items() if p not in cost.held and numbers[p] is not None]


def _by_matrix(
    counted: Sequence[Sequence[Hashable]], sites: Sequence[Hashable], parts: Sequence[Array], sizes: tuple[int, ...]
) -> Array:
    """f[costs, *sizes], the sum of the parts of each cost's sites, by a matrix of zeros and ones.

    Sums that are built on one another would be computed again by each that reads them, once XLA has fused them.
    """
    columns = {site: k for k, site in enumerate(sites)}
    matrix = np.zeros((len(counted), len(sites)), parts[0].dtype)
    for k, its in enumerate(counted):
        matrix[k, [columns[site] for site in its]] = 1
    stacked = jnp.stack([jnp.broadcast_to(x, sizes) for x in parts])
    return jnp.tensordot(matrix, stacked, 1, precision=lax.Precision.HIGHEST)


def _weighed(plan: Plan, run: Run, digits: dict[Path, Array], groups: Sequence[Sequence[int]] | None = None) -> Sample:
    """The sample at one joint value of the enumerated sites, times its probability; of some groups of costs alone."""
    dtype = run.outs[0].dtype
    parts, held, controls = [], [], []
    for numbers in plan.cost_groups if groups is None else groups:
        costs, values = [plan.costs.costs[k] for k in numbers], [run.costs[k] for k in numbers]
        value = jnp.stack(values) if len(numbers) > 1 else values[0]
        weight = run.weights[numbers[0]]  # of several: None, for no site is enumerated
        score = _total(plan, "log_weight", run.emits, costs)
        parts.append(weighted(weight, value if score is None else value * box(score).astype(dtype)))
        if plan.shares:
            control = _total(plan, "shared_control", run.emits, costs)
            control = jnp.zeros(value.shape, dtype) if control is None else control.astype(dtype)
            controls.append(jnp.broadcast_to(weighted(weight, control), value.shape))
            held.append(lax.stop_gradient(weighted(weight, value)))
    if "control" in run.totals:
        everywhere = Cost((), {p.path: (None,) * len(p.loops) for p in plan.enumerated})
        weight = probability(plan, run.emits, digits, everywhere, (), plan.apart)
        parts.append(weighted(weight, run.totals["control"].astype(dtype)))
    surrogate = functools.reduce(jnp.add, [jnp.sum(x) if x.ndim else x for x in parts] or [jnp.zeros((), dtype)])
    outs = run.outs
    if digits:
        aux = zip(outs[1:], plan.costs.aux, strict=True)
        outs = [surrogate, *(_averaged(plan, x, seen, run.emits, digits) for x, seen in aux)]
    return Sample(surrogate, held, controls, outs)


def _averaged(plan: Plan, x: ArrayLike, seen: Cost, emits: dict[Path, Emitted], digits: dict[Path, Array]) -> Array:
    """The summand of an auxiliary output's expected value."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ProgramError(
            "auxiliary output under Enumerate is not a float, and has no expected value.",
            at="aux",
            got=show_aval(x),
            expected="float arrays, which are averaged over the enumerated values",
            fix="convert it to float, or leave it out",
        )
    return weighted(probability(plan, emits, digits, seen, x.shape, plan.apart), x)
