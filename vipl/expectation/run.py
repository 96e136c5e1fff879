"""One run of a program at its points: what sites are handed and hand out, the costs, and their probabilities."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _jax
from vipl._jax import Jaxpr, Var
from vipl._types import Array, Float, Int, PyTree
from vipl.analysis.decomposition import Cost
from vipl.analysis.dependence import Loops
from vipl.analysis.index import Indexed, summed_by
from vipl.analysis.joint_end import JointEnd
from vipl.analysis.stop_conflicts import conflict_error
from vipl.analysis.window import Window, axis_of, summed_over
from vipl.distributions._draws import innermost, total
from vipl.errors import EstimatorError
from vipl.expectation.common import Common, InCommon, possible_values, stand_in
from vipl.expectation.plan import Plan
from vipl.gen import Points
from vipl.gen._density import log_probs_of
from vipl.interpret.interpreter import Interpreter, Outcome, run_equations
from vipl.ir.dataflow import read_arrays
from vipl.ir.fence import fence_of
from vipl.ir.guards import undifferentiable
from vipl.ir.primitives import Path, Site
from vipl.ir.probe import DRAWN, probe, watch
from vipl.ir.rows import row_p
from vipl.ir.sites import SiteInfo


class Emitted(NamedTuple):
    """What a site hands out in one visit; zeros where it is not visited.

    Attributes:
      log_weight: f[].
      shared_control: f[].
      log_support: f[], the log probability of its value, if it is enumerated.
      visited: bool[], if it is enumerated and stands in a branch.
      alternatives: its other values with their weights.
      stand_in: its `StandIn`, where lanes have its values in common (`expectation.common`).
    """

    log_weight: Float[Array, "*loops"] | None = None
    shared_control: Float[Array, "*loops"] | None = None
    log_support: Any = None
    visited: Any = None
    alternatives: Any = None
    stand_in: Any = None


class SiteInput(NamedTuple):
    """What a site is handed.

    Attributes:
      noise: of its program.
      digit: i[], which of its values it takes in this visit, if it is enumerated and visits differ.
      alternative: its other values, if it has any and they are run, and the run that takes the first; None: run 0, and
        there is no run besides theirs.
    """

    noise: list[Array]
    digit: Int[Array, "*loops"] | None
    alternative: tuple[Array, Array | None] | None = None


class Run(NamedTuple):
    """One run of the program.

    Attributes:
      costs: f[*sizes] of each cost.
      weights: of each cost, the probability of its enumerated values.
      outs: the program's outputs.
      totals: sums over all sites.
      emits: what the sites hand out.
    """

    costs: list[Array]
    weights: list[Array | None]
    outs: list[Array]
    totals: dict[str, Array]
    emits: dict[Path, Emitted]

    @property
    def weighted(self) -> list[Array]:
        """The costs times their probabilities."""
        return [weighted(w, x) for w, x in zip(self.weights, self.costs, strict=True)]


RUNS = "vipl runs"
"""The name of the axis of the runs at other values."""

_NUMBERS = ("log_weight", "control", "shared_control")


def run_program(
    plan: Plan, jaxpr: Jaxpr, given: dict[Path, SiteInput], digits: dict[Path, Array], number: Array | None
) -> Outcome:
    """Runs the program at its points; with a `number`, at that alternative. The value is the environment."""
    out, kept = _run(plan, jaxpr, given, digits, number)
    return out if kept is None else out._replace(value=kept.weighed(out.value, plan.only_summed))


def run_to_end(
    plan: Plan, end: JointEnd, given: dict[Path, SiteInput], digits: dict[Path, Array]
) -> tuple[dict[Var, Path], list[Array], Outcome]:
    """Runs the program as far as its lanes are apart.

    Returns:
      Those of the variables that the end reads which lanes have in common, and whose values they are; the values of
      all, with length 1 along the lanes that have them in common; and the run, as by `run_program`.
    """
    out, kept = _run(plan, plan.staged.jaxpr, given, digits, None)
    values = [out.value[v] for v in end.leaves]
    if kept is None:
        return {}, values, out
    pairs = list(zip(end.leaves, values, strict=True))
    common = {v: x.path for v, x in pairs if isinstance(x, Common) and x.path in end.lanes}
    leaves = [kept.evaluated(x) if v in common else kept.settled(v, x) for v, x in pairs]
    return common, leaves, out._replace(value=kept.weighed(out.value, {}))


def _run(
    plan: Plan, jaxpr: Jaxpr, given: dict[Path, SiteInput], digits: dict[Path, Array], number: Array | None
) -> tuple[Outcome, InCommon | None]:
    """A run, whose environment may hold what lanes have in common; and what makes arrays of that."""
    constvars, consts, _, eqns, _ = _jax.parts(jaxpr)
    common = {path: d for path, d in digits.items() if d.ndim == 0}
    site_inputs = given | {path: given[path]._replace(digit=d) for path, d in digits.items() if path not in common}
    env = dict(zip(constvars, consts, strict=True))
    interpreter = _interpreter(plan, common, number, fence_in(plan, given))
    if not plan.in_common:
        return run_equations(eqns, env, interpreter, site_inputs), None
    values = {p.path: plan.programs[p.path].fixed.values for p in plan.in_common.values()}
    axes = tuple(map(values_axis, digits))
    kept = InCommon(plan.in_common, values, common, plan.reached.values or {}, values_axis, axes)
    return run_equations(eqns, env, interpreter, site_inputs, around=kept.around), kept


def fence_in(plan: Plan, given: dict[Path, SiteInput]) -> Callable[[Array], Array]:
    """Has a value computed once, if sites stand in a long chain (`vipl.ir.fence`); else returns it as it is."""
    drawn = [x.noise[0] for x in given.values() if x.noise]
    return fence_of(drawn[0]) if plan.is_long and drawn else lambda x: x


def collect_costs(
    plan: Plan, out: Outcome, digits: dict[Path, Array], apart: Mapping[Path, Sequence[bool]] | None = None
) -> Run:
    """The costs of a run, and their weights; `apart` says of sites otherwise than the plan which loops are apart."""
    outvars = _jax.parts(plan.staged.jaxpr).outvars
    costs, told_apart = plan.costs.evaluate(out.value), {**plan.apart, **(apart or {})}
    weights = [
        probability(plan, out.emits, digits, cost, value.shape, told_apart)
        for cost, value in zip(plan.costs.costs, costs, strict=True)
    ]
    return Run(costs, weights, read_arrays(out.value, outvars), out.totals, out.emits)


def _interpreter(
    plan: Plan, common: dict[Path, Array], number: Array | None, fence: Callable[[Array], Array]
) -> Interpreter:
    """Runs the program at its points; with a `number`, at that alternative.

    The digits in `common` are those of all visits. They are not handed to the sites, where lanes would map them, but
    looked at from there.
    """

    def handle(visit, operands, given):
        site: Site = visit.site
        program = plan.programs[visit.path]
        operands = watch(DRAWN, site, operands)
        points = program.rest(given.noise, operands)
        if isinstance(points, Points):
            value, emitted = _at_digit(plan, visit.path, points, common.get(visit.path), given.digit)
            probe(DRAWN, site, operands, value)
            return Outcome(weighed(site, operands, value, None), {}, {visit.path: emitted})
        value, log_probs = points.value, points.point
        if given.alternative is not None:
            values, first = given.alternative
            if first is None:
                value = row_p.bind(values, number, axis=RUNS)
            else:
                value = _alternative(values, number - first, value)
            if log_probs is not None:
                log_probs = log_probs_of(site, operands, value, (points.value, log_probs))
        if jax.tree.leaves(points.fixed):
            guard = undifferentiable(_no_derivative, _names(site, operands))
            value = _guarded(guard, value, points.fixed)
            log_probs = None if log_probs is None else _guarded(guard, log_probs, points.fixed)
        probe(DRAWN, site, operands, value)
        value = weighed(site, operands, fence(value), log_probs)
        if number is not None:
            return Outcome(value, {}, {visit.path: Emitted()})
        numbers = {
            n: None if (x := getattr(points, n)) is None else lax.convert_element_type(x, float) for n in _NUMBERS
        }
        control = numbers.pop("control")
        others = points.alternatives if points.pruned is None else points.pruned
        emitted = Emitted(**numbers, alternatives=others)
        return Outcome(value, {} if control is None else {"control": control}, {visit.path: emitted})

    return Interpreter(handle, None, "expectation")


def _at_digit(
    plan: Plan, path: Path, points: Points, common: Array | None, digit: Array | None
) -> tuple[Array, Emitted]:
    """One of a site's values, and what the site hands out: by the digit of all visits, or by this visit's own."""
    values, known = possible_values(points), None
    if common is None:  # an estimator's own arrays may be NumPy's
        value, log_weight = jnp.asarray(values)[digit], jnp.asarray(points.log_weights)[digit]
    else:
        axis = values_axis(path)
        value, log_weight = (row_p.bind(x, common, axis=axis) for x in (values, points.log_weights))
        known = stand_in(points, common, axis) if path[0] in plan.in_common else None
    if known is not None and known.possible is not None:  # no weight at all, however small a number is left
        log_weight = jnp.where(known.possible, log_weight, -jnp.inf)
    visited = jnp.array(True) if path in plan.in_branches else None
    log_weight = lax.convert_element_type(log_weight, float)
    return value, Emitted(log_support=log_weight, visited=visited, stand_in=known)


def _alternative(values: Array, number: Int[Array, ""], value: Array) -> Array:
    """values[number], or the value drawn where there is no such number."""
    count = values.shape[0]
    other = values[0] if count == 1 else jnp.take(values, number, axis=0, mode="clip")
    return jnp.where((number >= 0) & (number < count), other, value)


def weighed(site: Site, operands: Sequence[Array], value: Array, log_probs: Array | None) -> Any:
    """The value, with its log density beside it where the site gives that too."""
    if not site.weighs:
        return value
    log_probs = log_probs_of(site, operands, value) if log_probs is None else log_probs
    return value, total(log_probs, len(site.log_shape))


def _names(site: Site, operands: Sequence[Array]) -> tuple[str, str, str]:
    """A site as messages write it, its estimator and its family."""
    d, estimator = site.distribution, site.estimator
    family = "its law" if d is None else type(innermost(d.combine(operands[: site.num_distribution]))).__name__
    if estimator is None:
        return site.at(), "an estimator", family
    return site.at(), f"{type(estimator.combine(operands[site.num_distribution :])).__name__}()", family


def _guarded(guard: Callable[[Array, PyTree], Array], x: Array, fixed: PyTree) -> Array:
    """The same number, whose derivative in the `fixed` parameters raises; those in others pass."""
    return x + guard(jnp.zeros_like(x), fixed) if jnp.issubdtype(x.dtype, jnp.floating) else guard(x, fixed)


def values_axis(path: Path) -> str:
    """The name of the axis of an enumerated site's values."""
    return f"vipl values {path}"


