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
from typing import Any, Generic, SupportsIndex, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vipl._checks import check_known, is_traced, whole_number
from vipl._jax import Tracer
from vipl._settings import with_own_settings
from vipl._types import Array, Float, Int, PRNGKeyArray, PyTree
from vipl.cache.programs import compiled
from vipl.errors import AddressError, ChoiceError, ProgramError, shortened, show_address, show_addresses, show_aval
from vipl.gen import Program
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, Choices, flatten, nest
from vipl.guides import Guide, ModelGuide
from vipl.guides._combine import Combined, parts_of
from vipl.guides._once import run_once
from vipl.interpret.seed import seed
from vipl.ir.keys import as_key, key_or_first
from vipl.passes.cse import cse
from vipl.posterior._arviz import check_dims, check_named, dims_by_name, tree_of, variables
from vipl.posterior._draws import (
    addresses_of,
    at_draws,
    in_chunks,
    keys_of,
    log_density,
    log_likelihoods,
    predict,
    recorded_by,
    records,
)
from vipl.posterior._evidence import Evidence, evidence_of
from vipl.posterior._files import Report, read, write
from vipl.posterior._improved import Improved, check_function, improved, mean_over_draws, values_of
from vipl.posterior._made import dimensions, made_at, said_of, without_unmade
from vipl.posterior._psis import smooth
from vipl.posterior._summary import COLUMNS, rows_of
from vipl.posterior._table import Table, label

_OF_A_POINT = (
    "A point tells where the density is high, not how far the posterior reaches; nothing is known of the fit. For "
    "deviations and quantiles fit vipl.guides.Laplace, which is a Gaussian at a mode, or FullRank."
)

_OF_FILE = 3
"""How many draws a file has, at which the model's density is looked at when it is read."""

_OUTSIDE = "return what it is made of, and call it outside, on vipl.Posterior(model, data, guide, params)"
G = TypeVar("G", bound=Guide, covariant=True)


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


