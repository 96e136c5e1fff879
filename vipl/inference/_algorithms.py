"""Algorithms that estimate the normalizing constant of a program whose choices are known in part.

With p(known, unknown) the density of a program and Z = Σ p(known, unknown) over the unknown choices:

    particles     weighted unknown choices;                                E[exp log_normalizer] = Z
    conditional   the same, given that one particle is `unknown`;          E[1 / exp log_normalizer] = 1 / Z
                  the expectation is over unknown ~ p(unknown | known), too

The two are one random variable seen from two sides: run `particles`, pick one by its weight, forget the others;
or start from an exact posterior draw, and draw the others. Both sides together make `marginal` and `normalize`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vipl._checks import whole_number
from vipl._types import Array, Float
from vipl.distributions._sums import log_total
from vipl.errors import EstimatorError, ProgramError, shortened, show_address
from vipl.estimators._enumerate import MAX_POINTS, finite_support
from vipl.gen import Law, Program, Source
from vipl.gen._check_arguments import call_maker, check_source, check_takes_known
from vipl.gen._choices import Address, Choices, flatten, merge, nest
from vipl.gen._program import as_program
from vipl.inference._particles import Particles, log_mean_exp, positive
from vipl.ir.frames import user_frame
from vipl.ir.sites import SiteInfo


class First(NamedTuple):
    """The particle that is given to the conditional side.

    Attributes:
      choices: the unknown choices.
      log_joint: f[], log p(known, unknown), or the estimate of it that belongs to this particle.
      log_known: f[], the part of it at the known choices (and factors): the weight of a draw from the program itself.
    """

    choices: Choices
    log_joint: Float[Array, ""]
    log_known: Float[Array, ""]


Proposal = Source | Callable[[Choices], Source]
"""A source over unknown choices, or a function of the known choices that makes one."""


class Algorithm(abc.ABC):
    """Base of all algorithms: a frozen dataclass with two programs.

    Attributes:
      is_exact: whether both sides are Z itself, without noise; densities made with it are then exact on both sides.
    """

    is_exact = False

    @abc.abstractmethod
    def particles(self, program: Source, known: Choices) -> Particles:
        """Runs forward: weighted values for the unknown choices; E[exp log_normalizer] = Z."""

    def log_evidence(self, program: Source, known: Choices) -> Float[Array, ""]:
        """The log_normalizer of `particles` alone."""
        return self.particles(program, known).log_normalizer

    @abc.abstractmethod
    def conditional(self, program: Source, known: Choices, first: First) -> Float[Array, ""]:
        """Runs with one particle given: log_normalizer with E[exp -log_normalizer] = 1 / Z for a posterior draw."""

    def marginals(self, program: Source, known: Choices, info: SiteInfo) -> dist.Distribution:
        """The exact posterior marginals of one unknown choice: a NumPyro distribution, batched over the loops."""
        raise ProgramError(
            "posterior marginals are asked of an algorithm that does not have them.",
            at=f"{show_address(info.site.address)} of {program.name}",
            got=f"{type(self).__name__}(...)",
            expected="Enumeration(), ForwardBackward() or Kalman()",
            fix="estimate moments with particles: normalize(...).particles(key).mean(fn)",
        )


class ExactAlgorithm(Algorithm):
    """Base of the algorithms whose two sides are both Z itself, without noise."""

    is_exact = True

    def conditional(self, program: Source, known: Choices, first: First) -> Float[Array, ""]:
        """Log Z."""
        del first
        return self.log_evidence(program, known)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Importance(Algorithm):
    """Importance sampling.

    z_i ~ r(· | known),  w_i = p(known, z_i) / r(z_i | known),  Ẑ = (1/K) Σ_i w_i;  in `conditional`, z_1 is given.

    The particles are one `vmap`. Where the density of the proposal is itself an estimate, both sides stay true.

    Attributes:
      num_particles: K.
      proposal: a source over the unknown choices, or a function of the known ones that makes it; it may depend on
        parameters that are trained jointly. None: the program itself, with the known choices given (`generate`): the
        weights are then the likelihood.

    Reference: Burda, Grosse and Salakhutdinov (2016), section 3, for Ẑ; Cremer, Morris and Duvenaud (2017) and
    Naesseth et al. (2018), appendix A, for the conditional side.
    """

    num_particles: int = field(default=1, metadata={"static": True})
    proposal: Proposal | None = None

    def __post_init__(self):
        """Checks the number of particles."""
        count = whole_number(self.num_particles, "num_particles", f"Importance in {user_frame()}")
        object.__setattr__(self, "num_particles", count)
        if isinstance(self.proposal, dist.Distribution):
            check_source(self.proposal, "proposal", "Importance")
        elif callable(self.proposal):
            check_takes_known(self.proposal, "proposal", "Importance")

    def particles(self, program: Source, known: Choices) -> Particles:
        """K independent proposals with their weights."""
        choices, log_weights, log_joints = self._many(program, known, self.num_particles)
        return Particles(choices, log_weights, log_mean_exp(log_weights), log_joints)

    def conditional(self, program: Source, known: Choices, first: First) -> Float[Array, ""]:
        """The given particle, and K - 1 independent proposals."""
        log_weight = first.log_known
        if self.proposal is not None:
            log_weight = first.log_joint - self._proposed(known).assess(first.choices).log_prob
        if self.num_particles == 1:
            return log_weight
        _, others, _ = self._many(program, known, self.num_particles - 1)
        return log_mean_exp(jnp.append(others, log_weight))

    def _proposed(self, known: Choices) -> Source:
        if isinstance(self.proposal, Source):
            return self.proposal
        return call_maker(self.proposal, known, "proposal", "Importance")

    def _many(self, program: Source, known: Choices, count: int) -> tuple[Choices, Array, Array]:
        def one():
            if self.proposal is None:
                trace, log_w = program.generate(known)
                return without(trace.choices, known), log_w, trace.log_prob
            proposed = self._proposed(known).simulate()
            log_prob = program.assess(merge(known, proposed.choices)).log_prob
            return proposed.choices, log_prob - proposed.log_prob, log_prob

        return jax.vmap(one, axis_size=count)()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Enumeration(ExactAlgorithm):
    """All joint values of the unknown choices, where these are finitely many: exact, without noise.

    Z = Σ_z p(known, z). Both sides are Z itself. Cost: one run of the program for each joint value, under one `vmap`;
    a site in a loop counts for each visit. At most 2^20 values.

    Raises:
      EstimatorError: a site has no finite support that is known when the program is staged, or too many values.
      ProgramError: the program is not a generative function with its arguments.
    """

    def particles(self, program: Source, known: Choices) -> Particles:
        """Every joint value, with its density as its weight."""
        require_exact(program, "Enumeration()")
        choices = joint_values(as_program(program), known)
        log_weights = jax.vmap(lambda z: program.assess(merge(known, z)).log_prob)(choices)
        return Particles(choices, log_weights, log_total(log_weights))

    def marginals(self, program: Source, known: Choices, info: SiteInfo) -> dist.CategoricalLogits:
        """Categorical, of the choice's shape as batch shape."""
        particles = self.particles(program, known)
        values = finite_values(info, "Enumeration()")
        choice = flatten(particles.choices, program.name)[info.site.address]  # [n, ...]
        here = choice[..., None] == jnp.asarray(values)
        log_w = particles.log_weights - positive(particles.log_normalizer, program.name)
        log_w = jnp.where(here, log_w.reshape(-1, *[1] * choice.ndim), -jnp.inf)
        return categorical(values, log_total(log_w), info)