def probability(
    plan: Plan,
    emits: dict[Path, Emitted],
    digits: dict[Path, Array],
    cost: Cost,
    shape: tuple[int, ...],
    apart: Mapping[Path, Sequence[bool]],
) -> Array | None:
    """W_e of a cost: the product of the probabilities of the values that reach it; None: no site has any.

    Of the numbers of a site that does not reach it, or that stands in a branch that is not taken, only the first
    counts.
    """
    if not digits:
        return None
    once, logs = [], []
    for path, digit in digits.items():
        if path not in cost.reach:
            once.append(jnp.all(digit == 0))
            continue
        axes = tuple(a if alone else None for a, alone in zip(cost.reach[path], apart[path], strict=True))
        if path in plan.in_branches:
            wrong = ~(emits[path].visited | (digit == 0))
            once.append(along(plan, wrong.astype(jnp.int32), axes, shape) == 0)
        logs.append(along(plan, law_in(plan, cost, path, emits[path].log_support), axes, shape))
    log_probability = functools.reduce(jnp.add, logs) if logs else jnp.zeros(())
    product = jnp.exp(log_probability)
    return jnp.where(functools.reduce(jnp.logical_and, once), product, 0.0) if once else product


def law_in(plan: Plan, cost: Cost, path: Path, x: Array) -> Array:
    """A number of a site's law as it counts in a cost.

    Without derivative where the cost sees the value held; with one that raises where it sees the value both ways.
    """
    if path in cost.held:
        return lax.stop_gradient(x)
    if path in cost.mixed:
        return undifferentiable(conflict_error, (plan.at(path), *cost.mixed[path]))(x, ())
    return x