@dataclass(frozen=True)
class Posterior(Generic[G]):
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
    guide: G
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

    @with_own_settings
    def sample(self, key: PRNGKeyArray, num_samples: SupportsIndex = 1000) -> Choices:
        """Draws of the latent choices, by address, with a leading axis of `num_samples`.

        The choices stand in the order of the model's sites.

        z_i ~ q;   the i-th draw depends on the key and on i alone, so that fewer draws are the first of more.
        """
        return self._named(self._drawn(key, num_samples)[0])

    @with_own_settings
    def log_prob(self, choices: Choices, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        """The guide's log density, log q(choices); of a `SemiImplicit` guide an estimate, which needs a key.

        Args:
          choices: a value for every choice of the guide.
          key: PRNG key; None: that of no guide whose density is exact.

        Raises:
          ProgramError: the density is an estimate, and there is no key.
        """
        return self.program.assess(choices, key=key).log_prob

    @with_own_settings
    def predict(self, key: PRNGKeyArray, program: Program | None = None, num_samples: SupportsIndex = 1000) -> Choices:
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
        return self._predict(key, program, num_samples, "predict")[1]

    def _predict(
        self, key: PRNGKeyArray, program: Program | None, num_samples: SupportsIndex, who: str
    ) -> tuple[Choices, Choices]:
        """Draws from the posterior, and what a program draws given them."""
        key_draw, key_predict = jax.random.split(as_key(key))
        program = self.model if program is None else program
        check_source(program, "program", f"Posterior.{who}", program=True)
        drawn = self.sample(key_draw, num_samples)
        has = addresses_of(program)
        if not any(a in has for a in flatten(drawn, "draws")):
            raise AddressError(
                "a program has none of the posterior's choices.",
                at=f"{who} of {self!r}",
                got=f"addresses {show_addresses(has)}",
                expected=f"some of {show_addresses(flatten(drawn, 'draws'))}",
                fix="pass the model with other arguments; for its prior, write vipl.predict(key, program)",
            )
        return drawn, predict(key_predict, program, num_samples, choices=drawn)

    @with_own_settings
    def expectation(
        self, fn: Callable[[Choices], PyTree], key: PRNGKeyArray | None = None, num_samples: SupportsIndex = 10_000
    ) -> PyTree:
        """The mean of a function of the latent choices over draws; its error is its deviation / sqrt(num_samples)."""
        check_function(fn, f"expectation of {self!r}")
        drawn = self.sample(key_or_first(key), num_samples)

        def some(_: Array, drawn: Choices) -> PyTree:
            if is_traced(drawn):
                return values_of(fn, drawn)
            return compiled("values", (fn,), None, each, (drawn,), seldom=True)

        each = functools.partial(cse, functools.partial(values_of, fn))  # what is compiled holds no array of the user's
        return jax.tree.map(mean_over_draws, in_chunks(num_samples, some, drawn))

    @with_own_settings
    def log_likelihood(
        self,
        key: PRNGKeyArray | None = None,
        program: Program | None = None,
        data: Choices | None = None,
        num_samples: SupportsIndex = 1000,
    ) -> Choices:
        """The log density of each observation j at draws z_i ~ q, log p(y_j | z_i), by address: f[num_samples, ...].

        A weight that `vipl.scaled` gives a site is part of its log density: leave it out of the model of which loo is
        computed, `log_likelihood(key, model_without_weights)`.

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
        the_program, the_data = self.model if program is None else program, self.data if data is None else data
        check_source(the_program, "program", "Posterior.log_likelihood", program=True)
        the_key = key_or_first(key)
        draws = self.sample(the_key, num_samples)
        try:
            return self._log_likelihood(jax.random.fold_in(the_key, 1), the_program, the_data, draws)
        except ChoiceError as error:
            of_data = any(error.at.startswith(show_address(a)) for a in flatten(self.data, "the data"))
            if program is None or data is not None or not of_data:
                raise
            raise error.advised("pass what is observed there: log_likelihood(key, program, data)") from None

    def _log_likelihood(self, key: PRNGKeyArray, program: Program, data: Choices, draws: Choices) -> Choices:
        """The log densities of data at given draws."""
        drawn = flatten(draws, "draws")
        given = {a: jnp.asarray(x) for a, x in flatten(data, "the data").items()}
        self._check_whole(program, drawn | given, "log_likelihood")
        has = addresses_of(program)
        values = {a: x for a, x in drawn.items() if a in has}
        found = at_draws(
            "log likelihoods", functools.partial(log_likelihoods, of=given), program, data, key, values, _number(draws)
        )
        return nest({a: found[a] for a in has if a in found})

    def _check_whole(self, program: Program, values: Mapping[Address, Any], what: str) -> None:
        """Raises where a choice of a program has no value."""
        missing = [a for a in addresses_of(program) if a not in values]
        if missing:
            raise AddressError(
                "a choice has no value, so that data have no density given it.",
                at=f"{what} of {self!r}",
                got=f"nothing at {show_addresses(missing)}",
                expected="every choice of the program in the posterior or in the data",
                fix=f"give {show_address(missing[0])} in data, or leave it out of the program",
            )

    @with_own_settings
    def deterministics(
        self, key: PRNGKeyArray | None = None, program: Program | None = None, num_samples: SupportsIndex = 1000
    ) -> dict[str, Any]:
        """The values that a program records by `vipl.deterministic`, at draws from the posterior.

        Args:
          key: PRNG key.
          program: the model with other arguments, such as `model(x_new)`, or any program, at what
            `predict(key, program, num_samples)` draws. None: the model itself, at those of `sample(key, num_samples)`.
          num_samples: how many draws.

        Returns:
          By address, nested as choices are, f[num_samples, ...]; an empty dict of a program that records nothing.

        Raises:
          AddressError: a choice of the model is neither the guide's nor given; or as `predict`.
        """
        the_key = key_or_first(key)
        if program is None:
            draws, data, program = self.sample(the_key, num_samples), self.data, self.model
        else:
            drawn, new = self._predict(the_key, program, num_samples, "deterministics")
            has = addresses_of(program)
            given = {a: x for a, x in flatten(drawn, "draws").items() if a in has}
            draws, data = nest(given | flatten(new, "draws")), {}
        return self._recorded(jax.random.fold_in(the_key, 1), program, data, draws)

    def _recorded(self, key: PRNGKeyArray, program: Program, data: Choices, draws: Choices) -> dict[str, Any]:
        """What a program records at draws of the choices that are no data."""
        has = recorded_by(program)
        if not has:
            return {}
        values = flatten(draws, "draws")
        self._check_whole(program, values | flatten(data, "the data"), "deterministics")
        found = at_draws("records", records, program, data, key, values, _number(draws))
        return nest({a: found[a] for a in has})

    @with_own_settings
    def improve(self, key: PRNGKeyArray, num_samples: SupportsIndex = 4000) -> Improved:
        """Draws that are weighted towards the exact posterior: Pareto-smoothed importance sampling.

        w_i ∝ p(z_i, data) / q(z_i), z_i ~ q, the largest smoothed. Reliable where `k_hat` is below the `limit` of the
        result.

        Args:
          key: PRNG key.
          num_samples: how many draws, 25 or more: a tail is fitted to the largest fifth of the weights.

        Raises:
          ProgramError: it is called inside a transformation of JAX: it looks at the weights. The guide is a point, in
            whole or in part, which has no density.

        Reference: Vehtari et al. (2024), "Pareto smoothed importance sampling".
        """
        num_samples = whole_number(num_samples, "num_samples", "Posterior.improve", least=25)
        self._check_has_weights("improve")
        drawn, log_p, log_q = self._draw(key, num_samples)
        check_known((log_p, log_q), "Posterior.improve", _OUTSIDE)
        return improved(drawn, np.asarray(log_p) - np.asarray(log_q))

    @with_own_settings
    def evidence(
        self,
        key: PRNGKeyArray | None = None,
        num_samples: SupportsIndex = 4000,
        *,
        num_particles: SupportsIndex | None = None,
        truth: Choices | None = None,
    ) -> Evidence:
        """The log evidence log Z, Z = p(data), from weights w = p(z, data) / q(z): bounds from both sides, an estimate.

            lower       the mean over groups of log (1/K) Σ_{k<=K} w_k: at most log Z in expectation, and growing with K
            estimate    log (1/n) Σ w, the largest smoothed: right where `weights.k_hat` is below `weights.limit`
            upper       with `truth`, the mean over groups of log (1/K) (w(truth) + Σ_{k<K} w_k): at least log Z in
                        expectation, if the truth is one draw from the exact posterior, as are the choices from which
                        the data were simulated
                        without, ½ log (1/n) Σ w², if k-hat is below 1/4; else inf

        By Markov's inequality `lower` is above log Z by more than t, and the `upper` of a truth below it, with
        probability at most exp(-t), however few draws there are. The standard error of that `upper` is that of the
        other draws, given this truth. The `upper` without a truth estimates a bound, ½ log E[w²] >= log Z, and is lower
        than that bound in expectation: with `upper_error` added twice it is above it with confidence 97.7 %, as far as
        the mean of w² is normal. That needs a finite fourth moment of w, which k-hat, itself estimated, tells; weights
        that no draw has seen, as of a mode that q does not have, no such estimate knows of.
        Bounds hold in expectation also where densities are estimated (`marginal`); `truth` asks for exact ones.

        Args:
          key: PRNG key; the draws are those of `improve`.
          num_samples: n, 25 or more.
          num_particles: K; None: n / 20.
          truth: an exact posterior draw of all latent choices, by address. Data may stand beside them.

        Returns:
          An `Evidence`, which prints as a line.

        Raises:
          ProgramError: it is called inside a transformation of JAX; there are less than two groups; the guide is a
            point, which has no density; with a truth, a density is estimated.
          AddressError: a latent choice is not in the truth.
          ChoiceError: the truth has another shape, or no density.

        Reference: Burda et al. (2016), "Importance weighted autoencoders", theorem 1; Grosse, Ghahramani and Adams
        (2015), "Sandwiching the marginal likelihood using bidirectional Monte Carlo"; Dieng et al. (2017),
        "Variational inference via χ upper bound minimization", section 2; Vehtari et al. (2024), "Pareto smoothed
        importance sampling".
        """
        num_samples = whole_number(num_samples, "num_samples", "Posterior.evidence", least=25)
        most = num_samples // 2
        particles = max(1, num_samples // 20) if num_particles is None else num_particles
        particles = whole_number(particles, "num_particles", "Posterior.evidence")
        if particles > most:
            raise _no_evidence(
                "there are too few draws for two groups.", self, f"{num_samples} draws in groups of {particles}",
                "two groups or more, which tell the standard error", f"pass num_particles of {most} or less",
            )  # fmt: skip
        self._check_has_weights("evidence")
        exact = None if truth is None else self._log_weight(truth)
        _, log_p, log_q = self._draw(key_or_first(key), num_samples)
        check_known((log_p, log_q), "Posterior.evidence", _OUTSIDE)
        log_w = np.asarray(log_p, np.float64) - np.asarray(log_q, np.float64)
        return evidence_of(log_w, smooth(log_w), particles, exact)

    def _has_point(self) -> bool:
        return any(getattr(part, "is_point", False) for part in parts_of(self.guide))

    def _check_has_weights(self, what: str) -> None:
        """Raises where the guide is a point, in whole or in part."""
        if self._has_point():
            raise ProgramError(
                "a point has no density, and so no weights.",
                at=f"{what} of {self!r}",
                got=repr(self.guide),
                expected="a guide with a density",
                fix="fit vipl.guides.Laplace, which is a Gaussian at a mode, or FullRank",
            )

    def _log_weight(self, choices: Choices) -> float:
        """The weight log p(z, data) - log q(z) of choices z, which are a draw from the exact posterior."""
        if not (self.model.is_exact() and self.program.is_exact()):
            raise _no_evidence(
                "the bound by a true draw asks for exact densities.", self, "a site whose density is estimated",
                "exact densities of the model and of the guide", "leave truth out",
            )  # fmt: skip
        flat, of_data = flatten(choices, "the truth"), flatten(self.data, "data")
        known, unknown = dict.fromkeys(self._addresses), [a for a in flat if a not in of_data]
        if dict.fromkeys(unknown).keys() != known.keys():
            raise AddressError(
                "the truth is not a value for each latent choice.",
                at=f"evidence of {self!r}",
                got=show_addresses(unknown) or "no latent choices",
                expected=show_addresses(known),
                fix="pass the choices of which the data were simulated: truth=model.simulate(key).choices",
            )
        values = [jnp.asarray(flat[a]) for a in self._addresses]
        things, args = (self.guide, self.model, self.data), (self.params, values)
        fn = functools.partial(_log_weight, names=self._addresses)
        weight = run_once("the weight of choices", fn, things, args, static=self._addresses)
        check_known(weight, "Posterior.evidence", _OUTSIDE)
        log_w, here = float(weight), {label(a, ()): np.asarray(flat[a]).tolist() for a in self._addresses}
        if not math.isfinite(log_w):
            raise ChoiceError(
                "the truth has no density, so that it is no draw from the posterior.",
                at=f"evidence of {self!r}",
                got=f"{shortened(here)}, log weight {log_w}",
                expected="choices inside their supports, at which model and guide have a density",
                fix="pass the choices of which the data were simulated: truth=model.simulate(key).choices",
            )
        return log_w

    # --- what it says of itself ---------------------------------------------------------------------------------

    @with_own_settings
    def summary(self, key: PRNGKeyArray | None = None, num_samples: SupportsIndex = 4000) -> Table:
        """Mean, deviation and quantiles of each latent number, and how far the fit can be trusted.

        Rows stand in the order of the model's sites.
        `k-hat` is that of the importance weights between guide and posterior, `ESS` what the draws are worth after
        weighting; `moved` is how far weighting moves a mean, in posterior deviations. The last line is a verdict. Draws
        of a guide that is a point, in whole or in part, have no weights. A choice in a branch has the draws that take
        the branch for a row.

        Raises:
          ProgramError: it is called inside a transformation of JAX.
        """
        num_samples = whole_number(num_samples, "num_samples", "Posterior.summary", least=25)
        if self._has_point():
            draws, verdict = self.sample(key_or_first(key), num_samples), _OF_A_POINT
            check_known(draws, "Posterior.summary", _OUTSIDE)
            weights = None
        else:
            better = self.improve(key_or_first(key), num_samples)
            draws, verdict, weights = better.choices, better.verdict(), np.exp(better.weights.log_weights)
        made = made_at(self.model, self.data, draws)
        rows = tuple(rows_of(self.model, draws, weights, made))
        return Table((f"{self!r}", *self._said_of_fit()), COLUMNS, rows, (*said_of(made, draws), verdict))

    def _said_of_fit(self) -> tuple[str, ...]:
        r = self.report
        if r is None:
            return ()
        if not r.steps:
            return (f"{r.method}, {r.seconds:.1f} s",)
        end = "no stopping rule" if r.converged is None else "converged" if r.converged else "NOT converged"
        return (f"{r.method}, {r.steps} steps, {r.seconds:.1f} s, {end}{'; ' + r.note if r.note else ''}",)

    @with_own_settings
    def to_arviz(
        self,
        key: PRNGKeyArray | None = None,
        *,
        num_samples: SupportsIndex = 1000,
        prior: bool = True,
        deterministics: bool = True,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Any] | None = None,
        constant_data: Mapping[str, Any] | None = None,
    ) -> Any:
        """An ArviZ DataTree.

        Groups: posterior and prior, each with the values that `vipl.deterministic` records; posterior_predictive and
        prior_predictive; log_likelihood; sample_stats (`lp`, the log joint density, and `log_q`, that of the guide);
        observed_data; constant_data. The parts of a nested address are joined by ".", which also stands for a "/":
        xarray's names hold none. Log likelihoods are float64: ArviZ takes exponentials of them, which differ by less
        than a float32 shows where an observation is nearly certain. A choice in a branch is NaN where the branch is not
        taken (floats then, of discrete choices, too). Where a site in a `scan` is observed in part (`partly_observed`),
        its observed elements are a vector, along a dimension of its own with their positions, or the coordinates of
        these, for coordinates.

        Args:
          key: PRNG key.
          num_samples: how many draws.
          prior: whether to draw from the prior too.
          deterministics: whether recorded values stand beside the choices; leave them out where they are large.
          coords: as ArviZ has them.
          dims: as ArviZ has them, by address, or by name of constant data.
          constant_data: arrays by name.

        Raises:
          AddressError: two addresses have one name, or an address that of a dimension beside it.
          ChoiceError: a variable has fewer axes than `dims` names, or another length than its `coords`.
          ProgramError: it is called inside a transformation of JAX.
        """
        at, dims, constant = f"to_arviz of {self!r}", dims or {}, constant_data or {}
        dims = dims_by_name(dims, constant)
        known = variables(dict.fromkeys([*addresses_of(self.model), *recorded_by(self.model)]))
        check_named(dims, [*known, *constant], at)
        check_dims(dims, at)
        keys = jax.random.split(key_or_first(key), 4)
        drawn, log_p, log_q = self._draw(keys[0], num_samples)
        recorded = self._recorded(keys[3], self.model, self.data, drawn) if deterministics else {}
        groups: dict[str, Choices] = {
            "posterior": _beside(drawn, recorded),
            "posterior_predictive": predict(keys[1], self.model, num_samples, choices=drawn),
            "log_likelihood": self._log_likelihood(keys[3], self.model, self.data, drawn),
            "sample_stats": {"lp": log_p, "log_q": log_q},
            "observed_data": self.data,
        }
        check_known(groups, "Posterior.to_arviz", _OUTSIDE)
        groups["log_likelihood"] = jax.tree.map(lambda x: np.asarray(x, np.float64), groups["log_likelihood"])
        before: dict[Address, Any] = {}
        if prior:
            before = flatten(predict(keys[2], self.model, num_samples), "prior")
            latent = flatten(drawn, "draws")
            recorded = self._recorded(keys[2], self.model, {}, nest(before)) if deterministics else {}
            groups["prior"] = _beside(nest({a: x for a, x in before.items() if a in latent}), recorded)
            groups["prior_predictive"] = nest({a: x for a, x in before.items() if a not in latent})
        made = {False: made_at(self.model, self.data, drawn)}
        made[True] = made_at(self.model, {}, nest(before)) if prior else {}
        for name, choices in groups.items():
            axes = 0 if name == "observed_data" else 1
            groups[name] = without_unmade(self.model, choices, made[name.startswith("prior")], axes)
        dims, coords = dimensions(self.model, dims, coords or {})
        return tree_of(groups, constant, at, coords=coords, dims=dims)

    @with_own_settings
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

    @with_own_settings
    def save(self, path: str | pathlib.Path) -> None:
        """Writes guide and parameters to a file of arrays (NumPy's npz, no pickle); `vipl.load` reads it.

        Raises:
          ProgramError: the guide is not one of `vipl.guides`' own classes, or has an estimator of its own; it is called
            inside a transformation of JAX.
        """
        check_known((self.params, self.data), "Posterior.save", _OUTSIDE)
        draws = self.sample(jax.random.key(0), _OF_FILE)
        write(path, self.guide, self.params, self.model, self.data, self.report, draws)

    # --- inside -------------------------------------------------------------------------------------------------

    def _drawn(self, key: PRNGKeyArray, num_samples: SupportsIndex) -> tuple[list[Array], Array]:
        """Draws in the order of `_addresses`, and the guide's log densities of them."""
        num_samples, the_key = whole_number(num_samples, "num_samples", "Posterior"), as_key(key)
        fn = functools.partial(_draws, names=self._addresses)

        def some(numbers: Array, _: tuple) -> Any:
            return run_once("draws", fn, (self.guide,), (self.params, the_key, numbers), static=self._addresses)

        return in_chunks(num_samples, some, (), (self.params, the_key, self.data))

    def _named(self, values: list[Array]) -> Choices:
        return nest(dict(zip(self._addresses, values, strict=True)))

    def _draw(self, key: PRNGKeyArray, num_samples: SupportsIndex) -> tuple[Choices, Array, Array]:
        """Draws, their log joint densities with the data, and the guide's."""
        values, log_q = self._drawn(key, num_samples)
        by_address = dict(zip(self._addresses, values, strict=True))
        log_p = at_draws("log densities", log_density, self.model, self.data, as_key(key), by_address, num_samples)
        return nest(by_address), log_p, log_q

    @functools.cached_property
    def _addresses(self) -> tuple[Address, ...]:
        """The addresses of the guide's choices, in the order of the model."""
        known = all(isinstance(part, ModelGuide) for part in parts_of(self.guide))
        its = self.guide.addresses if known else addresses_of(self.program)
        order = {a: k for k, a in enumerate(addresses_of(self.model))}
        return tuple(sorted(its, key=lambda a: order.get(a, len(order))))


def _draws(
    guide: Guide, params: PyTree, key: PRNGKeyArray, numbers: Int[Array, " n"], *, names: tuple[Address, ...]
) -> tuple[list[Array], Array]:
    """Draws of a guide by their numbers, and its log densities of them."""

    def one() -> tuple[list[Array], Array]:
        trace = guide(params).simulate()
        return _in_order(trace.choices, names), trace.log_prob

    return jax.vmap(seed(one))(keys_of(key, numbers))


def _log_weight(
    guide: Guide, model: Program, data: Choices, params: PyTree, values: list[Array], *, names: tuple[Address, ...]
) -> Array:
    latent = dict(zip(names, values, strict=True))
    log_p = seed(lambda: model.assess(nest(latent | flatten(data, "data"))).log_prob)
    log_q = seed(lambda: guide(params).assess(nest(latent)).log_prob)
    unused = jax.random.key(0)
    return log_p(unused) - log_q(unused)


def _no_evidence(what: str, posterior: Posterior, got: str, expected: str, fix: str) -> ProgramError:
    return ProgramError(what, at=f"evidence of {posterior!r}", got=got, expected=expected, fix=fix)


def _number(draws: Choices) -> int:
    """How many draws there are."""
    return jax.tree.leaves(draws)[0].shape[0]


def _beside(choices: Choices, recorded: dict[str, Any]) -> Choices:
    """Choices and recorded values, by address."""
    return nest(flatten(choices, "draws") | flatten(recorded, "recorded values"))


def _in_order(choices: Choices, names: tuple[Address, ...]) -> list[Array]:
    flat = flatten(choices, "draws")
    return [flat[a] for a in names]


@with_own_settings
def load(path: str | pathlib.Path, program: Program, data: Choices) -> Posterior[Any]:
    """Reads a posterior that `Posterior.save` wrote.

    Args:
      path: the file.
      program: the model with its arguments, as it was fitted.
      data: the observed choices.

    Raises:
      ProgramError: the file is not a posterior's; or it is that of another model, with other log densities at draws
        that the file holds, of other data, or of latent choices of other shapes or supports.
    """
    check_source(program, "program", "vipl.load", program=True)
    guide, params, report = read(path, program, data)
    return Posterior(program, data, guide, params, report)
