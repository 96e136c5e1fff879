"""What the estimator of a site puts in its place: the site program, traced and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._jax import ShapedArray
from vipl.distributions._draws import in_support, log_density
from vipl.errors import EstimatorError, ViplError, show_aval
from vipl.gen._density import without_event
from vipl.gen._estimator import Draw, Law, Points
from vipl.interpret.noise import SiteProgram, site_program
from vipl.ir.partition import Skeleton
from vipl.ir.primitives import Site


def points_program(config: tuple[Skeleton, Skeleton, int, bool, bool]) -> Callable[..., Draw | Points]:
    """The site program of an estimator: `(key, *operands) -> Draw | Points`.

    The point of a draw becomes the log densities of its parts, f[batch], where the site `weighs`; otherwise None.
    """
    source, estimator, num_distribution, makes_float, weighs = config

    def floating(x):
        return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)

    def points(key, *operands):
        d = source.combine(operands[:num_distribution])
        points = estimator.combine(operands[num_distribution:]).points(Law(d), key)
        if isinstance(points, Draw):
            points = _inside(points, without_event(d), weighs)
        if not makes_float:
            return points
        if isinstance(points, Points):
            return points._replace(values=floating(points.values))
        if not isinstance(points, Draw):
            return points
        others = {
            name: x and x._replace(values=floating(x.values))
            for name, x in {"alternatives": points.alternatives, "pruned": points.pruned}.items()
        }
        return points._replace(value=floating(points.value), **others)

    return points


def _inside(points: Draw, d: dist.Distribution, weighs: bool) -> Draw:
    if points.point is None:
        return points._replace(value=in_support(d, points.value))
    return points._replace(point=log_density(d, points.point) if weighs else None)  # type: ignore[arg-type]


def points_of(site: Site, avals: tuple[ShapedArray, ...]) -> SiteProgram:
    """The estimator of a site, traced and checked; errors of the estimator are given the site's place."""
    config = (site.distribution, site.estimator, site.num_distribution, site.makes_float, site.weighs)
    try:
        program = site_program(points_program, config, avals)
    except ViplError as error:
        raise error.located(site.at()) if not error.at else error from None
    points = program.shape
    estimator: Any = site.estimator.combine(avals[site.num_distribution :])  # type: ignore[union-attr]
    name = type(estimator).__name__
    if not isinstance(points, (Draw, Points)):
        raise _malformed(
            site, name, f"`points` returned {show_aval(points)}", "vipl.estimators.Draw or vipl.estimators.Points"
        )
    values = points.value if isinstance(points, Draw) else points.values
    shape = values.shape if isinstance(points, Draw) else values.shape[1:]
    if isinstance(points, Draw) and points.alternatives is not None and points.pruned is not None:
        raise _malformed(site, name, "a Draw with alternatives and pruned ones", "one of the two")
    if estimator.makes_float and not jnp.issubdtype(site.dtype, jnp.floating):
        raise EstimatorError(
            "a relaxation is put at a site of integers from outside.",
            at=site.at(),
            got=f"{name} for a site that is {jnp.dtype(site.dtype)}",
            expected="a site whose value is a float, which it is only if a relaxation is named where it is sampled",
            fix=f'write sample("{site.address[-1]}", ..., {name}(...)) in the program itself',
        )
    if shape != site.shape or values.dtype != site.dtype:
        expected = f"{jnp.dtype(site.dtype)}[{','.join(map(str, site.shape))}]"
        if isinstance(points, Points):
            expected += " with a leading axis over the points"
        raise _malformed(site, name, f"a value {show_aval(values)}", expected)
    return program


def _malformed(site: Site, name: str, got: str, expected: str) -> EstimatorError:
    return EstimatorError(
        f"the estimator {name} does not return points for its site.",
        at=site.at(),
        got=got,
        expected=expected,
        fix="return Draw(value, ...) or Points(values, log_weights) of vipl.estimators, of the site's shape and dtype",
    )
