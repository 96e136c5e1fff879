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
(`analysis.meeting`).

So the size of the compiled program is linear in the number of sites, whatever their estimators, and a loop's
body is traced a fixed number of times.

Value of S: an unbiased estimate of E[f]. JAX derivatives of S: unbiased for those of E[f]. See docs/theory.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl.analysis.decomposition import Cost
from vipl.errors import ProgramError, show_aval
from vipl.expectation.other_runs import alternatives_term
from vipl.expectation.plan import Plan
from vipl.expectation.run import (
    Emitted,
    Given,
    Run,
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
from vipl.ir.dataflow import evaluate, plain, read
from vipl.ir.keys import fold_tag
from vipl.ir.primitives import Path
from vipl.ir.sites import Loop, SiteInfo


class Sample(NamedTuple):
    """One run of the estimator.

    Attributes:
      surrogate: f[], S without shared controls.
      values: f[*sizes] of each cost, the estimate of its expected value; empty where nothing is shared.
      shared_controls: f[*sizes] of each cost, what the other samples' mean value is multiplied by.
      outs: the program's outputs.
    """

    surrogate: Any
    values: list[Any]
    shared_controls: list[Any]
    outs: Any


def draws(plan: Plan, key: Any, num_samples: int | None = None) -> tuple[dict[Path, Any], Any]:
    """What `one_sample` is handed: noise, and which of the pruned runs is made; for several samples, an axis more."""
    around, shape = ((), ()) if num_samples is None else ((Loop("sample", num_samples),), (num_samples,))
    drawn = {path: origin for path, origin in plan.origins.items() if origin.info.outside_while is None}
    programs = {origin.info.path: plan.programs[path] for path, origin in drawn.items()}
    noise = draw_noise(key, list({o.info.path: o.info for o in drawn.values()}.values()), programs, around)
    mine = {path: [o.of_passes(x, len(around)) for x in noise[o.info.path]] for path, o in drawn.items()}
    pick = jax.random.randint(fold_tag(key, "prune"), shape, 0, plan.runs.num_pruned) if plan.runs.num_pruned else None
    return mine, pick if plan.pruned_order is None else jnp.asarray(plan.pruned_order)[pick]


def one_sample(plan: Plan, noise: dict[Path, Any], pick: Any) -> Sample:
    """Runs the estimator once."""
    meeting = plan.meeting.lanes if plan.meeting else {}
    outer = [p for p in plan.enumerated if p.path not in meeting]
    inner = [p for p in plan.enumerated if p.path in meeting]

    def at(*digits):
        chosen = {p.path: d for p, d in zip(outer, digits, strict=True)}
        if inner:
            return _where_lanes_meet(plan, noise, inner, chosen), None
        given = {path: Given(x, None) for path, x in noise.items()}
        run = collect_costs(plan, run_program(plan, plan.staged.jaxpr, given, chosen, None), chosen)
        correction = alternatives_term(plan, given, chosen, run, pick) if plan.runs.first else None
        return _weighed(plan, run, chosen), correction

    sample, correction = _for_each(at, {values_axis(p.path): _digits(plan, p, plan.apart[p.path]) for p in outer})
    sample = _summed(sample, len(outer))
    if correction is not None:
        sample = sample._replace(surrogate=sample.surrogate + jnp.sum(correction))
    return sample


def _for_each(fn: Callable[..., Any], tables: dict[str, Any]) -> Any:
    """`fn` of one row of each table, for all of them: one leading axis, of the name given, for each table."""
    for i, axis in reversed(list(enumerate(tables))):
        fn = jax.vmap(fn, in_axes=tuple(0 if j == i else None for j in range(len(tables))), axis_name=axis)
    return fn(*tables.values())


def _summed(x: Any, axes: int) -> Any:
    return jax.tree.map(lambda x: jnp.sum(x, axis=tuple(range(axes))), x) if axes else x


def _digits(plan: Plan, info: SiteInfo, apart: Sequence[bool]) -> Any:
    """For every joint value of a site's visits, the number of its value at each: i[size**count, *loops].

    Lanes that are kept apart all have the same; i[size] where all visits have.
    """
    size = plan.programs[info.path].shape.log_weights.shape[0]
    together = [n for n, alone in zip(info.loop_shape, apart, strict=True) if not alone]
    if math.prod(together) == 1:
        return jnp.arange(size, dtype=jnp.int32)
    return over_lanes(info, _numbers(size, together), apart, first=1)


def _numbers(base: int, shape: Sequence[int]) -> Any:
    """i[base**count, *shape]: all arrays of digits, the first one slowest."""
    count = math.prod(shape)
    joint = jnp.arange(base**count, dtype=jnp.int32)[:, None]
    powers = jnp.asarray([base**i for i in reversed(range(count))], dtype=jnp.int32)
    return ((joint // powers) % base).reshape(base**count, *shape)


def _where_lanes_meet(plan: Plan, noise: dict[Path, Any], inner: list[SiteInfo], digits: dict[Path, Any]) -> Sample:
    """The sum over the values of sites whose lanes meet in the end of the program.

    What is before the end is run for every value of one lane, in all lanes at once; the end for all joint values.
    """
    meeting: Any = plan.meeting
    lanes = meeting.lanes
    alone = {p.path: [a or i in lanes[p.path] for i, a in enumerate(plan.apart[p.path])] for p in inner}
    tables = [_digits(plan, p, alone[p.path]) for p in inner]

    def before(*rows):
        chosen = digits | {p.path: row for p, row in zip(inner, rows, strict=True)}
        given = {path: Given(x, None) for path, x in noise.items()}
        out = run_program(plan, plan.staged.jaxpr, given, chosen, None)
        return read(out.value, list(meeting.leaves)), {path: out.emits[path] for path in meeting.sites}

    heads, emits = _for_each(before, {values_axis(p.path): t for p, t in zip(inner, tables, strict=True)})

    def at(*numbers):
        def joint(x, reach):
            for left, (p, number) in zip(reversed(range(len(inner))), zip(inner, numbers, strict=True), strict=True):
                axes = [left + reach[p.path][i] for i in lanes[p.path]] if p.path in reach else None
                x = x[0] if axes is None else _looked_up(x, number, axes)
            return x

        leaves = {v: joint(x, reach) for (v, reach), x in zip(meeting.leaves.items(), heads, strict=True)}
        here = {
            path: jax.tree.map(lambda x, reach=reach: joint(x, reach), emits[path])
            for path, reach in meeting.sites.items()
        }
        env = evaluate(meeting.eqns, leaves, plain)
        chosen = digits | {
            p.path: _looked_up(_over_loops(p, t), n, lanes[p.path])
            for p, t, n in zip(inner, tables, numbers, strict=True)
        }
        return _weighed(plan, collect_costs(plan, Outcome(env, {}, here), chosen), chosen)

    joint = {
        f"joint {values_axis(p.path)}": _numbers(t.shape[0], [p.loop_shape[i] for i in lanes[p.path]])
        for p, t in zip(inner, tables, strict=True)
    }
    return _summed(_for_each(at, joint), len(inner))


def _over_loops(info: SiteInfo, digits: Any) -> Any:
    """i[..., *loops] of digits that all visits may share."""
    if digits.ndim > 1 or not info.loops:
        return digits
    return jnp.broadcast_to(digits.reshape(-1, *[1] * len(info.loops)), (digits.size, *info.loop_shape))


def _looked_up(x: Any, number: Any, axes: Sequence[int]) -> Any:
    """Of [values, ...], in every lane the entry with that lane's number: i[*lanes], `axes` of the result."""
    front = range(len(axes))
    x = jnp.moveaxis(x, [a + 1 for a in axes], [1 + i for i in front])
    lanes, rest = x.shape[1 : 1 + len(axes)], x.shape[1 + len(axes) :]
    x = x.reshape(x.shape[0], math.prod(lanes), *rest)
    x = x[number.reshape(-1), jnp.arange(math.prod(lanes))]
    return jnp.moveaxis(x.reshape(*lanes, *rest), list(front), list(axes))


def _total(plan: Plan, name: str, emits: dict[Path, Emitted], cost: Cost, ndim: int) -> Any:
    """The sum over the sites whose law counts in a cost, broadcasting to it; None where no site has it."""
    parts = [
        along(law_in(plan, cost, path, x), axes, ndim)
        for path, axes in cost.reach.items()
        if path not in cost.held and (x := getattr(emits[path], name)) is not None
    ]
    return functools.reduce(jnp.add, parts) if parts else None


def _weighed(plan: Plan, run: Run, digits: dict[Path, Any]) -> Sample:
    """The sample at one joint value of the enumerated sites, times its probability."""
    dtype = run.outs[0].dtype
    parts, held, controls = [], [], []
    for cost, value, weight in zip(plan.costs.costs, run.costs, run.weights, strict=True):
        score = _total(plan, "log_weight", run.emits, cost, value.ndim)
        parts.append(weighted(weight, value if score is None else value * box(score).astype(dtype)))
        if plan.shares:
            control = _total(plan, "shared_control", run.emits, cost, value.ndim)
            control = jnp.zeros(value.shape, dtype) if control is None else control.astype(dtype)
            controls.append(jnp.broadcast_to(weighted(weight, control), value.shape))
            held.append(lax.stop_gradient(weighted(weight, value)))
    if "control" in run.totals:
        everywhere = Cost((), {p.path: (None,) * len(p.loops) for p in plan.enumerated})
        weight = probability(plan, run.emits, digits, everywhere, 0)
        parts.append(weighted(weight, run.totals["control"].astype(dtype)))
    surrogate = functools.reduce(jnp.add, [jnp.sum(x) if x.ndim else x for x in parts])
    outs = run.outs
    if digits:
        aux = zip(outs[1:], plan.costs.aux, strict=True)
        outs = [surrogate, *(_averaged(plan, x, seen, run.emits, digits) for x, seen in aux)]
    return Sample(surrogate, held, controls, outs)


def _averaged(plan: Plan, x: Any, seen: Cost, emits: dict[Path, Emitted], digits: dict[Path, Any]) -> Any:
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
    return weighted(probability(plan, emits, digits, seen, x.ndim), x)
