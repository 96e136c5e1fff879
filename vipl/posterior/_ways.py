"""The ways in which a family is fitted: at once, by natural gradients, or by stochastic gradients of a bound.

at once      Laplace, Pathfinder and Boosted by a search of their own, Markov by sums where the model is a chain
natural      FullRank, MeanField and Structured over real choices: the moments of a Gaussian
stochastic   all others, from those moments where the family has coordinates: `vipl.fit` of an objective, in chunks,
             until the bound no longer grows
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from vipl._checks import check_known, is_traced
from vipl._types import Array, PRNGKeyArray, PyTree
from vipl.errors import ViplError
from vipl.expectation import Expectation, expectation
from vipl.fit import fit
from vipl.gen import Program
from vipl.gen._choices import Address, nest
from vipl.guides import (
    Amortized,
    Boosted,
    Delta,
    Flow,
    FullRank,
    Guide,
    Laplace,
    Markov,
    MeanField,
    ModelGuide,
    Pathfinder,
    Structured,
)
from vipl.guides._combine import parts_of
from vipl.guides._gaussian import Moments, by_hessians, fit_by, lower_triangular, refit
from vipl.guides._guide import Start
from vipl.guides._joint import CoordinatesGuide
from vipl.guides._natural import NO_HESSIAN, TOLERANCE, hessian_products
from vipl.guides._once import can_make, run_once, take_apart
from vipl.guides._structured import FoundBlocks
from vipl.inference._forward_backward import posterior_tables
from vipl.interpret.seed import seed
from vipl.objectives import elbo, elbo_with_chain, sticking_the_landing
from vipl.posterior._discrete import framed
from vipl.posterior._files import Report

MOST_COORDINATES = 256
"""The most real coordinates of which a covariance is learned without being asked for."""

_CHUNK = 250
"""Stochastic gradient steps between two looks at the bound."""

_GROWTH = 1e-5
"""Nats by which a bound without noise has to grow in `_CHUNK` steps; it may grow for ever, ever more slowly."""

_GAIN, _FLAT = 0.05, 1e-2
"""Nats that a step may still gain at a mode; curvatures below the second are taken for it in a Newton step."""

_AVERAGE = 0.25
"""The last part of the steps of a rate over which the parameters are averaged, about; see `vipl.fit`."""


_OUTSIDE = (
    "call it outside, for one data set after the other: it is compiled once; what is fitted inside are FullRank and "
    f"MeanField of up to {MOST_COORDINATES} real coordinates, Laplace and Pathfinder"
)


def fit_family(
    family: Guide,
    model: Program,
    data: Any,
    key: PRNGKeyArray,
    start: Start,
    optimizer: optax.GradientTransformation | None,
    most: int | None,
    options: dict[str, Any],
) -> tuple[Guide, PyTree, Report]:
    """The family that was fitted, its parameters and how: by natural or stochastic gradients, or without steps."""
    begun = time.perf_counter()
    key_gaussian, key_init, key_fit = jax.random.split(key, 3)
    gaussian = None
    params, method, bounds = _without_steps(model, data, family, start, key_init, by_steps=bool(optimizer or most))
    if method:
        report = Report(method, np.asarray(bounds), True, len(bounds), time.perf_counter() - begun)
        return family, params, report
    blocks = None
    if optimizer is None and isinstance(family, Structured):
        blocks = _blocks(family, start, key_gaussian)
    elif optimizer is None and _has_gaussian(family):
        gaussian = _gaussian(family, start, key_gaussian)
    if blocks is not None:
        params, report = blocks.params, _natural(blocks, time.perf_counter() - begun)
    elif gaussian is not None and isinstance(family, FullRank | MeanField):
        params, report = _of_gaussian(family, gaussian, time.perf_counter() - begun)
    else:
        check_known((key, model, data), "vipl.infer", _OUTSIDE)
        beside = framed(family, model, data, start, key_gaussian) if optimizer is None else None
        family, params = beside or _begin(family, gaussian, start, key_init)
        objective, numbers = _objective(model, data, family, params)
        stochastic = options | {"data": numbers}
        params, values, converged, steps = _stochastic(objective, params, key_fit, optimizer, most, stochastic)
        note = _no_mode(family, model, data, params) if converged and isinstance(family, Delta) else ""
        seconds = time.perf_counter() - begun
        report = Report("stochastic gradients", values, converged and not note, steps, seconds, note)
    return family, params, report


def _begin(family: Guide, gaussian: Moments | None, start: Start, key: PRNGKeyArray) -> tuple[Guide, PyTree]:
    """The guide that stochastic gradients fit, in the frame of a Gaussian if there is one, and its first parameters."""
    if gaussian is None:
        return family, family.init(key, start=start)
    assert isinstance(family, ModelGuide)
    family = family.with_options(frame=(gaussian.loc, lower_triangular(gaussian.factor)))
    return family, family._init(family.latents.split(gaussian.loc), jnp.ones(()), key)


def _no_mode(guide: Delta, model: Program, data: Any, params: PyTree) -> str:
    """Why a point is no mode; nothing where it is one, or where that is not known: with many coordinates, for one.

    The bound may stop to grow where steps swing from side to side, as in a density that rises without end.
    """
    if guide.latents.size > MOST_COORDINATES or not guide(params).is_exact():
        return ""
    try:
        gain = float(run_once("what a point may gain", _newton_gain, (guide, model, dict(data)), (params,)))
    except NO_HESSIAN:
        return ""
    return f"the point is no mode: a step gains {gain:.2g} nats" if gain > _GAIN else ""


def _newton_gain(guide: Delta, model: Program, data: Any, params: PyTree) -> Array:
    """What the bound of a point gains by a Newton step, or the best of smaller steps in its direction."""
    flat, unravel = ravel_pytree(params)
    bound = lambda x: seed(lambda: _bound(unravel(x), guide, model, data))(jax.random.key(0))  # noqa: E731
    each = jnp.eye(flat.shape[0], dtype=flat.dtype)
    gradient, hessian = hessian_products(jax.grad(bound), flat, lambda product: jax.vmap(product)(each))
    curvature, axes = jnp.linalg.eigh(-hessian)
    step = axes @ ((axes.T @ gradient) / jnp.maximum(jnp.abs(curvature), _FLAT))
    gains = jax.vmap(lambda size: bound(flat + size * step) - bound(flat))(2.0 ** -jnp.arange(17.0))
    return jnp.max(jnp.nan_to_num(gains, nan=0.0, neginf=0.0))


def _has_gaussian(guide: Any) -> TypeGuard[ModelGuide]:
    """Whether the guide is over all latent choices, which are real and not too many."""
    if not isinstance(guide, CoordinatesGuide | MeanField) or getattr(guide, "frame", None) is not None:
        return False
    return _is_whole(guide) and guide.latents.size <= MOST_COORDINATES


def _is_whole(guide: ModelGuide) -> bool:
    """Whether the guide is over all latent choices, with one density of them."""
    latents = guide.latents
    return not (latents.discrete or latents.left_out or latents.in_branch or latents.is_random)


def _gaussian(guide: ModelGuide, start: Start, key: PRNGKeyArray) -> Moments:
    u = guide.latents.join(guide.start(key, start))
    found = run_once("a Gaussian", _by_hessians, (guide,), (u, key))
    if not is_traced(found) and not found.misses:
        return found  # and nothing more is compiled
    return run_once("a Gaussian by secants", _by_secants, (guide,), (found, u, key))


def _by_hessians(guide: ModelGuide, u: Array, key: PRNGKeyArray) -> Moments:
    return fit_by(by_hessians, guide.latents.density(), u, key, diagonal=isinstance(guide, MeanField))


def _by_secants(guide: ModelGuide, found: Moments, u: Array, key: PRNGKeyArray) -> Moments:
    return refit(found, guide.latents.density(), u, key, diagonal=isinstance(guide, MeanField))


def _blocks(guide: Structured, start: Start, key: PRNGKeyArray) -> FoundBlocks | None:
    """The fitted blocks; None where the model's density has not their structure, or kinks."""
    if not _is_whole(guide):
        return None
    u = guide.latents.join(guide.start(key, start))
    has_structure = run_once("the structure of a density", Structured.has_structure, (guide,), (u, key))
    check_known(has_structure, "vipl.infer", _OUTSIDE)
    if not has_structure:
        return None
    found = run_once("blocks", Structured.fit, (guide,), (u, key))
    return None if found.misses else found


