"""One run of the estimator: a surrogate S, whose value is unbiased for E[f], and its JAX derivatives for those of E[f].

The program is staged once. Each site's estimator gives weighted points (`vipl.gen._estimator`), and the program
is run

- once in direct style, at the drawn points, with the log weights and controls of all sites added up:
  surrogate  S = f box(L) + C;
- for every value of the enumerated sites, under one `vmap` for each such site, so that only what depends on a
  value is evaluated several times:  S = Σ_e W_e S_e;
- once more, without derivatives and under one `vmap` over all alternatives of all sites, steps and lanes:
  S += Σ_a weight_a sg(f_a - f).  Run a is the whole program with one site set to its alternative, and the same
  noise everywhere else.

So the size of the compiled program is linear in the number of sites, whatever their estimators, and a loop's
body is traced a fixed number of times.

Value of S: an unbiased estimate of E[f]. JAX derivatives of S: unbiased for those of E[f]. See docs/theory.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _compat
from vipl._errors import EstimatorError, ProgramError, show_aval
from vipl.core._draw import handed
from vipl.core._guard import undifferentiable
from vipl.core._interpret import Interpreter, Outcome, run
from vipl.core._keys import fold_tag
from vipl.core._places import Place
from vipl.core._site import Path, Site
from vipl.estimators._plan import Plan
from vipl.gen import Support, box


class Sample(NamedTuple):
    """One run of the estimator.

    Attributes:
      surrogate: f[], S without shared controls.
      value: f[], the estimate of E[f] alone.
      shared_control: f[], what the other samples' mean value is multiplied by.
      outs: the program's outputs.
    """

    surrogate: Any
    value: Any
    shared_control: Any
    outs: Any


def one_sample(plan: Plan, key: Any) -> Sample:
    """Runs the estimator once."""
    noise = handed(key, [p for p in plan.found if p.outside_while is None], plan.programs)

    pick = jax.random.randint(fold_tag(key, "prune"), (), 0, plan.num_pruned) if plan.num_pruned else None

    def at(*digits):
        chosen = {p.path: d for p, d in zip(plan.enumerated, digits, strict=True)}
        return _at_values(plan, noise, chosen, pick)

    tables = [_digits(plan.programs[p.path].shape.log_weights.shape[0], p) for p in plan.enumerated]
    for i in reversed(range(len(tables))):
        at = jax.vmap(at, in_axes=tuple(0 if j == i else None for j in range(len(tables))))
    weight, sample, correction = at(*tables)
    if tables:
        sample = jax.tree.map(functools.partial(_weighted_mean, weight), sample)
    if correction is not None:
        sample = sample._replace(surrogate=sample.surrogate + jnp.sum(correction))
    return sample


def _digits(size: int, place: Place) -> Any:
    """i[size**count, *loops]: for every joint value of a site's visits, the number of its value at each."""
    joint = jnp.arange(size**place.count, dtype=jnp.int32)[:, None]
    powers = jnp.asarray([size**i for i in reversed(range(place.count))], dtype=jnp.int32)
    return ((joint // powers) % size).reshape(-1, *place.loop_shape)


def _weighted_mean(weight: Any, x: Any) -> Any:
    """Σ_e W_e x_e over the axes of the enumerated sites; a value of weight 0 is not looked at."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ProgramError(
            "auxiliary output under Enumerate is not a float, and has no expected value.",
            at="aux",
            got=show_aval(x),
            expected="float arrays, which are averaged over the enumerated values",
            mend="convert it to float, or leave it out",
        )
    w = weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim)).astype(x.dtype)
    return jnp.sum(jnp.where(w != 0, w * jnp.where(w != 0, x, 0), 0), axis=tuple(range(weight.ndim)))


def _at_values(plan: Plan, noise: dict[Path, Any], digits: dict[Path, Any], pick: Any) -> tuple[Any, Sample, Any]:
    """Weight, sample and alternatives' term at one joint value of the enumerated sites."""
    given = {path: Given(x, digits.get(path), None) for path, x in noise.items()}
    outs, totals, emits = run(plan.staged.jaxpr, [], _interpreter(plan, None), given)
    f = outs[0]
    surrogate = f * box(totals["log_weight"]).astype(f.dtype) if "log_weight" in totals else f
    if "control" in totals:
        surrogate = surrogate + totals["control"].astype(f.dtype)
    shared = totals.get("shared_control", jnp.zeros(())).astype(f.dtype)
    weight = _support_weight(totals, emits, digits).astype(f.dtype)
    sample = Sample(surrogate, lax.stop_gradient(f), shared, outs)
    return weight, sample, _alternatives(plan, given, digits, emits, weight * f, pick) if plan.branching else None


def _support_weight(totals: dict[str, Any], emits: dict[Path, Any], digits: dict[Path, Any]) -> Any:
    """W_e: the product of the probabilities of the enumerated values.

    A site in a branch that is not taken has no values to sum over: of its numbers only the first counts.
    """
    if not digits:
        return jnp.ones(())
    counts = [jnp.all(emits[path] | (digit == 0)) for path, digit in digits.items()]
    log_support = totals.get("log_support", jnp.zeros(()))
    return jnp.where(functools.reduce(jnp.logical_and, counts), jnp.exp(log_support), 0.0)


def _alternatives(
    plan: Plan, given: dict[Path, Given], digits: dict[Path, Any], emits: dict[Path, Any], weighted: Any, pick: Any
) -> Any:
    """Σ_a weight_a (W_a f_a - W f): a run for each alternative of each site, step and lane, and one for all pruned."""
    for path, first in plan.branching.items():
        values, weights = emits[path]
        numbers = first + jnp.arange(weights.size, dtype=jnp.int32).reshape(weights.shape)
        given = given | {path: given[path]._replace(alternative=(values, numbers))}
    given = jax.tree.map(_still, given)
    jaxpr = _compat.with_consts(plan.staged.jaxpr, jax.tree.map(_still, list(plan.staged.jaxpr.consts)))

    def other(number):
        outs, totals, emits = run(jaxpr, [], _interpreter(plan, number), given)
        weight = _support_weight(totals, emits, digits).astype(outs[0].dtype)
        return jnp.where(weight != 0, weight * outs[0], 0)

    weights = jnp.concatenate([emits[path].weights.reshape(-1) for path in plan.branching])
    numbers = jnp.arange(plan.num_full, dtype=jnp.int32)
    if plan.num_pruned:
        survivor = plan.num_full + pick
        numbers = jnp.append(numbers, survivor)
        weights = jnp.append(weights[: plan.num_full], plan.num_pruned * weights[survivor])
    values = jax.vmap(other)(numbers)
    names = ", ".join(p.site.at() for p in plan.found if p.path in plan.branching)
    difference = lax.stop_gradient(values - weighted)
    inputs = [x for x in plan.staged.jaxpr.consts if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.sum(_first_order(names)(weights.astype(values.dtype), difference, inputs))


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


class Given(NamedTuple):
    """What a site is handed.

    Attributes:
      noise: of its program.
      digit: i[], which of its values it takes, if it is enumerated.
      alternative: its other values, and their numbers in the program, if it has any and they are run.
    """

    noise: Any
    digit: Any
    alternative: Any


def _interpreter(plan: Plan, number: Any) -> Interpreter:
    """Runs the program at its points; with a `number`, at that alternative."""

    def handle(visit, operands, given):
        site: Site = visit.site
        program = plan.programs[visit.path]

        points = program.rest(given.noise, operands)
        if isinstance(points, Support):
            totals = {"log_support": lax.convert_element_type(points.log_weights[given.digit], float)}
            return Outcome(points.values[given.digit], totals, {visit.path: jnp.array(True)})
        value = points.value
        if given.alternative is not None:
            values, numbers = given.alternative
            here = numbers == number
            value = jnp.where(jnp.any(here), values[jnp.argmax(here)], value)
        if jax.tree.leaves(points.fixed):
            value = undifferentiable(_no_derivative, site.at())(value, points.fixed)
        names = ("log_weight", "control", "shared_control")
        totals = {n: lax.convert_element_type(x, float) for n in names if (x := getattr(points, n)) is not None}
        others = points.alternatives if points.pruned is None else points.pruned
        emitted = others is not None and number is None
        return Outcome(value, totals, {visit.path: others} if emitted else {})

    return Interpreter(handle, None, "expectation")
