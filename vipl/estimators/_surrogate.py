"""One run of the estimator: a surrogate S, whose value is unbiased for E[f], and its JAX derivatives for those of E[f].

The program is staged once. Each site's estimator gives weighted points (`vipl.gen._estimator`); the objective is a sum
of costs, f = Σ_c cost_c (`_costs`), of which f alone is the simplest case; and the program is run

- once in direct style, at the drawn points, with the log weights of the sites that reach a cost added up to L_c, and
  all controls to C: surrogate  S = Σ_c cost_c box(L_c) + C;
- for every value of the enumerated sites, under one `vmap` for each such site, so that only what depends on a
  value is evaluated several times:  S = Σ_e W_e S_e;
- once more, without derivatives and under one `vmap` over all alternatives of all sites, steps and lanes (or one for
  each site, if they are few):
  S += Σ_a weight_a sg(f_a - f).  Run a is the whole program with one site set to its alternative, and the same
  noise everywhere else.

Lanes that every cost keeps apart take their values, or their alternatives, all in one run; lanes that meet only in the
end of the program take theirs in one run up to there, and only the end is evaluated for all joint values (`_meeting`).

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

from vipl import _compat
from vipl._errors import EstimatorError, ProgramError, show_aval
from vipl.core._draw import handed
from vipl.core._equations import evaluate, plain, read
from vipl.core._guard import undifferentiable
from vipl.core._interpret import Interpreter, Outcome, run_equations
from vipl.core._keys import fold_tag
from vipl.core._places import Loop, Place
from vipl.core._reach import Reach
from vipl.core._site import Path, Site
from vipl.estimators._costs import Cost
from vipl.estimators._plan import Plan
from vipl.gen import Support, box

MAX_SEPARATE = 2
"""Up to how many sites with alternatives run these apart."""


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
    noise = handed(key, [p for p in plan.found if p.outside_while is None], plan.programs, around)
    pick = jax.random.randint(fold_tag(key, "prune"), shape, 0, plan.num_pruned) if plan.num_pruned else None
    return noise, pick


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
        run = _finished(plan, _interpreted(plan, plan.staged.jaxpr, given, chosen, None), chosen)
        correction = _alternatives(plan, given, chosen, run, pick) if plan.branching else None
        return _weighed(plan, run, chosen), correction

    sample, correction = _for_each(at, {_axis(p.path): _digits(plan, p, plan.apart[p.path]) for p in outer})
    sample = _summed(sample, len(outer))
    if correction is not None:
        sample = sample._replace(surrogate=sample.surrogate + jnp.sum(correction))
    return sample


def _for_each(fn: Callable[..., Any], tables: dict[str, Any]) -> Any:
    """`fn` of one row of each table, for all of them: one leading axis, of the name given, for each table."""
    for i, axis in reversed(list(enumerate(tables))):
        fn = jax.vmap(fn, in_axes=tuple(0 if j == i else None for j in range(len(tables))), axis_name=axis)
    return fn(*tables.values())


def _axis(path: Path) -> str:
    """The name of the axis of an enumerated site's values."""
    return f"vipl values {path}"


def _summed(x: Any, axes: int) -> Any:
    return jax.tree.map(lambda x: jnp.sum(x, axis=tuple(range(axes))), x) if axes else x


def _digits(plan: Plan, place: Place, apart: Sequence[bool]) -> Any:
    """For every joint value of a site's visits, the number of its value at each: i[size**count, *loops].

    Lanes that are kept apart all have the same; i[size] where all visits have.
    """
    size = plan.programs[place.path].shape.log_weights.shape[0]
    together = [n for n, alone in zip(place.loop_shape, apart, strict=True) if not alone]
    if math.prod(together) == 1:
        return jnp.arange(size, dtype=jnp.int32)
    return _over_lanes(place, _numbers(size, together), apart, first=1)