def _natural(found: Moments | FoundBlocks, seconds: float) -> Report:
    if is_traced(found):
        taken = found.num_search + found.num_average
        values = jnp.where(jnp.arange(len(found.bounds)) < taken, found.bounds, jnp.nan)
        return Report("natural gradients", values, found.error <= TOLERANCE, taken, seconds)
    taken = int(found.num_search) + int(found.num_average)
    converged = bool(found.error <= TOLERANCE)
    note = f"standard error {float(found.error):.3f} sd"
    note += f", {int(found.skipped)} steps skipped that were not finite" if int(found.skipped) else ""
    return Report("natural gradients", np.asarray(found.bounds)[:taken], converged, taken, seconds, note)


def _of_gaussian(guide: ModelGuide, found: Moments, seconds: float) -> tuple[PyTree, Report]:
    report = _natural(found, seconds)
    if isinstance(guide, FullRank):
        return guide.of_moments(found.loc, lower_triangular(found.factor)), report
    return guide.of_moments(found.loc, jnp.diagonal(found.factor)), report  # type: ignore[attr-defined]


def _objective(model: Program, data: Any, guide: Guide, params: PyTree) -> tuple[Expectation, PyTree]:
    """The bound whose gradient is followed, and what it is given beside the parameters.

    It is exact over a discrete chain where that can be, else drawn. It is given the numbers of guide, model and data;
    None for nothing.
    """
    exact = _with_chain(model, data, guide)
    if exact is not None:
        try:
            jax.eval_shape(exact.estimate, jax.random.key(0), params)
        except ViplError:  # the model is no chain given the rest
            pass
        else:
            return exact, None
    things = guide, model, dict(data)
    taken = take_apart(things)
    if taken is None or not can_make(*taken):
        return expectation(lambda params: _bound(params, *things)), None
    shape, numbers = taken
    return expectation(lambda params, numbers: _bound(params, *shape.make(numbers))), numbers