def categorical(values: np.ndarray, log_probs: Array, info: SiteInfo) -> dist.CategoricalLogits:
    """A Categorical by log probabilities f[..., n] of n values, some of 0, 1, 2, ...; others have probability zero."""
    if values.dtype.kind == "b" or (values.dtype.kind in "iu" and values.size and values.min() >= 0):
        numbers = values.astype(int)
        if not np.array_equal(numbers, np.arange(numbers.size)):
            nothing = jnp.full((*log_probs.shape[:-1], numbers.max() + 1), -jnp.inf, log_probs.dtype)
            log_probs = nothing.at[..., numbers].set(log_probs)
        return dist.CategoricalLogits(log_probs, validate_args=False)  # NumPyro takes no logits of -inf
    raise EstimatorError(
        "a choice has values that are no numbers of categories.",
        at=info.site.at(),
        got=f"values {', '.join(map(str, values[:5]))}",
        expected="integers from 0 on",
        fix="shift the values in the program; or use particles(key).mean(fn)",
    )


def finite_choices(program: Source, known: Choices) -> dict[Address, tuple[int | float, ...]]:
    """The values of one element of each unknown choice, where these are known to be finitely many."""
    found = {}
    for info in as_program(program).unknown(known):
        try:
            found[info.site.address] = tuple(finite_values(info, "an exact algorithm").tolist())
        except EstimatorError:
            continue
    return found