def _numbers(base: int, shape: Sequence[int]) -> Any:
    """i[base**count, *shape]: all arrays of digits, the first one slowest."""
    count = math.prod(shape)
    joint = jnp.arange(base**count, dtype=jnp.int32)[:, None]
    powers = jnp.asarray([base**i for i in reversed(range(count))], dtype=jnp.int32)
    return ((joint // powers) % base).reshape(base**count, *shape)


def _over_lanes(place: Place, x: Any, apart: Sequence[bool], first: int) -> Any:
    """Repeats an array with axes for the loops that are taken together, from axis `first`, along the other loops."""
    where = [first + i for i, alone in enumerate(apart) if alone]
    x = jnp.expand_dims(x, where)
    shape = list(x.shape)
    for i in where:
        shape[i] = place.loop_shape[i - first]
    return jnp.broadcast_to(x, shape)


def _where_lanes_meet(plan: Plan, noise: dict[Path, Any], inner: list[Place], digits: dict[Path, Any]) -> Sample:
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
        out = _interpreted(plan, plan.staged.jaxpr, given, chosen, None)
        return read(out.value, list(meeting.leaves)), {path: out.emits[path] for path in meeting.sites}

    heads, emits = _for_each(before, {_axis(p.path): t for p, t in zip(inner, tables, strict=True)})

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
        return _weighed(plan, _finished(plan, Outcome(env, {}, here), chosen), chosen)

    joint = {
        f"joint {_axis(p.path)}": _numbers(t.shape[0], [p.loop_shape[i] for i in lanes[p.path]])
        for p, t in zip(inner, tables, strict=True)
    }
    return _summed(_for_each(at, joint), len(inner))


def _over_loops(place: Place, digits: Any) -> Any:
    """i[..., *loops] of digits that all visits may share."""
    if digits.ndim > 1 or not place.loops:
        return digits
    return jnp.broadcast_to(digits.reshape(-1, *[1] * len(place.loops)), (digits.size, *place.loop_shape))


def _looked_up(x: Any, number: Any, axes: Sequence[int]) -> Any:
    """Of [values, ...], in every lane the entry with that lane's number: i[*lanes], `axes` of the result."""
    front = range(len(axes))
    x = jnp.moveaxis(x, [a + 1 for a in axes], [1 + i for i in front])
    lanes, rest = x.shape[1 : 1 + len(axes)], x.shape[1 + len(axes) :]
    x = x.reshape(x.shape[0], math.prod(lanes), *rest)
    x = x[number.reshape(-1), jnp.arange(math.prod(lanes))]
    return jnp.moveaxis(x.reshape(*lanes, *rest), list(front), list(axes))


class Emitted(NamedTuple):
    """What a site hands out in one visit; zeros where it is not visited.

    Attributes:
      log_weight: f[].
      shared_control: f[].
      log_support: f[], the log probability of its value, if it is enumerated.
      visited: bool[], if it is enumerated.
      alternatives: its other values with their weights.
    """

    log_weight: Any = None
    shared_control: Any = None
    log_support: Any = None
    visited: Any = None
    alternatives: Any = None


def _along(x: Any, axes: tuple[int | None, ...], ndim: int) -> Any:
    """The sum of f[*loops] over the loops that have no axis, the others as the axes of an array of `ndim` axes."""
    x = jnp.sum(x, axis=tuple(i for i, a in enumerate(axes) if a is None))
    kept = [a for a in axes if a is not None]
    x = jnp.transpose(x, [kept.index(a) for a in sorted(kept)])
    return jnp.expand_dims(x, tuple(a for a in range(ndim) if a not in kept))


def _total(name: str, emits: dict[Path, Emitted], reach: Reach, ndim: int) -> Any:
    """The sum over the sites that reach a cost, broadcasting to it; None where no site has it."""
    parts = [_along(x, axes, ndim) for path, axes in reach.items() if (x := getattr(emits[path], name)) is not None]
    return functools.reduce(jnp.add, parts) if parts else None


def _weighed(plan: Plan, run: Run, digits: dict[Path, Any]) -> Sample:
    """The sample at one joint value of the enumerated sites, times its probability."""
    dtype = run.outs[0].dtype
    parts, held, controls = [], [], []
    for cost, value, weight in zip(plan.costs.costs, run.costs, run.weights, strict=True):
        score = _total("log_weight", run.emits, cost.reach, value.ndim)
        parts.append(_weighted(weight, value if score is None else value * box(score).astype(dtype)))
        if plan.shares:
            control = _total("shared_control", run.emits, cost.reach, value.ndim)
            control = jnp.zeros(value.shape, dtype) if control is None else control.astype(dtype)
            controls.append(jnp.broadcast_to(_weighted(weight, control), value.shape))
            held.append(lax.stop_gradient(_weighted(weight, value)))
    if "control" in run.totals:
        everywhere: Reach = {p.path: (None,) * len(p.loops) for p in plan.enumerated}
        weight = _probability(plan, run.emits, digits, everywhere, 0)
        parts.append(_weighted(weight, run.totals["control"].astype(dtype)))
    surrogate = functools.reduce(jnp.add, [jnp.sum(x) if x.ndim else x for x in parts])
    outs = run.outs
    if digits:
        aux = zip(outs[1:], plan.costs.aux, strict=True)
        outs = [surrogate, *(_averaged(plan, x, reach, run.emits, digits) for x, reach in aux)]
    return Sample(surrogate, held, controls, outs)


class Run(NamedTuple):
    """One run of the program.

    Attributes:
      costs: f[*sizes] of each cost.
      weights: of each cost, the probability of its enumerated values.
      outs: the program's outputs.
      totals: sums over all sites.
      emits: what the sites hand out.
    """

    costs: list[Any]
    weights: list[Any]
    outs: list[Any]
    totals: dict[str, Any]
    emits: dict[Path, Emitted]

    @property
    def weighted(self) -> list[Any]:
        """The costs times their probabilities."""
        return [_weighted(w, x) for w, x in zip(self.weights, self.costs, strict=True)]


def _interpreted(plan: Plan, jaxpr: Any, given: dict[Path, Given], digits: dict[Path, Any], number: Any) -> Outcome:
    """Runs the program at its points; with a `number`, at that alternative. The value is the environment."""
    constvars, consts, _, eqns, _ = _compat.parts(jaxpr)
    common = {path: d for path, d in digits.items() if d.ndim == 0}
    handed = given | {path: given[path]._replace(digit=d) for path, d in digits.items() if path not in common}
    return run_equations(eqns, dict(zip(constvars, consts, strict=True)), _interpreter(plan, common, number), handed)


def _finished(plan: Plan, out: Outcome, digits: dict[Path, Any]) -> Run:
    """The costs of a run, and their weights."""
    outvars = _compat.parts(plan.staged.jaxpr).outvars
    costs = plan.costs.evaluate(out.value)
    weights = [
        _probability(plan, out.emits, digits, cost.reach, value.ndim)
        for cost, value in zip(plan.costs.costs, costs, strict=True)
    ]
    return Run(costs, weights, read(out.value, outvars), out.totals, out.emits)


def _probability(plan: Plan, emits: dict[Path, Emitted], digits: dict[Path, Any], reach: Reach, ndim: int) -> Any:
    """W_e of what the sites in `reach` reach: the product of the probabilities of their values; None: no site has any.

    Of the numbers of a site that does not reach it, or that stands in a branch that is not taken, only the first
    counts.
    """
    if not digits:
        return None
    once, logs = [], []
    for path, digit in digits.items():
        if path not in reach:
            once.append(jnp.all(digit == 0))
            continue
        axes = tuple(a if apart else None for a, apart in zip(reach[path], plan.apart[path], strict=True))
        wrong = ~(emits[path].visited | (digit == 0))
        once.append(_along(wrong.astype(jnp.int32), axes, ndim) == 0)
        logs.append(_along(emits[path].log_support, axes, ndim))
    log_probability = functools.reduce(jnp.add, logs) if logs else jnp.zeros(())
    return jnp.where(functools.reduce(jnp.logical_and, once), jnp.exp(log_probability), 0.0)


def _weighted(weight: Any, x: Any) -> Any:
    """Weight * x; where the weight is 0, x is not looked at."""
    if weight is None:
        return x
    weight = weight.astype(x.dtype)
    return jnp.where(weight != 0, weight * jnp.where(weight != 0, x, 0), 0)


def _averaged(plan: Plan, x: Any, reach: Reach, emits: dict[Path, Emitted], digits: dict[Path, Any]) -> Any:
    """The summand of an auxiliary output's expected value."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ProgramError(
            "auxiliary output under Enumerate is not a float, and has no expected value.",
            at="aux",
            got=show_aval(x),
            expected="float arrays, which are averaged over the enumerated values",
            mend="convert it to float, or leave it out",
        )
    return _weighted(_probability(plan, emits, digits, reach, x.ndim), x)


def _alternatives(plan: Plan, given: dict[Path, Given], digits: dict[Path, Any], main: Run, pick: Any) -> Any:
    """Σ_a weight_a (W_a f_a - W f): a run for each alternative of each site and visit, and one for all pruned.

    Lanes that are kept apart take their alternatives in one run. Few sites have a `vmap` each, so that only what a site
    reaches is run again; many have one in common, so that the program does not grow with the square of their number.
    """
    branching = [p for p in plan.found if p.path in plan.branching]
    full = [p for p in branching if plan.branching[p.path] < plan.num_full]
    pruned = [p for p in branching if plan.branching[p.path] >= plan.num_full]
    groups = [[p] for p in full] if len(full) <= MAX_SEPARATE else [full]
    still = jax.tree.map(_still, given)
    jaxpr = _compat.with_consts(plan.staged.jaxpr, jax.tree.map(_still, list(plan.staged.jaxpr.consts)))
    weights, differences = [], []
    for group in [*groups, pruned] if plan.num_pruned else groups:
        others = {p.path: main.emits[p.path].alternatives for p in group}
        alternatives = {p.path: (_still(others[p.path].values), _run_numbers(plan, p)) for p in group}
        handed = still | {path: still[path]._replace(alternative=x) for path, x in alternatives.items()}

        def at(number, handed=handed):
            return _finished(plan, _interpreted(plan, jaxpr, handed, digits, number), digits).weighted

        start = plan.branching[group[0].path]
        count = sum(math.prod(_run_shape(plan, p)) for p in group)
        runs = plan.num_full + pick[None] if group is pruned else start + jnp.arange(count, dtype=jnp.int32)
        results = jax.vmap(at)(runs)
        for p in group:
            for cost, value, other in zip(plan.costs.costs, main.weighted, results, strict=True):
                if p.path in cost.reach:
                    weight = _run_weights(plan, p, others[p.path].weights, cost, pick)
                    first = 0 if group is pruned else plan.branching[p.path] - start
                    difference = other[first : first + weight.shape[0]] - value
                    weights.append(jnp.broadcast_to(weight, difference.shape).astype(difference.dtype).reshape(-1))
                    differences.append(lax.stop_gradient(difference).reshape(-1))
    if not weights:
        return None
    names = ", ".join(p.site.at() for p in branching)
    inputs = [x for x in plan.staged.jaxpr.consts if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.sum(_first_order(names)(jnp.concatenate(weights), jnp.concatenate(differences), inputs))


def _run_shape(plan: Plan, place: Place) -> tuple[int, ...]:
    """How many passes of each loop take alternatives one by one, and how many alternatives there are."""
    points = plan.programs[place.path].shape
    others = points.alternatives if points.pruned is None else points.pruned
    return (*plan.together(place), others.weights.shape[0])


def _run_numbers(plan: Plan, place: Place) -> Any:
    """i[*loops, alternatives]: the run in which a site takes an alternative."""
    shape = _run_shape(plan, place)
    numbers = plan.branching[place.path] + jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
    return _over_lanes(place, numbers, plan.apart[place.path], first=0)


def _run_weights(plan: Plan, place: Place, weights: Any, cost: Cost, pick: Any) -> Any:
    """f[runs, ...]: the weights of a site's alternatives in the runs that are its own, broadcasting to a cost."""
    apart = plan.apart[place.path]
    together, lanes = ([i for i, x in enumerate(apart) if x is kept] for kept in (False, True))
    x = jnp.transpose(weights, [*together, len(apart), *lanes])
    x = x.reshape(math.prod(_run_shape(plan, place)), *(place.loop_shape[i] for i in lanes))
    axes = [cost.reach[place.path][i] for i in lanes]
    x = jax.vmap(lambda row: _along(row, tuple(axes), len(cost.sizes)))(x)
    number = plan.branching[place.path] - plan.num_full
    if number < 0 or not plan.num_pruned:
        return x
    mine = (pick >= number) & (pick < number + x.shape[0])
    survivor = lax.dynamic_index_in_dim(x, pick - number, keepdims=True)
    return jnp.where(mine, plan.num_pruned * survivor, 0)


def _still(x: Any) -> Any:
    """Without derivative; a key may be used again, since common random numbers are wanted."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        return jax.random.clone(x)
    return lax.stop_gradient(x)


@functools.lru_cache(maxsize=256)
def _first_order(names: str) -> Callable:
    """Weights * differences, whose first derivative is right and whose second derivative raises.

    The differences depend on all inputs of the program, although no derivative passes them: so a second derivative
    in any of these raises, mixed ones included.
    """

    @jax.custom_jvp
    def first_order(weights, differences, inputs):
        return weights * differences

    @first_order.defjvp
    def _(primals, tangents):
        weights, differences, inputs = primals
        guard = undifferentiable(_once_only, names)
        # The zero keeps the guard in the program where only the inputs are differentiated, weights later.
        zero = guard(jnp.zeros((), differences.dtype), (weights, inputs))
        kept = sum((jnp.sum(zero * dx.astype(zero.dtype)) for dx in tangents[2]), jnp.zeros((), zero.dtype))
        return weights * differences, tangents[0] * guard(differences, (weights, inputs)) + kept

    return first_order


def _once_only(names: str) -> EstimatorError:
    return EstimatorError(
        "a second derivative is taken through an estimator that is unbiased for the first only.",
        at=names,
        got="jax.hessian, or jax.grad of jax.grad, of `estimate`",
        expected="first derivatives; or Reparam(), Score(), Enumerate() at the site",
        mend='objective.with_estimators({"site": vipl.Score()}).estimate has unbiased second derivatives',
    )


def _no_derivative(at: str) -> EstimatorError:
    return EstimatorError(
        "a derivative is taken in a parameter for which the site's estimator has none.",
        at=at,
        got="MeasureValued(), say, with a derivative in the concentration of Gamma",
        expected="parameters that are not differentiated, or an estimator for all of them",
        mend="use Reparam() or Score() at the site, or jax.lax.stop_gradient around the parameter",
    )


_NUMBERS = ("log_weight", "control", "shared_control")


class Given(NamedTuple):
    """What a site is handed.

    Attributes:
      noise: of its program.
      digit: i[], which of its values it takes in this visit, if it is enumerated and visits differ.
      alternative: its other values, and their numbers in the program, if it has any and they are run.
    """

    noise: Any
    digit: Any
    alternative: Any = None


_row_p = _compat.define_row_primitive("vipl_row")


def _interpreter(plan: Plan, common: dict[Path, Any], number: Any) -> Interpreter:
    """Runs the program at its points; with a `number`, at that alternative.

    The digits in `common` are those of all visits. They are not handed to the sites, where lanes would map them, but
    looked at from there.
    """

    def handle(visit, operands, given):
        site: Site = visit.site
        program = plan.programs[visit.path]

        points = program.rest(given.noise, operands)
        if isinstance(points, Support):
            if visit.path in common:
                digit, axis = common[visit.path], _axis(visit.path)
                value, log_weight = (_row_p.bind(x, digit, axis=axis) for x in (points.values, points.log_weights))
            else:
                value, log_weight = points.values[given.digit], points.log_weights[given.digit]
            emitted = Emitted(log_support=lax.convert_element_type(log_weight, float), visited=jnp.array(True))
            return Outcome(value, {}, {visit.path: emitted})
        value = points.value
        if given.alternative is not None:
            values, numbers = given.alternative
            here = numbers == number
            value = jnp.where(jnp.any(here), values[jnp.argmax(here)], value)
        if jax.tree.leaves(points.fixed):
            value = undifferentiable(_no_derivative, site.at())(value, points.fixed)
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
