"""What is known of the latent choices of a model after a guide was fitted to its data.

A posterior is a guide, its parameters, the model and the data; everything else is computed from draws of the guide. Its
`program` is the fitted guide as a program, so that a posterior can stand in an objective or in another model.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl._checks import whole_number
from vipl._jax import Tracer
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.errors import AddressError, ProgramError, shortened, show_address, show_addresses, show_aval
from vipl.gen import Program
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, Choices, flatten, nest
from vipl.guides import Guide, ModelGuide
from vipl.guides._combine import Combined
from vipl.ir.keys import as_key, key_or_first
from vipl.posterior._draws import addresses_of, log_likelihoods, predict
from vipl.posterior._files import Report, read, write
from vipl.posterior._psis import Smoothed, smooth
from vipl.posterior._table import Table, label, number


@dataclass(frozen=True)
class Improved:
    """Weighted draws; made by `Posterior.improve`.

    Attributes:
      choices: by address, with a leading axis of n.
      weights: the smoothed weights, with `k_hat`, `ess` and `limit`.
      bound: f[], the mean of log p(z, data) - log q(z): the evidence lower bound.
      spread: f[], the standard deviation of that.
    """

    choices: Choices
    weights: Smoothed
    bound: Float[Array, ""]
    spread: Float[Array, ""]

    def sample(self, key: PRNGKeyArray, num_samples: int = 1000) -> Choices:
        """Draws with replacement by the weights."""
        num_samples = whole_number(num_samples, "num_samples", "Improved")
        log_weights = jnp.asarray(self.weights.log_weights)
        index = jax.random.categorical(as_key(key), log_weights, shape=(num_samples,))
        return jax.tree.map(lambda x: x[index], self.choices)

    def expectation(self, fn: Callable[[Choices], PyTree]) -> PyTree:
        """Σ_i w_i fn(z_i)."""
        _check_function(fn, "expectation of weighted draws")
        weights = jnp.asarray(np.exp(self.weights.log_weights))
        return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1), jax.vmap(fn)(self.choices))

    def verdict(self) -> str:
        """Whether the guide is close to the posterior, and what to try where it is not."""
        w, n = self.weights, len(self.weights.log_weights)
        error = float(self.spread) / math.sqrt(n)
        k_hat = "none" if w.k_hat == -math.inf else f"{w.k_hat:.2f}"
        said = f"evidence lower bound {float(self.bound):.3f} +- {error:.3f}; k-hat {k_hat}, ESS {w.ess:.0f} of {n}. "
        if w.k_hat < 0.5 and w.k_hat <= w.limit and w.ess > n / 10:
            return said + "Fine: the guide is close to the posterior."
        if w.k_hat <= w.limit:
            return said + "Usable: take draws from improve(key), or a more flexible guide, for tails and small effects."
        if w.ess > n / 2:
            return said + (
                "Usable but for tails: most weights are nearly equal, and a few are large, where the guide's tails are "
                "too light. Means and central intervals can be trusted; for tails try vipl.guides.Flow or Mixture."
            )
        return said + (
            "NOT reliable: the posterior differs from the guide. Try vipl.guides.Flow or Mixture; write hierarchical "
            "effects non-centred (z ~ N(0, 1), effect = mean + sd z); or run NUTS from posterior.sample."
        )


def check_fits(guide: Guide, model: Program, data: Choices, who: str, *, to_be_fitted: bool = False) -> None:
    """Raises where a guide is known to be over other choices than a model's latent ones, or made with other data.

    A guide may be made for a program of its own, which has no data, such as that of the parameters alone. One that is
    to be fitted may not: what is fitted is the density of the program and the data that it is made for.
    """
    latent = [info.site.address for info in model.unknown(data)]
    unknown = [a for a in guide.addresses if a not in latent]
    if unknown:
        raise AddressError(
            "the guide is over choices that are not latent in the model.",
            at=f"{who} of {model.name}",
            got=f"{show_addresses(unknown)} of {guide!r}",
            expected=f"some of {model.name}'s latent addresses {show_addresses(dict.fromkeys(latent))}",
            fix="make the guide for this model: guide=lambda model, data: vipl.guides.FullRank(model, data)",
        )
    if isinstance(guide, Combined):
        for part in guide.parts.values():
            if isinstance(part, Guide):
                check_fits(part, model, data, who, to_be_fitted=to_be_fitted)
    if isinstance(guide, ModelGuide) and (guide.data or to_be_fitted) and not _same(guide.data, data):
        raise ProgramError(
            "the guide was made with other data.",
            at=f"{who} of {model.name}",
            got=f"data of {guide!r} that differ from those of {who}",
            expected="one model and the same data in both",
            fix="make the guide for these data: guide=lambda model, data: vipl.guides.FullRank(model, data)",
        )


def _same(a: Choices, b: Choices) -> bool:
    """Whether data are the same numbers, as far as they are known."""
    one, other = flatten(a, "data"), flatten(b, "data")
    if one.keys() != other.keys():
        return False
    pairs = [(one[k], other[k]) for k in one if not isinstance(one[k], Tracer) and not isinstance(other[k], Tracer)]
    return all(x is y or np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in pairs)


def _check_function(fn: object, at: str) -> None:
    if not callable(fn):
        raise ProgramError(
            "what is to be averaged is not a function.",
            at=at,
            got=shortened(fn),
            expected="a function of the latent choices, a dict by address",
            fix='write expectation(lambda z: z["x"])',
        )


@dataclass(frozen=True)
class Posterior:
    """A fitted guide; made by `vipl.infer`.

    Attributes:
      model: over latents and data.
      data: the observed choices.
      guide: the family.
      params: its parameters.
      report: how they were found; None of one that was put together by hand.
    """

    model: Program
    data: Choices
    guide: Guide
    params: PyTree
    report: Report | None = None

    def __post_init__(self) -> None:
        """Raises where it is not a model with data, a guide for them, and parameters of that."""
        check_source(self.model, "model", "Posterior", program=True)
        flatten(self.data, "the data of Posterior")
        if not isinstance(self.guide, Guide):
            raise ProgramError(
                "the guide of a posterior is not a guide.",
                at="Posterior",
                got=show_aval(self.guide),
                expected="a guide of vipl.guides, made for the model and its data",
                fix="write vipl.Posterior(model, data, guide, params); the guide is the family, params are its own",
            )
        check_fits(self.guide, self.model, self.data, "Posterior")
        self.guide(self.params)

    def __repr__(self) -> str:
        return f"Posterior of {self.model.name} given {show_addresses(flatten(self.data, 'data'))} by {self.guide!r}"

    @property
    def program(self) -> Program:
        """The fitted guide as a program over the latent choices."""
        return self.guide(self.params)

    # --- draws --------------------------------------------------------------------------------------------------

    def sample(self, key: PRNGKeyArray, num_samples: int = 1000) -> Choices:
        """Draws of the latent choices, by address, with a leading axis of `num_samples`."""
        return self._draw(key, num_samples)[0]

    def log_prob(self, choices: Choices, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        """The guide's log density, log q(choices); of a `SemiImplicit` guide an estimate, which needs a key.

        Args:
          choices: a value for every choice of the guide.
          key: PRNG key; None: that of no guide whose density is exact.

        Raises:
          ProgramError: the density is an estimate, and there is no key.
        """
        return self.program.assess(choices, key=key).log_prob

    def predict(self, key: PRNGKeyArray, program: Program | None = None, num_samples: int = 1000) -> Choices:
        """Draws of a program whose latent choices are drawn from the posterior.

        ỹ_i ~ p(· | z_i),   z_i ~ q:   the posterior predictive. Choices of the program at the posterior's addresses are
        given; all others are drawn.

        Args:
          key: PRNG key.
          program: the model with other arguments, such as `model(x_new)`, or any program. None: the model itself.
          num_samples: how many.

        Raises:
          ChoiceError: a choice has another shape in the program than in the posterior.
          AddressError: the program has none of the posterior's addresses.
        """
        key_draw, key_predict = jax.random.split(as_key(key))
        program = self.model if program is None else program
        check_source(program, "program", "Posterior.predict", program=True)
        drawn = self.sample(key_draw, num_samples)
        has = addresses_of(program)
        if not any(a in has for a in flatten(drawn, "draws")):
            raise AddressError(
                "a program has none of the posterior's choices.",
                at=f"predict of {self!r}",
                got=f"addresses {show_addresses(has)}",
                expected=f"some of {show_addresses(flatten(drawn, 'draws'))}",
                fix="pass the model with other arguments; for its prior, write vipl.predict(key, program)",
            )
        return predict(key_predict, program, num_samples, choices=drawn)

    def expectation(
        self, fn: Callable[[Choices], PyTree], key: PRNGKeyArray | None = None, num_samples: int = 10_000
    ) -> PyTree:
        """The mean of a function of the latent choices over draws; its error is its deviation / sqrt(num_samples)."""
        _check_function(fn, f"expectation of {self!r}")
        drawn = self.sample(key_or_first(key), num_samples)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.vmap(fn)(drawn))

    def log_likelihood(
        self,
        key: PRNGKeyArray | None = None,
        program: Program | None = None,
        data: Choices | None = None,
        num_samples: int = 1000,
    ) -> Choices:
        """The log density of each observation j at draws z_i ~ q, log p(y_j | z_i), by address: f[num_samples, ...].

        The draws are those of `sample(key, num_samples)`. Elementwise where a site's elements are independent, with the
        axes of the loops around the site first; of held-out data too.

        Args:
          key: PRNG key.
          program: the model with other arguments. None: the model itself.
          data: its observed choices. None: the posterior's data.
          num_samples: how many draws.

        Raises:
          AddressError: a choice of the program is neither the posterior's nor given.
        """
        program, data = self.model if program is None else program, self.data if data is None else data
        check_source(program, "program", "Posterior.log_likelihood", program=True)
        the_key = key_or_first(key)
        draws = self.sample(the_key, num_samples)
        return self._log_likelihood(jax.random.fold_in(the_key, 1), program, data, draws)

    def _log_likelihood(self, key: PRNGKeyArray, program: Program, data: Choices, draws: Choices) -> Choices:
        """The log densities of data at given draws."""
        drawn = flatten(draws, "draws")
        given = {a: jnp.asarray(x) for a, x in flatten(data, "the data").items()}
        missing = [a for a in addresses_of(program) if a not in drawn and a not in given]
        if missing:
            raise AddressError(
                "a choice has no value, so that data have no density given it.",
                at=f"log_likelihood of {self!r}",
                got=f"nothing at {show_addresses(missing)}",
                expected="every choice of the program in the posterior or in the data",
                fix=f"give {show_address(missing[0])} in data, or leave it out of the program",
            )
        has = addresses_of(program)
        values = {a: x for a, x in drawn.items() if a in has}

        @jax.jit
        @jax.vmap
        def each(key: PRNGKeyArray, values: dict[Address, Array]) -> dict[Address, Array]:
            return log_likelihoods(key, program, values | given, list(given))

        num_samples = jax.tree.leaves(draws)[0].shape[0]
        return nest(each(jax.random.split(key, num_samples), values))

    def improve(self, key: PRNGKeyArray, num_samples: int = 4000) -> Improved:
        """Draws that are weighted towards the exact posterior: Pareto-smoothed importance sampling.

        w_i ∝ p(z_i, data) / q(z_i), z_i ~ q, the largest smoothed. Reliable where `k_hat` is below the `limit` of the
        result.

        Args:
          key: PRNG key.
          num_samples: how many draws, 25 or more: a tail is fitted to the largest fifth of the weights.

        Reference: Vehtari et al. (2024), "Pareto smoothed importance sampling".
        """
        num_samples = whole_number(num_samples, "num_samples", "Posterior.improve", least=25)
        drawn, log_p, log_q = self._draw(key, num_samples)
        return Improved(drawn, smooth(log_p - log_q), jnp.mean(log_p - log_q), jnp.std(log_p - log_q))

    # --- what it says of itself ---------------------------------------------------------------------------------

    def summary(self, key: PRNGKeyArray | None = None, num_samples: int = 4000) -> Table:
        """Mean, deviation and quantiles of each latent number, and how far the fit can be trusted.

        `k-hat` is that of the importance weights between guide and posterior, `ESS` what the draws are worth after
        weighting; `moved` is how far weighting moves a mean, in posterior deviations. The last line is a verdict.
        """
        improved = self.improve(key_or_first(key), num_samples)
        weights = np.exp(improved.weights.log_weights)
        rows = []
        there = {info.site.address: info.present for info in self.model.staged()[1]}
        for address, x in flatten(improved.choices, "draws").items():
            flat = np.asarray(x, np.float64).reshape(num_samples, -1)
            present = there.get(address)
            for k, index in enumerate(np.ndindex(x.shape[1:])):
                if present is not None and not present[index[: present.ndim]]:
                    continue
                column = flat[:, k]
                mean, sd = column.mean(), column.std()
                moved = (weights @ column - mean) / sd if sd > 0 else 0.0
                quantiles = np.quantile(column, [0.055, 0.5, 0.945])
                rows.append((label(address, index), *map(number, (mean, sd, *quantiles)), f"{moved:+.2f}"))
        at = f"{self!r}"
        columns = ("", "mean", "sd", "5.5%", "50%", "94.5%", "moved")
        return Table((at, *self._said_of_fit()), columns, tuple(rows), (improved.verdict(),))

    def _said_of_fit(self) -> tuple[str, ...]:
        r = self.report
        if r is None:
            return ()
        if not r.steps:
            return (f"{r.method}, {r.seconds:.1f} s",)
        end = "converged" if r.converged else "NOT converged"
        return (f"{r.method}, {r.steps} steps, {r.seconds:.1f} s, {end}{'; ' + r.note if r.note else ''}",)

    def to_arviz(
        self,
        key: PRNGKeyArray | None = None,
        *,
        num_samples: int = 1000,
        prior: bool = True,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Any] | None = None,
        constant_data: Mapping[str, Any] | None = None,
    ) -> Any:
        """An ArviZ DataTree.

        Groups: posterior, posterior_predictive, log_likelihood, sample_stats (`lp`, the log joint density, and `log_q`,
        that of the guide), observed_data; prior and prior_predictive; constant_data. The parts of a nested address are
        joined by ".", which also stands for a "/": xarray's names hold none. Log likelihoods are float64: ArviZ takes
        exponentials of them, which differ by less than a float32 shows where an observation is nearly certain.

        Args:
          key: PRNG key.
          num_samples: how many draws.
          prior: whether to draw from the prior too.
          coords: as ArviZ has them.
          dims: as ArviZ has them, by address.
          constant_data: arrays by name.

        Raises:
          AddressError: two addresses have one name.
        """
        import arviz_base

        self._check_named(dims)
        keys = jax.random.split(key_or_first(key), 4)
        drawn, log_p, log_q = self._draw(keys[0], num_samples)
        groups: dict[str, Any] = {
            "posterior": drawn,
            "posterior_predictive": predict(keys[1], self.model, num_samples, choices=drawn),
            "log_likelihood": self._log_likelihood(keys[3], self.model, self.data, drawn),
            "sample_stats": {"lp": log_p, "log_q": log_q},
        }
        groups["log_likelihood"] = jax.tree.map(lambda x: np.asarray(x, np.float64), groups["log_likelihood"])
        if prior:
            before = flatten(predict(keys[2], self.model, num_samples), "prior")
            latent = flatten(drawn, "draws")
            groups["prior"] = nest({a: x for a, x in before.items() if a in latent})
            groups["prior_predictive"] = nest({a: x for a, x in before.items() if a not in latent})
        trees = {
            name: {k: np.asarray(x)[None] for k, x in _variables(flatten(g, name)).items()}
            for name, g in groups.items()
        }
        trees["observed_data"] = {k: np.asarray(x) for k, x in _variables(flatten(self.data, "data")).items()}
        if constant_data:
            trees["constant_data"] = {k: np.asarray(x) for k, x in constant_data.items()}
        trees = {name: tree for name, tree in trees.items() if tree}
        return arviz_base.from_dict(trees, coords=dict(coords or {}), dims=dict(dims or {}))

    def _check_named(self, dims: Mapping[str, Any] | None) -> None:
        """Raises where dimensions are named of an address that there is not."""
        known = _variables(dict.fromkeys(addresses_of(self.model)))
        unknown = [name for name in dims or () if name not in known]
        if unknown:
            raise AddressError(
                "dimensions are named for an address that the model does not have.",
                at=f"to_arviz of {self!r}",
                got=", ".join(map(repr, unknown)),
                expected=f"names among {', '.join(map(repr, known))}",
                fix='name them by address, as in dims={"z": ["school"]}; nested addresses are joined by "."',
            )

    def plot_fit(self, ax: Any = None) -> Any:
        """Draws the estimates of the bound against the steps; returns matplotlib's axes."""
        import matplotlib.pyplot as plt

        if self.report is None or not self.report.steps:
            raise ProgramError(
                "a posterior has no history to draw.",
                at=f"plot_fit of {self!r}",
                got="one that was put together by hand" if self.report is None else f"one by {self.report.method}",
                expected="one that vipl.infer fitted in steps",
                fix="make it by vipl.infer, with another guide",
            )
        ax = plt.subplots(figsize=(6, 3))[1] if ax is None else ax
        values = self.report.values
        ax.plot(np.arange(1, len(values) + 1), values, linewidth=1)
        late = values[len(values) // 5 :]
        if np.isfinite(late).any():
            low, high = np.nanmin(late), np.nanmax(late)
            ax.set_ylim(low - 0.5 * (high - low) - 1e-3, high + 0.2 * (high - low) + 1e-3)
        ax.set_xlabel("step")
        ax.set_ylabel("evidence lower bound, nats")
        ax.set_title(f"{self.model.name}: {self.report.method}")
        return ax

    def save(self, path: str | pathlib.Path) -> None:
        """Writes guide and parameters to a file of arrays (NumPy's npz, no pickle); `vipl.load` reads it.

        Raises:
          ProgramError: the guide is not one of `vipl.guides`' own classes, or has an estimator of its own.
        """
        write(path, self.guide, self.params, self.model.name, self.data, self.report)

    # --- inside -------------------------------------------------------------------------------------------------

    def _draw(self, key: PRNGKeyArray, num_samples: int) -> tuple[Choices, Array, Array]:
        """Draws, their log joint densities with the data, and the guide's."""
        num_samples = whole_number(num_samples, "num_samples", "Posterior")
        return self._compiled(as_key(key), self.params, self.data, num_samples)

    @functools.cached_property
    def _compiled(self) -> Callable[..., tuple[Choices, Array, Array]]:
        guide, model = self.guide, self.model

        def draw(key: PRNGKeyArray, params: PyTree, data: Choices, num_samples: int) -> Any:
            def one(key: PRNGKeyArray) -> tuple[Choices, Array, Array]:
                trace = guide(params).simulate(key)
                both = nest(flatten(trace.choices, "draws") | flatten(data, "data"))
                return trace.choices, model.assess(both, key=key).log_prob, trace.log_prob

            return jax.vmap(one)(jax.random.split(key, num_samples))

        return jax.jit(draw, static_argnums=3)


def _variables(flat: dict[Address, Any]) -> dict[str, Any]:
    """By the names that xarray takes."""
    named: dict[str, Any] = {}
    for address, value in flat.items():
        name = ".".join(address).replace("/", ".")
        if name in named:
            raise AddressError(
                "two addresses have one name in ArviZ.",
                at=f"{show_address(address)}",
                got=f"the name {name!r} for {show_addresses(flat)}",
                expected="addresses that differ when their parts are joined by '.'",
                fix=f"rename {show_address(address)}",
            )
        named[name] = value
    return named


def load(path: str | pathlib.Path, program: Program, data: Choices) -> Posterior:
    """Reads a posterior that `Posterior.save` wrote.

    Args:
      path: the file.
      program: the model with its arguments, as it was fitted.
      data: the observed choices.

    Raises:
      ProgramError: the file is not a posterior's; or it is that of another model, or of latent choices of other shapes.
    """
    check_source(program, "program", "vipl.load", program=True)
    guide, params, report = read(path, program, data)
    return Posterior(program, data, guide, params, report)