def _bound(params: PyTree, guide: Any, model: Program, data: Any) -> Array:
    program = guide(params)
    held = program.is_exact() and not _has_flow(guide)
    return (sticking_the_landing if held else elbo)(model, program, data)


def _with_chain(model: Program, data: Any, guide: Guide) -> Expectation | None:
    """The bound that is exact over the one chain of a guide; None where it has none, or several."""
    address = _chain_of(guide)
    if address is None:
        return None

    @expectation
    def bound(params: PyTree) -> Array:
        return elbo_with_chain(model, guide(params), data, address)

    return bound


def _without_steps(
    model: Program, data: Any, guide: Guide, start: Start, key: PRNGKeyArray, *, by_steps: bool
) -> tuple[PyTree, str, Sequence[float]]:
    """Parameters that no gradients are followed for, how they are found, and bounds; nothing where there are none.

    Args:
      model: over latents and data.
      data: the observed choices.
      guide: the family.
      start: where to begin.
      key: PRNG key.
      by_steps: whether steps of gradients are asked for.
    """
    if isinstance(guide, Laplace | Pathfinder):
        return guide.init(key, start=start), type(guide).__name__, ()
    if isinstance(guide, Boosted):
        params, bounds = guide.find(key, start)
        check_known(bounds, "vipl.infer", _OUTSIDE)
        return params, "Boosted", np.asarray(bounds).tolist()
    exact = None if by_steps else _exact_chain(model, data, guide)
    return exact, "" if exact is None else "forward-backward", ()


def _exact_chain(model: Program, data: Any, guide: Guide) -> PyTree | None:
    """The parameters of the exact posterior, of a Markov guide of a model that is one chain; None of others."""
    address = _chain_of(guide)
    if address is None or not isinstance(guide, Markov):
        return None
    try:
        initial, transition = run_once("the tables of a chain", posterior_tables, (model, data), ())
    except ViplError:  # it is no chain
        return None
    return nest({(*address, "initial"): initial, (*address, "transition"): transition})


def _chain_of(guide: Guide) -> Address | None:
    """The address of the one chain of single values that a guide has; None where it has none, or others."""
    chains = [x for part in parts_of(guide) if isinstance(part, Markov) for x in part.latents.discrete]
    return chains[0].address if len(chains) == 1 and len(chains[0].shape) == 1 else None


def _has_flow(guide: Any) -> bool:
    """Whether a part is a flow, whose bound is not fitted by sticking the landing.

    That asks for the density of a given value, by an inverse: dear but for a coupling; and for its slope in that value,
    which is 1 / slope of the map: where a spline is flat, gradients of a coupling were seen to be 10^10 times as large.
    """
    return any(isinstance(x, Flow) or (isinstance(x, Amortized) and x.has_flow) for x in parts_of(guide))


def _stochastic(
    objective: Expectation,
    params: PyTree,
    key: PRNGKeyArray,
    optimizer: optax.GradientTransformation | None,
    num_steps: int | None,
    options: dict[str, Any],
) -> tuple[PyTree, np.ndarray, bool | None, int]:
    """Parameters, estimates of the bound, whether the rule was met (None without one), and the steps taken."""
    most = num_steps if num_steps is not None else (20_000 if optimizer is None else 5_000)
    if optimizer is not None:
        done = fit(objective, params, optimizer, key=key, num_steps=most, **options)
        return done.params, np.asarray(done.values), None if int(done.stopped) == most else False, int(done.stopped)
    values: list[np.ndarray] = []
    converged, taken = False, 0
    for stage, rate in enumerate((1e-2, 3e-3, 1e-3)):
        adam, done, waited, best = optax.adam(rate), None, 0, -np.inf
        options = options | {"key": jax.random.fold_in(key, stage), "average": _AVERAGE}
        converged = False
        while taken < most and not converged:
            chunk = min(_CHUNK, most - taken)
            done = fit(objective, params, adam, num_steps=chunk, resume=done, **options)
            new = np.asarray(done.values)[-chunk:]
            values.append(new)
            taken += chunk
            if not np.isfinite(new).all():
                return done.params, np.concatenate(values), False, taken
            mean, error = new.mean(), new.std() / np.sqrt(len(new))
            waited = 0 if mean > best + max(2 * error, _GROWTH) else waited + 1
            best = max(best, mean)
            converged = waited == 2
        if done is None:
            break
        params = done.averaged
    return params, np.concatenate(values), converged, taken
