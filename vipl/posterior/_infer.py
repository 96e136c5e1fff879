"""`infer`: a guide, a start, an optimizer and a stopping rule for a model and its data.

Law: what `infer` returns is a guide of `vipl.guides` and parameters for it, so that any other way of finding these can
take its place: `vipl.fit` with an objective of `vipl.objectives`, which is what it uses itself where it does not fit
the moments of a Gaussian (`vipl.guides._gaussian`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex, overload

import optax

from vipl._checks import is_traced, whole_number
from vipl._settings import with_own_settings
from vipl._types import PRNGKeyArray
from vipl.errors import AddressError, ProgramError, show_addresses
from vipl.fit._check import check_optimizer
from vipl.gen import GenerativeFunction, Program
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import flatten
from vipl.gen._without_choice import valued
from vipl.guides import FullRank, Guide, MeanField, combine
from vipl.guides._combine import parts_of
from vipl.guides._guide import Start
from vipl.ir.keys import as_key
from vipl.posterior._files import Report
from vipl.posterior._posterior import G, Posterior, check_fits
from vipl.posterior._ways import MOST_COORDINATES, fit_family


@overload
def infer(
    model: Program,
    data: Mapping[str, Any],
    *,
    key: PRNGKeyArray,
    guide: G,
    start: Start = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: SupportsIndex | None = None,
    num_samples: SupportsIndex = 8,
    progress: bool = False,
) -> Posterior[G]: ...


@overload
def infer(
    model: Program,
    data: Mapping[str, Any],
    *,
    key: PRNGKeyArray,
    guide: Callable[[Program, Mapping[str, Any]], G],
    start: Start = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: SupportsIndex | None = None,
    num_samples: SupportsIndex = 8,
    progress: bool = False,
) -> Posterior[G]: ...


@overload
def infer(
    model: Program,
    data: Mapping[str, Any],
    *,
    key: PRNGKeyArray,
    guide: None = None,
    start: Start = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: SupportsIndex | None = None,
    num_samples: SupportsIndex = 8,
    progress: bool = False,
) -> Posterior[Any]: ...


@with_own_settings
def infer(
    model: Program,
    data: Mapping[str, Any],
    *,
    key: PRNGKeyArray,
    guide: Any = None,
    start: Start = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: SupportsIndex | None = None,
    num_samples: SupportsIndex = 8,
    progress: bool = False,
) -> Posterior[Any]:
    """Approximates the posterior of a model's latent choices given its data.

    max over params of L = E_q[log p(z, data) - log q(z)],  q = guide(params).

    How it fits, unless an `optimizer` is passed:

    - FullRank and MeanField guides of real choices, up to 256 coordinates: natural gradients from the start, exact for
      Gaussian posteriors, in units of the posterior itself, so that the scale of the data does not matter. They end
      when the standard errors of all means, in posterior sds, and of all log sds are below 0.02, or after 2000 steps.
      Where Hessians at points miss a part of the curvature, as they do at kinks, it is fitted again by secants.
    - Structured, over all latent choices, which are real: the same with the precision of its blocks, whatever the
      number of coordinates, where the Hessian of the model's log density has their structure, which is tried at a
      point, and misses nothing.
    - Laplace, Pathfinder, Boosted: their `init`, and nothing more.
    - Markov, of a model that is one chain and nothing else latent: forward-backward, which is exact.
    - Other joint guides (LowRank, Mixture, Flow, SemiImplicit): the same for a Gaussian first, whose moments become the
      guide's frame; then stochastic gradients.
    - FullRank beside a MeanField of discrete choices that are enumerated (the guide that is made by default): the frame
      of a Gaussian for the real choices, fitted by natural gradients to the density with the discrete ones summed out,
      from `start`, or from the best of zero and 64 draws from the prior; then stochastic gradients.
    - All others, with other discrete choices or more coordinates: stochastic gradients.

    Stochastic gradients are those of the bound with the guide's density held (sticking the landing), but for flows, or
    an estimated density; or, with one chain of a Markov guide in a model that is a chain given the rest, exact over it
    (`elbo_with_chain`); by Adam with rates 1e-2, 3e-3 and 1e-3. A rate ends when the mean bound of 250 steps has twice
    not grown by more than twice its standard error and 1e-5; the parameters are the average over about the last quarter
    of its steps.

    It is compiled once for a model function, the options, and the shapes of data and arguments; for each set of numbers
    where the model asks for numbers.

    Inside `jax.jit`, `jax.vmap` and the like it fits what it fits without stochastic gradients, Structured and Boosted
    excepted: the `params` are arrays as the data are, and so are the numbers of the `report`, whose `values` are NaN
    after the last step. It does not warn there.

    Args:
      model: over latents and data, a generative function with its arguments.
      data: the observed choices.
      key: PRNG key.
      guide: None: FullRank up to 256 real coordinates, else MeanField; discrete choices by MeanField. A class of
        `vipl.guides`, or any function (model, data) -> guide; or a guide.
      start: where to begin; see `Guide.init`.
      optimizer: an optax optimizer, used for `num_steps` steps of stochastic gradients.
      num_steps: the most steps of stochastic gradients; None: 20,000, or with an `optimizer` 5,000.
      num_samples: draws of the guide in each step of stochastic gradients.
      progress: whether to show a progress bar.

    Returns:
      A `Posterior`. A RuntimeWarning says if a stopping rule was not met.

    Raises:
      ProgramError: the model is not a program with its arguments; the guide is not one, or one of other data; inside a
        transformation of JAX, it would take stochastic gradients, or the guide is Structured or Boosted.
      AddressError: the data have an address that the model does not have; the guide is over other choices, or
        not over all latent ones.
      DistributionError: no guide can be made for a latent choice.
      ChoiceError: a datum is NaN (see `vipl.partly_observed`); the density is not finite at the start.
      SupportError: a datum lies outside the support of its site.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def model():
      ...     m = vipl.sample("m", dist.Normal(0.0, 1.0))
      ...     vipl.sample("y", dist.Normal(m, 1.0))
      >>> posterior = vipl.infer(model(), {"y": 2.0}, key=jax.random.key(0))
      >>> mean = posterior.expectation(lambda z: z["m"])
      >>> bool(abs(mean - 1.0) < 0.05)
      True

    Reference: Roeder, Wu and Duvenaud (2017), "Sticking the landing"; Khan and Rue (2023), "The Bayesian learning
    rule".
    """
    check_source(model, "model", "infer", program=True)
    key, data = as_key(key), dict(data) if isinstance(data, Mapping) else data
    flatten(data, "the data of infer")
    if optimizer is not None:
        check_optimizer(optimizer, "vipl.infer")
    num_samples = whole_number(num_samples, "num_samples", "infer")
    most = None if num_steps is None else whole_number(num_steps, "num_steps", "infer")
    family = _the_guide(model, data, guide)
    options = {"num_samples": num_samples, "progress": progress}
    family, params, report = fit_family(family, model, data, key, start, optimizer, most, options)
    if not is_traced(report.converged) and report.converged is not None and not report.converged:
        warnings.warn(
            f"vipl.infer of {model.name} did not meet its stopping rule in {report.steps} steps{_why(report)}; see "
            "posterior.summary() and posterior.plot_fit().",
            RuntimeWarning,
            stacklevel=3,
        )
    return Posterior(model, data, family, params, report)


def _why(report: Report) -> str:
    return f" ({report.note})" if report.note else ""


def _the_guide(model: Program, data: Any, guide: Any) -> Guide:
    """The guide that is asked for; raises where it is none, or one of another model."""
    if guide is None:
        return _default_guide(model, data)
    made = guide
    if not isinstance(guide, Guide) and callable(guide):
        _check_makes(guide)
        made = guide(model, data)
    if not isinstance(made, Guide):
        raise ProgramError(
            "the guide of infer is not a guide.",
            at="vipl.infer",
            got=type(made).__name__,
            expected="a guide of vipl.guides, or a function (model, data) -> guide",
            fix="pass guide=vipl.guides.MeanField; fit a guide of your own by vipl.fit and vipl.objectives.elbo",
        )
    own = [part for part in parts_of(made) if not isinstance(part, Guide)]
    if own:
        raise ProgramError(
            "a part of the guide of infer is a program of one's own, of which nobody knows where it begins.",
            at="vipl.infer",
            got=repr(own[0]),
            expected="guides of vipl.guides",
            fix="fit it by vipl.fit and vipl.objectives.elbo, and write vipl.Posterior(model, data, guide, fit.params)",
        )
    check_fits(made, model, data, "infer", to_be_fitted=True)
    _check_covers(made, model, data)
    return made


def _check_covers(guide: Guide, model: Program, data: Any) -> None:
    """Raises where a guide leaves latent choices out."""
    without = [info.site.address for info in valued(model.unknown(data)) if info.site.address not in guide.addresses]
    if without:
        names = show_addresses(dict.fromkeys(without))
        raise AddressError(
            "the guide of infer leaves latent choices out.",
            at=f"infer of {model.name}",
            got=f"{guide!r}, without {names}",
            expected=f"a guide of all latent choices of {model.name}",
            fix=f"add a part that is over {names} to combine, or leave addresses out; or sum discrete ones out of the "
            "model: vipl.marginal(model, keep, vipl.inference.Enumeration())",
        )


def _check_makes(guide: Any) -> None:
    """Raises where a class or function wants more than a model and its data."""
    try:
        signature = inspect.signature(guide)
    except (TypeError, ValueError):  # of a builtin, which does not say
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        name = getattr(guide, "__name__", type(guide).__name__)
        fix = "write guide=lambda model, data: vipl.guides.LowRank(model, data, 5), say"
        if inspect.isclass(guide) and issubclass(guide, Guide) and not inspect.isabstract(guide):
            fix = f"write guide=lambda model, data: vipl.guides.{name}(model, data, ...)"
        elif isinstance(guide, GenerativeFunction):
            fix = "fit a program of your own by vipl.fit and vipl.objectives.elbo, and make a vipl.Posterior of it"
        raise ProgramError(
            "the guide of infer wants more than a model and its data.",
            at="vipl.infer",
            got=f"{name}: {error}",
            expected="a function (model, data) -> guide",
            fix=fix,
        ) from None


def _default_guide(model: Program, data: Any) -> Guide:
    free = MeanField(model, data)
    real, discrete = free.latents.real, free.latents.discrete
    if not real or free.latents.in_branch or free.latents.size > MOST_COORDINATES:
        return free
    if not discrete:
        return FullRank(model, data)
    return combine(
        {
            "real": FullRank(model, data, addresses=[x.address for x in real]),
            "discrete": MeanField(model, data, addresses=[x.address for x in discrete]),
        }
    )