def joint_values(program: Program, known: Choices) -> Choices:
    """Nested dicts of [n, ...]: all joint values of the choices that are not known."""
    columns: dict[Address, tuple[np.ndarray, tuple[int, ...]]] = {}
    for info in program.unknown(known):
        columns[info.site.address] = (finite_values(info, "Enumeration()"), info.loop_shape + info.site.shape)
    sizes = [len(v) for v, shape in columns.values() for _ in range(math.prod(shape))]
    total = math.prod(sizes)
    if total > MAX_POINTS:
        raise EstimatorError(
            "a program has too many joint values to enumerate.",
            at=program.name,
            got=f"{total} joint values of {len(sizes)} choices",
            expected=f"at most {MAX_POINTS}",
            fix="use Importance(num_particles=...), or keep some of the choices",
        )
    digits = np.stack(np.unravel_index(np.arange(total), sizes or [1]), axis=1)  # i[total, choices]
    flat, start = {}, 0
    for address, (values, shape) in columns.items():
        count = math.prod(shape)
        flat[address] = jnp.asarray(values[digits[:, start : start + count]].reshape(total, *shape))
        start += count
    return nest(flat)


def finite_values(info: SiteInfo, who: str) -> np.ndarray:
    """i[n], the values of one element of a site with a finite support."""
    site = info.site
    if info.in_branch:
        raise EstimatorError(
            "a site in a branch of a `cond` cannot be enumerated: where it is not visited it has no values.",
            at=site.at(),
            got=who,
            expected="sites that are always visited",
            fix="draw before the `cond`, and use the value in the branch; or use Importance(num_particles=...)",
        )
    if site.finite is not None:
        return np.asarray(site.finite, site.dtype)
    if site.distribution is None:
        raise EstimatorError(
            "a choice of a composed distribution has no finite support that is known when the program is staged.",
            at=site.at(),
            got=who,
            expected="sites with distributions; marginal(...) and normalize(...) of such, by exact algorithms",
            fix="use Importance(num_particles=...), or keep the site",
        )
    law = Law(site.distribution.combine([jnp.ones(a.shape, a.dtype) for a in info.distribution_avals]))
    try:
        with jax.ensure_compile_time_eval():
            return np.asarray(finite_support(law, who)[0])
    except EstimatorError as raised:
        raise EstimatorError(
            raised.summary,
            at=site.at(),
            got=raised.got,
            expected=raised.expected,
            fix="use Importance(num_particles=...), or keep the site",
        ) from None


def require_exact(program: Source, who: str) -> None:
    """Raises where a part of a program has an estimated density."""
    if program.is_exact():
        return
    raise ProgramError(
        "a program whose density is estimated in part stands where it has to be exact.",
        at=program.name,
        got=f"{who} with a program that samples from an estimated distribution",
        expected="sites with distributions, or algorithms that allow for estimates",
        fix="use Importance(num_particles=...), or write the estimated part's choices into the program",
    )


def the_algorithm(algorithm: Algorithm | None, verb: str) -> Algorithm:
    """An algorithm, the default one for None; raises where it is none."""
    if algorithm is None:
        return Importance(1)
    if not isinstance(algorithm, Algorithm):
        raise ProgramError(
            f"the algorithm of {verb} is not one.",
            at=f"{verb} in {user_frame()}",
            got=f"{algorithm.name}(...)" if isinstance(algorithm, Program) else shortened(algorithm),
            expected="an algorithm object, such as vipl.inference.Importance(5)",
            fix="pass vipl.inference.Importance(num_particles=...), or vipl.inference.Enumeration()",
        )
    return algorithm


def without(choices: Choices, known: Choices) -> Choices:
    """The choices at other addresses than the known ones."""
    names = set(flatten(known, "known choices"))
    return nest({a: x for a, x in flatten(choices, "choices").items() if a not in names})