def weighted(weight: Array | None, x: Array) -> Array:
    """Weight * x; where the weight is 0, x is not looked at."""
    if weight is None:
        return x
    weight = weight.astype(x.dtype)
    return jnp.where(weight != 0, weight * jnp.where(weight != 0, x, 0), 0)


def along(plan: Plan, x: Array, axes: Loops, shape: tuple[int, ...]) -> Array:
    """The sum of f[*loops] over the passes that reach each element of an array of a shape, broadcasting to it."""
    for i, a in enumerate(axes):
        if isinstance(a, Indexed):
            x = summed_by(x, i, a, plan.indices)
        elif isinstance(a, Window):
            x = summed_over(x, i, a, shape[a.axis])
    x = jnp.sum(x, axis=tuple(i for i, a in enumerate(axes) if a is None))
    kept = [axis_of(a) for a in axes if a is not None]
    x = jnp.transpose(x, [kept.index(a) for a in sorted(kept)])
    return jnp.expand_dims(x, tuple(a for a in range(len(shape)) if a not in kept))


def over_lanes(info: SiteInfo, x: Array, apart: Sequence[bool], first: int) -> Array:
    """Repeats an array with axes for the loops that are taken together, from axis `first`, along the other loops."""
    where = [first + i for i, alone in enumerate(apart) if alone]
    x = jnp.expand_dims(x, where)
    shape = list(x.shape)
    for i in where:
        shape[i] = info.loop_shape[i - first]
    return jnp.broadcast_to(x, shape)


def _no_derivative(names: tuple[str, str, str]) -> EstimatorError:
    at, estimator, family = names
    is_score = estimator == "Score()"
    moves = "moves the support" if is_score else "it does not serve, or that moves the support"
    others = "Reparam()" if is_score else "Reparam() or Score()"
    return EstimatorError(
        "a derivative is taken in a parameter for which the site's estimator has none.",
        at=at,
        got=f"{estimator} of {family}, with a derivative in a parameter that {moves}",
        expected="parameters that are not differentiated, or an estimator for all of them",
        fix=f"use {others} at the site, or jax.lax.stop_gradient around the parameter",
    )
