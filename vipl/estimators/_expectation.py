"""`expectation`: a program that returns a scalar becomes a function whose derivatives are unbiased.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _compat
from vipl._errors import EstimatorError, ProgramError, show_aval
from vipl.core._draw import SiteProgram, handed
from vipl.core._guard import undifferentiable
from vipl.core._interpret import Interpreter, Outcome, Path, run
from vipl.core._keys import as_key, check_digests, fold_tag
from vipl.core._packed import Packed, pack
from vipl.core._places import Place, places
from vipl.core._site import Site
from vipl.core._stage import Staged, stage_program
from vipl.estimators._enumerate import MAX_POINTS
from vipl.estimators._reparam import Reparam
from vipl.estimators._score import Score
from vipl.gen import Draw, Support, box
from vipl.gen._choices import flatten
from vipl.gen._density import is_factor
from vipl.gen._program import with_estimators
from vipl.gen._sample import check_estimator, points_of


class Expectation:
    """The expected value of a program; made by `vipl.expectation`.

    Calling it as a function runs the program as a part of the program around it, so that objectives can be
    combined: `lambda phi: a(phi) + b(phi)` is again a program.

    Attributes:
      fn: the program; returns a scalar, or `(scalar, aux)`.
      has_aux: whether it returns auxiliary output.
      estimators: replacements of estimators, by address.
    """

    def __init__(self, fn: Callable, has_aux: bool = False, estimators: tuple[Any, ...] = ()):
        """Wraps a program."""
        functools.update_wrapper(self, fn, updated=())
        self.fn, self.has_aux, self.estimators = fn, has_aux, estimators
        self._compiled = jax.jit(self._estimate, static_argnums=(1, 3))

    def __call__(self, *args: Any) -> Any:
        """Runs the program inside another one."""
        return self._program()(*args)

    def estimate(self, key: Any, *args: Any, num_samples: int = 1) -> Any:
        """Estimates the expected value; its JAX derivatives estimate the derivatives.

        (1/n) Σ_i S_i, with S_i independent surrogates: E[S] = E[f], E[∇S] = ∇E[f].

        A pure JAX function of arrays: `jax.grad`, `value_and_grad`, `jvp`, `jacfwd`, `hessian`, `vmap`, `jit` apply.
        It is compiled, and staged once for each kind of arguments.

        Args:
          key: PRNG key.
          *args: the program's arguments; arrays and numbers are traced, other leaves must be hashable.
          num_samples: how many independent runs are averaged; the cost is linear in it.

        Returns:
          f[], or `(f[], aux)`; with `num_samples > 1`, aux has a leading axis.

        Raises:
          EstimatorError: an estimator cannot be honoured; or a second derivative is taken through one that has none.
          ControlFlowError: a site stands where it cannot be honoured.
          ProgramError: the program does not return a float scalar.
        """
        packed, leaves = pack(args)
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ProgramError(
                "num_samples is not a positive integer.",
                at=f"estimate of {self._name}",
                got=repr(num_samples),
                expected="a Python integer, at least 1",
                mend="pass num_samples=1",
            )
        try:
            hash(packed)
        except TypeError:
            raise ProgramError(
                "an argument of an objective is neither an array nor hashable.",
                at=f"estimate of {self._name}",
                got=", ".join(sorted({type(v).__name__ for kept, v in packed.static if kept})),
                expected="pytrees of arrays, and hashable objects",
                mend="pass arrays, or close over the object",
            ) from None
        return self._compiled(as_key(key), packed, leaves, num_samples)

    def value_and_grad(self, key: Any, *args: Any, num_samples: int = 1, argnums: Any = 0) -> Any:
        """Estimates value and gradient in one run.

        Args:
          key: PRNG key.
          *args: the program's arguments.
          num_samples: how many independent runs are averaged.
          argnums: in which of `args` (an integer or a tuple of them) the gradient is taken.

        Returns:
          `(value, grad)`, or `((value, aux), grad)`.
        """
        shifted = jax.tree.map(lambda i: i + 1 if i >= 0 else i, argnums)
        fn = jax.value_and_grad(
            lambda *a: self.estimate(*a, num_samples=num_samples), argnums=shifted, has_aux=self.has_aux
        )
        return fn(key, *args)

    def with_estimators(self, estimators: Mapping[str, Any]) -> Expectation:
        """The same objective with other estimators at some sites.

        Args:
          estimators: address -> estimator; nested addresses as nested dicts. Every site of an address is meant.

        Raises:
          AddressError: an address does not exist (raised at the first estimate).
        """
        at = f"with_estimators of {self._name}"
        flat = flatten(estimators, at)
        for estimator in flat.values():
            check_estimator(estimator, at)
        return Expectation(self.fn, self.has_aux, tuple((dict(self.estimators) | flat).items()))

    @property
    def _name(self) -> str:
        return getattr(self.fn, "__name__", repr(self.fn))

    def _program(self) -> Callable:
        if not self.estimators:
            return self.fn
        return functools.partial(with_estimators, self.fn, self.estimators, self._name)

    def _estimate(self, key: Any, packed: Packed, leaves: Any, num_samples: int) -> Any:
        staged = stage_program(self._program(), packed.unpack(leaves), {})
        _check_result(staged, self.has_aux, self._name)
        plan = _plan(staged)
        if num_samples == 1:
            if plan.shares:
                raise _needs_samples(plan)
            sample = _one_sample(plan, key)
            return (sample.surrogate, staged.result(sample.outs)[1]) if self.has_aux else sample.surrogate
        keys = jax.vmap(lambda i: fold_tag(key, "sample", i))(jnp.arange(num_samples, dtype=jnp.uint32))
        samples = jax.vmap(functools.partial(_one_sample, plan))(keys)
        surrogates = samples.surrogate
        if plan.shares:
            others = (jnp.sum(samples.value) - samples.value) / (num_samples - 1)
            surrogates = surrogates + lax.stop_gradient(others) * samples.shared_control
        value = jnp.mean(surrogates)
        return (value, staged.result(samples.outs)[1]) if self.has_aux else value


def expectation(fn: Callable | None = None, *, has_aux: bool = False) -> Any:
    """Makes an objective of a program that returns a scalar; a decorator.

    L(θ) = E[f(x; θ)], over all draws x of the program `fn(*args)`. `estimate(key, *args)` is unbiased for L, and its
    JAX derivatives are unbiased for those of L, each under the conditions of the estimators of its sites.

    Args:
      fn: a function that may call `sample`, and `simulate`, `assess`, `generate` of generative functions, without keys.
      has_aux: whether `fn` returns `(scalar, aux)`.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.expectation
      ... def square(m):
      ...     return vipl.sample("x", dist.Normal(m, 1.0)) ** 2
      >>> jax.grad(square.estimate, argnums=1)(jax.random.key(0), 3.0).shape
      ()
    """
    if fn is None:
        return functools.partial(expectation, has_aux=has_aux)
    return Expectation(fn, has_aux)


# --- the plan: what each site will do, before anything runs -------------------------------------------------


class Plan(NamedTuple):
    """What is known of a program before it runs.

    Attributes:
      staged: the staged program.
      found: its sites.
      programs: path -> the site's program.
      enumerated: the sites that are evaluated at all their values.
      branching: the sites with alternatives, and the number of the first alternative of each.
      num_alternatives: how many alternatives there are in all.
      shares: sites whose baseline is the other samples' value.
    """

    staged: Staged
    found: list[Place]
    programs: dict[Path, SiteProgram]
    enumerated: list[Place]
    branching: dict[Path, int]
    num_alternatives: int
    shares: list[Place]


def _plan(staged: Staged) -> Plan:
    found = [_with_estimator(p) for p in places(staged.jaxpr)]
    check_digests(found)
    for place in found:
        if is_factor(place.site):
            raise ProgramError(
                "a factor stands in an objective, outside every generative function, where it weighs nothing.",
                at=place.site.at(),
                got="vipl.factor in a program that is not simulated, assessed or generated",
                expected="a factor inside a function decorated with @vipl.gen",
                mend="add the log weight to the objective's value, or move it into the model",
            )
    programs = {p.path: points_of(p.site, p.avals) for p in found if p.outside_while is None}
    shapes = {path: program.shape for path, program in programs.items()}
    enumerated = [p for p in found if isinstance(shapes.get(p.path), Support)]
    _check_enumeration(enumerated, shapes)
    branching, count = {}, 0
    for p in found:
        shape = shapes.get(p.path)
        if isinstance(shape, Draw) and shape.alternatives is not None:
            branching[p.path] = count
            count += p.count * shape.alternatives.weights.shape[0]
    shares = [p for p in found if isinstance(s := shapes.get(p.path), Draw) and s.shared_control is not None]
    return Plan(staged, found, programs, enumerated, branching, count, shares)


def _with_estimator(place: Place) -> Place:
    """Gives a site without an estimator the default one."""
    site = place.site
    if site.estimator is not None or is_factor(site):
        return place
    reparametrized = site.source.unpack(place.source_avals).has_rsample
    packed, _ = pack(Reparam() if reparametrized else Score())
    return place._replace(site=replace(site, estimator=packed))


def _check_enumeration(enumerated: Sequence[Place], shapes: dict[Path, Any]) -> None:
    total = 1
    for p in enumerated:
        size = shapes[p.path].log_weights.shape[0]
        total *= size**p.count
        if total > MAX_POINTS:
            around = " x ".join(f"{loop.size} {loop.kind}s" for loop in p.loops) or "no loop"
            raise EstimatorError(
                "a program has too many joint values to enumerate.",
                at=p.site.at(),
                got=f"{size} values at each of {p.count} visits ({around}), and {len(enumerated)} enumerated sites",
                expected=f"at most {MAX_POINTS} joint values",
                mend="use MeasureValued() or Score() there; or map `estimate` over independent data, not the site",
            )


def _check_result(staged: Staged, has_aux: bool, name: str) -> None:
    outs = [v.aval for v in staged.jaxpr.jaxpr.outvars]
    result = staged.packed.unpack(outs)
    if has_aux and (not isinstance(result, tuple) or len(result) != 2):
        raise ProgramError(
            "an objective with has_aux=True does not return a pair.",
            at=name,
            got=show_aval(result),
            expected="(scalar, aux)",
            mend="return (value, aux), or drop has_aux=True",
        )
    value: Any = result[0] if has_aux else result
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ProgramError(
            "an objective does not return a float scalar.",
            at=name,
            got=show_aval(value),
            expected="float[]" + (" first, then aux" if has_aux else ""),
            mend="reduce it with jnp.sum or jnp.mean; return aux with @vipl.expectation(has_aux=True)",
        )


def _needs_samples(plan: Plan) -> EstimatorError:
    return EstimatorError(
        "a leave-one-out baseline has no other samples.",
        at=plan.shares[0].site.at(),
        got="num_samples=1",
        expected="num_samples of at least 2",
        mend="call estimate(key, ..., num_samples=4), or use another baseline",
    )


# --- one sample ---------------------------------------------------------------------------------------------


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


def _one_sample(plan: Plan, key: Any) -> Sample:
    noise = handed(key, [p for p in plan.found if p.outside_while is None], plan.programs)

    def at(*digits):
        chosen = {p.path: d for p, d in zip(plan.enumerated, digits, strict=True)}
        return _at_values(plan, noise, chosen)

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


def _at_values(plan: Plan, noise: dict[Path, Any], digits: dict[Path, Any]) -> tuple[Any, Sample, Any]:
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
    return weight, sample, _alternatives(plan, given, digits, emits, weight * f) if plan.branching else None


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
    plan: Plan, given: dict[Path, Given], digits: dict[Path, Any], emits: dict[Path, Any], weighted: Any
) -> Any:
    """Σ_a weight_a (W_a f_a - W f): one run for each alternative of each site, step and lane."""
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

    values = jax.vmap(other)(jnp.arange(plan.num_alternatives, dtype=jnp.int32))
    weights = jnp.concatenate([emits[path].weights.reshape(-1) for path in plan.branching])
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
        if points.fixed is not None:
            value = undifferentiable(_no_derivative, site.at())(value, points.fixed)
        names = ("log_weight", "control", "shared_control")
        totals = {n: lax.convert_element_type(x, float) for n in names if (x := getattr(points, n)) is not None}
        emitted = points.alternatives is not None and number is None
        return Outcome(value, totals, {visit.path: points.alternatives} if emitted else {})

    return Interpreter(handle, None, "expectation")
