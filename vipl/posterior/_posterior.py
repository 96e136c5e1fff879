"""What is known of the latent choices of a model after a guide was fitted to its data.

A posterior is a guide, its parameters, the model and the data; everything else is computed from draws of the guide. Its
`program` is the fitted guide as a program, so that a posterior can stand in an objective or in another model.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl import guides
from vipl._checks import whole_number
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.errors import AddressError, ProgramError, show_address, show_addresses
from vipl.gen import Program
from vipl.gen._choices import Address, flatten, nest
from vipl.guides import Guide
from vipl.guides._combine import Combined
from vipl.ir.keys import as_key
from vipl.posterior._draws import addresses_of, log_likelihoods, predict
from vipl.posterior._psis import Smoothed, smooth
from vipl.posterior._table import Table, number

Choices = dict[str, Any]
"""Nested dicts of arrays, by address."""


@dataclass(frozen=True)
class Report:
    """How a guide was fitted.

    Attributes:
      method: "natural gradients", "stochastic gradients" or "Laplace".
      values: f[steps], the estimate of the evidence lower bound at each step.
      converged: whether the stopping rule of the method was met.
      steps: how many steps were taken.
      seconds: how long it took, compilation included.
      note: what else there is to say.
    """

    method: str
    values: np.ndarray
    converged: bool
    steps: int
    seconds: float
    note: str = ""


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
        log_weights = jnp.asarray(self.weights.log_weights)
        index = jax.random.categorical(as_key(key), log_weights, shape=(num_samples,))
        return jax.tree.map(lambda x: x[index], self.choices)

    def expectation(self, fn: Callable[[Choices], PyTree]) -> PyTree:
        """Σ_i w_i fn(z_i)."""
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
    guide: Guide | Combined
    params: PyTree
    report: Report | None = None

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

    def log_prob(self, choices: Choices) -> Float[Array, ""]:
        """Log q(choices), the guide's log density."""
        return self.program.assess(choices).log_prob

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
        drawn = self.sample(jax.random.key(0) if key is None else key, num_samples)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.vmap(fn)(drawn))

    def log_likelihood(
        self,
        key: PRNGKeyArray | None = None,
        program: Program | None = None,
        data: Choices | None = None,
        num_samples: int = 1000,
    ) -> Choices:
        """Log p(y_j | z_i) of each observation j at draws z_i ~ q, by address: f[num_samples, ...].

        Elementwise where a site's elements are independent, with the axes of the loops around the site first; of
        held-out data too.

        Args:
          key: PRNG key.
          program: the model with other arguments. None: the model itself.
          data: its observed choices. None: the posterior's data.
          num_samples: how many draws.

        Raises:
          AddressError: a choice of the program is neither the posterior's nor given.
        """
        program, data = self.model if program is None else program, self.data if data is None else data
        key = as_key(jax.random.key(0) if key is None else key)
        drawn = flatten(self.sample(key, num_samples), "draws")
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
        names = [a for a in drawn if a in addresses_of(program)]

        @jax.jit
        def each(key: PRNGKeyArray, values: list[Array]) -> dict[str, Any]:
            def one(k: PRNGKeyArray, xs: list[Array]) -> dict[str, Any]:
                choices = dict(zip(names, xs, strict=True)) | given
                return _keyed(log_likelihoods(k, program, choices, list(given)))

            return jax.vmap(one)(jax.random.split(key, num_samples), values)

        found = each(jax.random.fold_in(key, 1), [drawn[a] for a in names])
        return nest({tuple(name.split("/")): x for name, x in found.items()})

    def improve(self, key: PRNGKeyArray, num_samples: int = 4000) -> Improved:
        """Draws that are weighted towards the exact posterior: Pareto-smoothed importance sampling.

        w_i ∝ p(z_i, data) / q(z_i), z_i ~ q, the largest smoothed. Reliable where `k_hat` is below the `limit` of the
        result.

        Args:
          key: PRNG key.
          num_samples: how many draws.

        Reference: Vehtari et al. (2024), "Pareto smoothed importance sampling".
        """
        drawn, log_p, log_q = self._draw(key, num_samples)
        return Improved(drawn, smooth(log_p - log_q), jnp.mean(log_p - log_q), jnp.std(log_p - log_q))

    # --- what it says of itself ---------------------------------------------------------------------------------

    def summary(self, key: PRNGKeyArray | None = None, num_samples: int = 4000) -> Table:
        """Mean, deviation and quantiles of each latent number, and how far the fit can be trusted.

        `k-hat` is that of the importance weights between guide and posterior, `ESS` what the draws are worth after
        weighting; `moved` is how far weighting moves a mean, in posterior deviations. The last line is a verdict.
        """
        improved = self.improve(jax.random.key(0) if key is None else key, num_samples)
        weights = np.exp(improved.weights.log_weights)
        rows = []
        for address, x in flatten(improved.choices, "draws").items():
            flat = np.asarray(x, np.float64).reshape(num_samples, -1)
            for k, index in enumerate(np.ndindex(x.shape[1:])):
                column = flat[:, k]
                mean, sd = column.mean(), column.std()
                moved = (weights @ column - mean) / sd if sd > 0 else 0.0
                quantiles = np.quantile(column, [0.055, 0.5, 0.945])
                label = "/".join(address) + (f"[{', '.join(map(str, index))}]" if index else "")
                rows.append((label, *map(number, (mean, sd, *quantiles)), f"{moved:+.2f}"))
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
        that of the guide), observed_data; prior and prior_predictive; constant_data. Nested addresses are joined by
        "/".

        Args:
          key: PRNG key.
          num_samples: how many draws.
          prior: whether to draw from the prior too.
          coords: as ArviZ has them.
          dims: as ArviZ has them, by address.
          constant_data: arrays by name.
        """
        import arviz_base

        keys = jax.random.split(as_key(jax.random.key(0) if key is None else key), 3)
        drawn, log_p, log_q = self._draw(keys[0], num_samples)
        groups: dict[str, Any] = {
            "posterior": drawn,
            "posterior_predictive": predict(keys[1], self.model, num_samples, choices=drawn),
            "log_likelihood": self.log_likelihood(keys[0], num_samples=num_samples),
            "sample_stats": {"lp": log_p, "log_q": log_q},
        }
        if prior:
            before = flatten(predict(keys[2], self.model, num_samples), "prior")
            latent = flatten(drawn, "draws")
            groups["prior"] = nest({a: x for a, x in before.items() if a in latent})
            groups["prior_predictive"] = nest({a: x for a, x in before.items() if a not in latent})
        trees = {
            name: {k: np.asarray(x)[None] for k, x in _keyed(flatten(g, name)).items()} for name, g in groups.items()
        }
        trees["observed_data"] = {k: np.asarray(x) for k, x in _keyed(flatten(self.data, "data")).items()}
        if constant_data:
            trees["constant_data"] = {k: np.asarray(x) for k, x in constant_data.items()}
        trees = {name: tree for name, tree in trees.items() if tree}
        return arviz_base.from_dict(trees, coords=dict(coords or {}), dims=dict(dims or {}))

    def plot_fit(self, ax: Any = None) -> Any:
        """Draws the estimates of the bound against the steps; returns matplotlib's axes."""
        import matplotlib.pyplot as plt

        if self.report is None:
            raise ProgramError(
                "a posterior has no history to draw.",
                at=f"plot_fit of {self!r}",
                got="a posterior that was put together by hand",
                expected="one that vipl.infer returned",
                fix="make it by vipl.infer",
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

    # --- keeping ------------------------------------------------------------------------------------------------

    def save(self, path: str | pathlib.Path) -> None:
        """Writes guide and parameters to a file of arrays (NumPy's npz, no pickle); `vipl.load` reads it.

        Raises:
          ProgramError: the guide is not one of `vipl.guides`' own classes.
        """
        leaves, _ = jax.tree.flatten(self.params)
        said, arrays = _describe(self.guide)
        said |= {"version": 1, "model": self.model.name, "data": sorted(_keyed(flatten(self.data, "data")))}
        arrays |= {f"params/{k}": np.asarray(x) for k, x in enumerate(leaves)}
        if self.report is not None:
            r = self.report
            said["report"] = [r.method, r.converged, r.steps, r.seconds, r.note]
            arrays["report"] = np.asarray(r.values)
        path = pathlib.Path(path)
        with path.open("wb") as file:
            np.savez(file, **arrays, said=np.frombuffer(json.dumps(said).encode(), np.uint8))  # pyright: ignore

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


def _keyed(flat: Mapping[Address, Any]) -> dict[str, Any]:
    return {"/".join(a): x for a, x in flat.items()}


def _describe(guide: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What makes a guide again: what JSON holds, and arrays."""
    if isinstance(guide, Combined):
        parts, arrays = {}, {}
        for name, part in guide.parts.items():
            parts[name], more = _describe(part)
            arrays |= {f"{name}/{k}": x for k, x in more.items()}
        return {"combine": parts}, arrays
    name = type(guide).__name__
    if getattr(guides, name, None) is not type(guide):
        raise ProgramError(
            "a guide cannot be written to a file.",
            at="Posterior.save",
            got=name,
            expected="a guide of vipl.guides",
            fix="write posterior.params yourself, and make vipl.Posterior(model, data, guide, params) again",
        )
    options = dict(guide.options)
    frame, discrete = options.pop("frame", None), options.pop("discrete", None)
    if discrete is not None:
        options["discrete"] = repr(discrete)
    arrays = {} if frame is None else {"frame/loc": np.asarray(frame[0]), "frame/scale_tril": np.asarray(frame[1])}
    return {"guide": name, "options": options, "framed": frame is not None}, arrays


def _guide_of(said: dict[str, Any], arrays: Mapping[str, np.ndarray], model: Program, data: Choices) -> Any:
    if "combine" in said:
        each = {}
        for name, part in said["combine"].items():
            own = {k.removeprefix(f"{name}/"): x for k, x in arrays.items() if k.startswith(f"{name}/")}
            each[name] = _guide_of(part, own, model, data)
        return guides.combine(each)
    options = {k: _tuples(x) for k, x in said["options"].items()}
    if said["framed"]:
        options["frame"] = (jnp.asarray(arrays["frame/loc"]), jnp.asarray(arrays["frame/scale_tril"]))
    return getattr(guides, said["guide"])(model, data, **options)


def _tuples(x: Any) -> Any:
    """What JSON made lists of."""
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def load(path: str | pathlib.Path, program: Program, data: Choices) -> Posterior:
    """Reads a posterior that `Posterior.save` wrote.

    Args:
      path: the file.
      program: the model with its arguments, as it was fitted.
      data: the observed choices.

    Raises:
      ProgramError: the file is not a posterior's; or it is that of another model, or of latent choices of other shapes.
    """
    at = f"vipl.load of {pathlib.Path(path).name}"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        said = json.loads(arrays.pop("said").tobytes())
    except (ValueError, KeyError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _not_loaded(at, "not a file of a posterior", "a file that Posterior.save wrote") from None
    here = sorted(_keyed(flatten(data, "the data")))
    if said["model"] != program.name or said["data"] != here:
        got = f"{said['model']} given {', '.join(said['data'])}"
        raise _not_loaded(at, got, f"{program.name} given {', '.join(here)}")
    guide = _guide_of(said, arrays, program, data)
    leaves, structure = jax.tree.flatten(guide.init())
    stored = [arrays[f"params/{k}"] for k in range(sum(name.startswith("params/") for name in arrays))]
    if [x.shape for x in leaves] != [x.shape for x in stored]:
        raise _not_loaded(
            at, f"parameters of shapes {[x.shape for x in stored]}", f"shapes {[x.shape for x in leaves]}"
        )
    params = jax.tree.unflatten(structure, [jnp.asarray(x) for x in stored])
    report = None
    if "report" in said:
        method, converged, steps, seconds, note = said["report"]
        report = Report(method, arrays["report"], converged, steps, seconds, note)
    return Posterior(program, data, guide, params, report)


def _not_loaded(at: str, got: str, expected: str) -> ProgramError:
    return ProgramError(
        "a file does not hold this posterior.",
        at=at,
        got=got,
        expected=expected,
        fix="pass the model and the data that were fitted",
    )
