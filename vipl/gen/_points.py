"""What the estimator of a site puts in its place: the site program, traced and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from vipl._jax import ShapedArray
from vipl.distributions._draws import in_support, log_density
from vipl.errors import EstimatorError, show_aval
from vipl.gen._density import without_event
from vipl.gen._estimator import Draw, Law, Points
from vipl.interpret.noise import SiteProgram, site_program
from vipl.ir.partition import Skeleton
from vipl.ir.primitives import Site


def points_program(config: tuple[Skeleton, Skeleton, int, bool, bool, Any]) -> Callable[..., Draw | Points]:
    """The site program of an estimator: `(key, *operands) -> Draw | Points`.

    The point of a draw becomes the log densities of its parts, f[batch], where the site `weighs`; otherwise None.
    Values of the site's kind get its width: a distribution may draw int32 and tell its support in int64.
    """
    source, estimator, num_distribution, makes_float, weighs, dtype = config

    def floating(x):
        return x if jnp.issubdtype(x.dtype, jnp.complexfloating) else x.astype(dtype)

    def points(key, *operands):
        d = source.combine(operands[:num_distribution])
        points = estimator.combine(operands[num_distribution:]).points(Law(d), key)
        if isinstance(points, Draw):
            points = _inside(points, without_event(d), weighs)
        if isinstance(points, Points) and _kind(points.values.dtype) == _kind(dtype):
            points = points._replace(values=points.values.astype(dtype))
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


def _kind(dtype: Any) -> Any:
    """Integers or floats of any width; anything else is a kind of its own."""
    return next((kind for kind in (jnp.integer, jnp.floating) if jnp.issubdtype(dtype, kind)), dtype)


def _inside(points: Draw, d: dist.Distribution, weighs: bool) -> Draw:
    if points.point is None:
        return points._replace(value=in_support(d, points.value))
    return points._replace(point=log_density(d, points.point) if weighs else None)  # type: ignore[arg-type]


def points_of(site: Site, avals: tuple[ShapedArray, ...]) -> SiteProgram:
    """The estimator of a site, traced and checked; errors of the estimator are given the site's place."""
    config = (site.distribution, site.estimator, site.num_distribution, site.makes_float, site.weighs, site.dtype)
    program = site_program(points_program, config, avals, site.at())
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
        expected = _show(site.dtype, site.shape)
        if isinstance(points, Points):
            expected += " with a leading axis over the points"
        raise _malformed(site, name, f"a value {show_aval(values)}", expected)
    for part, x, dtype, wanted in _parts(points, site):
        if x is not None and (x.shape != wanted or not jnp.issubdtype(x.dtype, dtype)):
            raise _malformed(site, name, f"{part} {show_aval(x)}", _show(dtype, wanted))
    return program


def _parts(points: Draw | Points, site: Site) -> Iterator[tuple[str, Any, Any, tuple[int, ...]]]:
    """What stands in points besides the value: its name, shape and dtype, and the dtype and shape that it must have."""
    if isinstance(points, Points):
        yield "log weights", points.log_weights, jnp.floating, points.values.shape[:1]
        yield "`possible`", points.possible, jnp.bool_, points.values.shape[:1]
        return
    for name in ("log_weight", "control", "shared_control"):
        yield f"`{name}`", getattr(points, name), jnp.floating, ()
    for name in ("alternatives", "pruned"):
        if (others := getattr(points, name)) is not None:
            number = jnp.shape(others.weights)[:1]
            yield f"values of `{name}`", others.values, _kind(site.dtype), (*number, *site.shape)
            yield f"weights of `{name}`", others.weights, jnp.floating, number
            yield f"`possible` of `{name}`", others.possible, jnp.bool_, number


def _show(dtype: Any, shape: tuple[int, ...]) -> str:
    """A type of arrays as messages write it."""
    name = {jnp.floating: "float", jnp.integer: "int"}.get(dtype) or jnp.dtype(dtype).name
    return f"{name}[{','.join(map(str, shape))}]"


def _malformed(site: Site, name: str, got: str, expected: str) -> EstimatorError:
    return EstimatorError(
        f"the estimator {name} does not return points for its site.",
        at=site.at(),
        got=got,
        expected=expected,
        fix="return vipl.estimators.Draw(value, ...) or Points(values, log_weights), values of the site's shape and "
        "dtype, and one weight for each",
    )
