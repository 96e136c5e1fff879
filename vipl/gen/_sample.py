"""`sample` and `factor`: the two effects of a generative function."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from vipl import _jax
from vipl._types import ArrayLike, Float
from vipl.distributions._stable import stabilize
from vipl.errors import ChoiceError, EstimatorError, ProgramError, show_address, show_aval
from vipl.gen._choices import Address, check_address
from vipl.gen._density import Factor, ScaledDistribution, check_distribution
from vipl.gen._each import check_points
from vipl.gen._estimator import Estimator
from vipl.gen._source import Source
from vipl.gen._supports import describe
from vipl.ir.frames import user_frame
from vipl.ir.partition import concrete_integer, is_array, partition, python_integer
from vipl.ir.primitives import Site, bind_site
from vipl.ir.staging_rules import check_context


def sample(address: str | Address, source: object, estimator: Estimator | None = None, **unknown: object) -> Any:
    """Draws a value from a distribution, or runs a generative function, under an address.

    May be called anywhere in a program: in plain code, helper functions, `jit`, `vmap` (independent draws in
    every lane), `scan`, `map`, `fori_loop`, `cond`, `switch`, `checkpoint`.

    Args:
      address: the site's name; a tuple nests, as in `("layer", "w")`.
      source: a NumPyro distribution; or `program(*args)` with `@vipl.gen` on `program`, whose choices nest
        under the address; or either with a weight, `vipl.scaled(source, weight)`.
      estimator: how the derivative of an expectation treats the site. None: `Reparam()` where the distribution
        is reparametrized, otherwise `Score()`; both are unbiased.
      **unknown: nothing; what other systems have here (`obs=`, `infer=`, ...) raises, and says what to write.

    Returns:
      The value, of shape `batch_shape + event_shape`; the return value of a generative function.

    Raises:
      AddressError: the address is not a string.
      ProgramError: there is another keyword.
      DistributionError: the source is not a distribution, or its shapes are out of date.
      EstimatorError: the estimator cannot serve the distribution.
    """
    where = user_frame()
    address = check_address(address, where)
    at = f"{show_address(address)} in {where}"
    check_context(at)
    if unknown:
        raise _no_keyword(next(iter(unknown)), address, at)
    if isinstance(source, Source):
        if estimator is not None:
            raise EstimatorError(
                "an estimator is given for a whole generative function.",
                at=at,
                got=f"{_name(estimator)} for {source.name}",
                expected="one estimator for each of its sites",
                fix=f"name them: {source.name}(...).with_estimators({{'site': {_name(estimator)}()}})",
            )
        return source.inline(address, where)
    weights = []
    if isinstance(source, ScaledDistribution):
        source, weights = source.distribution, [source.weight]
    distribution: Any = stabilize(source)
    skeleton, leaves = partition(distribution, keep=concrete_integer)
    value = check_distribution(distribution, skeleton, leaves, at)
    packed_estimator, extra = None, []
    if estimator is not None:
        check_estimator(estimator, at)
        packed_estimator, extra = partition(estimator, keep=python_integer)
    makes_float = estimator is not None and estimator.makes_float and not jnp.issubdtype(value.dtype, jnp.floating)
    site = Site(
        address=address,
        distribution=skeleton,
        estimator=packed_estimator,
        num_distribution=len(leaves),
        shape=tuple(value.shape),
        dtype=jnp.result_type(float) if makes_float else value.dtype,
        support=describe(distribution),
        where=where,
        makes_float=makes_float,
        scaled=bool(weights),
    )
    if estimator is not None:
        check_points(site, tuple(_jax.typeof(x) for x in [*leaves, *extra]))
    return bind_site([*leaves, *extra, *weights], site)


_AS_DATUM = "leave it out, and give the datum to assess or generate: {{{name}: y}}"
_AT_THE_CALL = "leave it out: a key is passed at the call, as in program.simulate(key)"
_REPEATED = "write distribution.expand(shape), or jax.vmap around the site"
_KEYWORDS = {
    "obs": _AS_DATUM,
    "observed": _AS_DATUM,
    "obs_mask": "leave it out, and give the datum to assess or generate; the distribution with .mask(obs_mask)",
    "infer": "pass an estimator as the third argument, such as vipl.Enumerate()",
    "key": _AT_THE_CALL,
    "rng_key": _AT_THE_CALL,
    "seed": _AT_THE_CALL,
    "shape": _REPEATED,
    "sample_shape": _REPEATED,
}


def _no_keyword(keyword: str, address: tuple[str, ...], at: str) -> ProgramError:
    return ProgramError(
        "sample has no such keyword.",
        at=at,
        got=f"{keyword}=...",
        expected="sample(address, source, estimator)",
        fix=_KEYWORDS.get(keyword, "leave it out").format(name=show_address(address)),
    )


def factor(address: str | Address, log_weight: Float[ArrayLike, "..."]) -> None:
    """Adds a log weight to the log density of a generative function.

    log p(choices) gets + `log_weight` (summed, if it is an array). The density is then unnormalized. Nothing is
    drawn, and the address has no choice; it is named in messages only.

    Args:
      address: the factor's name.
      log_weight: f[...], the log weight.
    """
    where = user_frame()
    address = check_address(address, where)
    check_context(f"{show_address(address)} in {where}")
    if not is_array(log_weight) or not jnp.issubdtype(jnp.result_type(log_weight), jnp.floating):
        raise ChoiceError(
            "a factor's log weight is not a float.",
            at=f"{show_address(address)} in {where}",
            got=show_aval(log_weight),
            expected="a float, or an array of floats",
            fix="pass a log weight such as -0.5 * error**2",
        )
    skeleton, leaves = partition(Factor(log_weight))
    dtype = jnp.result_type(float)
    site = Site(address, skeleton, None, 1, (0,), dtype, None, where)
    bind_site(leaves, site)


def check_estimator(estimator: object, at: str) -> None:
    """Raises where something is not an estimator."""
    if isinstance(estimator, Estimator):
        return
    got, fix = repr(estimator), "pass an object, not its name"
    if isinstance(estimator, type) and issubclass(estimator, Estimator):
        got, fix = f"the class {estimator.__name__}", f"write {estimator.__name__}()"
    raise EstimatorError(
        "the third argument of `sample` is not an estimator.",
        at=at,
        got=got,
        expected="an estimator object, such as vipl.Score()",
        fix=fix,
    )


def _name(estimator: Estimator | type[Estimator]) -> str:
    return estimator.__name__ if isinstance(estimator, type) else type(estimator).__name__
