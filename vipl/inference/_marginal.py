"""`marginal` and `normalize`: distributions whose densities an algorithm estimates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax

from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.errors import AddressError, ProgramError, shortened, show_address, show_addresses
from vipl.gen import Estimator, Program, Source
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, Addresses, Choices, check_address, flatten, merge, nest
from vipl.gen._estimated import Estimated, only
from vipl.gen._program import as_program
from vipl.gen._sample import check_estimator
from vipl.inference._algorithms import (
    Algorithm,
    First,
    finite_choices,
    require_exact,
    the_algorithm,
)
from vipl.inference._particles import Particles, positive
from vipl.ir.frames import user_frame


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Marginal(Estimated):
    """Some choices of a program, the others summed or integrated out; made by `marginal`.

    Attributes:
      program: over all choices.
      algorithm: estimates the density of the kept choices.
      keep: the addresses that are kept; an address keeps all below it.
      single: whether `sample` returns the one kept value alone.
    """

    program: Source
    algorithm: Algorithm
    keep: tuple[Address, ...] = field(metadata={"static": True})
    single: bool = field(default=False, metadata={"static": True})

    @property
    def name(self) -> str:
        """The program's name, and what is kept of it."""
        return f"marginal({self.program.name}, keep={show_addresses(self.keep)})"

    def is_exact(self) -> bool:
        """Whether the algorithm is exact, and the program's density is."""
        return self.algorithm.is_exact and self.program.is_exact()

    def _finite(self) -> dict[Address, tuple[int | float, ...]]:
        return finite_choices(self.program, {}) if self.is_exact() else {}

    def _draw(self) -> tuple[Choices, Float[Array, ""]]:
        if (unnormalized := self._unnormalized()) is not None:
            name, part = unnormalized
            raise ProgramError(
                "a marginal of an unnormalized program is drawn from.",
                at=self.name,
                got=f"vipl.{name} in {self.program.name}, which draws do not heed",
                expected=f"a program without {part}s; or `assess` alone",
                fix=f"leave the {part} out, or draw from normalize(program, given, algorithm)",
            )
        trace, log_known = self.program.simulate_split(self._keeps)
        drawn = flatten(trace.choices, self.name)
        kept = {a: x for a, x in drawn.items() if self._keeps(a)}
        for address in self.keep:
            if not any(a[: len(address)] == address for a in kept):
                raise AddressError(
                    "an address is kept that the program does not have.",
                    at=self.name,
                    got=show_address(address),
                    expected=f"{self.program.name}'s addresses {show_addresses(drawn)}",
                    fix="keep addresses of the program",
                )
        others = {a: x for a, x in drawn.items() if a not in kept}
        first = First(nest(others), trace.log_prob, log_known)
        return nest(kept), self.algorithm.conditional(self.program, nest(kept), first)

    def _unnormalized(self) -> tuple[str, str] | None:
        """The function of vipl that makes the program unnormalized, and what it adds; None where none does."""
        if not isinstance(self.program, Program):
            return None
        if self.program.has_factors():
            return "factor", "factor"
        return ("scaled", "weight") if self.program.has_weights() else None

    def _weigh(self, choices: Choices) -> Float[Array, ""]:
        flat = flatten(choices, f"the choices for {self.name}")
        if isinstance(self.program, Program):
            every = [p.site.address for p in self.program.unknown({})]
            wanted = [a for a in dict.fromkeys(every) if self._keeps(a)] or self.keep
        else:
            wanted = flat if flat and all(map(self._keeps, flat)) else self.keep
        only(choices, wanted, self.name)
        return self.algorithm.log_evidence(self.program, choices)

    def _keeps(self, address: Address) -> bool:
        return any(address[: len(k)] == k for k in self.keep)

    def _value(self, choices: Choices) -> PyTree:
        if not self.single:
            return choices
        for part in self.keep[0]:
            choices = choices[part]
        return choices


def marginal(program: Source, keep: Addresses, algorithm: Algorithm | None = None) -> Marginal:
    """Some choices of a program as a distribution of their own: the other choices are integrated out.

    p(x) = Σ_a p(x, a), estimated with K proposals a_i ~ r(a | x):

        assess      w = (1/K) Σ_i p(x, a_i) / r(a_i | x),   all a_i proposed;              E[w] = p(x)
        simulate    the same, with a_1 the one that was drawn with x;              E[1 / w | x] = 1 / p(x)

    May stand wherever a program may: as the source of `sample`, as a guide, in a model, in another marginal.

    Args:
      program: a generative function with its arguments, or another source.
      keep: the addresses to keep: a string, or a tuple of strings; a nested address as a tuple in the tuple.
      algorithm: how the density is estimated. None: `Importance(1)`, one proposal from the program itself. With
        `Enumeration()` the density is exact.

    Returns:
      A source over the kept choices; as the source of `sample` it returns the value at `keep`, if that is one string,
      otherwise the choices.

    Raises:
      AddressError: an address is not the program's (raised when the program runs).

    Reference: Becker et al. (2024), "Probabilistic programming with programmable variational inference", section 5.
    """
    check_source(program, "program", "marginal")
    single = isinstance(keep, str)
    parts = (keep,) if single else tuple(keep) if isinstance(keep, (tuple, list, set, frozenset, dict)) else ()
    if not parts:
        raise AddressError(
            "no address is kept.",
            at=f"marginal of {program.name} in {user_frame()}",
            got=shortened(keep),
            expected="at least one address",
            fix=f'name what to keep: marginal({program.name}(...), "x")',
        )
    addresses = tuple(check_address(a, f"marginal of {program.name}") for a in parts)
    return Marginal(program, the_algorithm(algorithm, "marginal"), addresses, single)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalized(Estimated):
    """The posterior of a program, as an algorithm approximates it; made by `normalize`.

    Attributes:
      program: over given and other choices.
      given: the given choices.
      algorithm: draws from the posterior.
      estimator: of the gradient through the choice of a particle, or None.
    """

    program: Source
    given: Choices
    algorithm: Algorithm
    estimator: Estimator | None = None

    @property
    def name(self) -> str:
        """The program's name, and what is given."""
        return f"normalize({self.program.name}, given {show_addresses(flatten(self.given, 'given'))})"

    def particles(self, key: PRNGKeyArray | None = None) -> Particles:
        """Runs the algorithm: all of its particles, with the estimate of p(given).

        E[exp log_normalizer] = p(given).

        Args:
          key: PRNG key; None inside a program. With a key the run is compiled, as `simulate` is.
        """
        return self.algorithm.particles(self.program, self.given) if key is None else self._with_key("particles", key)

    def marginals(self, address: str | Address) -> Any:
        """The exact posterior marginals of one choice, by `Enumeration()`, `ForwardBackward()` or `Kalman()`.

        p(z_i | given) for each element z_i of the choice, each loop and lane around the site being a batch axis:

            Enumeration        Categorical of the choice's shape; a value that cannot come has probability zero
            ForwardBackward    Categorical of batch shape [T]
            Kalman             Normal of batch shape [T]; MultivariateNormal over a state that is an array, flattened

        Differentiable in the program's arguments and the given choices. Under `jax.vmap` return its parameters
        (`.probs`, `.mean`), not the distribution, whose batch shape would be out of date.

        Args:
          address: a string, or a tuple of strings for a nested address.

        Raises:
          AddressError: the address is not the program's, or is given.
          ProgramError: the algorithm does not have them.
        """
        address = check_address(address, f"marginals of {self.name}")
        list_sites = {p.site.address: p for p in as_program(self.program).unknown({})}
        unknown = [a for a in list_sites if a not in flatten(self.given, "given")]
        if address not in unknown:
            raise AddressError(
                "the marginals of a choice are asked for that is given."
                if address in list_sites
                else "the marginals of a choice are asked for that the program does not have.",
                at=self.name,
                got=show_address(address),
                expected=f"an address that is not given: {show_addresses(unknown)}",
                fix="ask for one of these",
            )
        return self.algorithm.marginals(self.program, self.given, list_sites[address])

    def is_exact(self) -> bool:
        """Whether the algorithm is exact, and the program's density is."""
        return self.algorithm.is_exact and self.program.is_exact()

    def _finite(self) -> dict[Address, tuple[int | float, ...]]:
        return finite_choices(self.program, self.given) if self.is_exact() else {}

    def _draw(self) -> tuple[Choices, Float[Array, ""]]:
        particles = self.particles()
        index = particles.pick_index(self.estimator)
        log_normalizer = positive(particles.log_normalizer, self.name)
        choices = jax.tree.map(lambda x: x[index], particles.choices)
        if particles.log_joints is not None:
            return choices, particles.log_joints[index] - log_normalizer
        require_exact(self.program, f"{type(self.algorithm).__name__}(...)")
        return choices, self.program.assess(merge(self.given, choices)).log_prob - log_normalizer

    def _weigh(self, choices: Choices) -> Float[Array, ""]:
        log_joint, log_known = self.program.weigh(self.given, choices)
        first = First(choices, log_joint, log_known)
        return log_joint - positive(self.algorithm.conditional(self.program, self.given, first), self.name)


def normalize(
    program: Source,
    given: Choices,
    algorithm: Algorithm | None = None,
    *,
    estimator: Estimator | None = None,
) -> Normalized:
    """The posterior of a program, p(z | y) = p(z, y) / p(y), as an algorithm approximates it, as a distribution.

    simulate    run the algorithm, pick z by its weight;      w = p(z, y) / Ẑ
    assess      run it with z as one of its particles;        w = p(z, y) / Ẑ

    What is drawn follows the law of the algorithm's output, not the exact posterior; the two weights are honest
    estimates for that law. So a guide `normalize(model, given, Importance(K, proposal))` has the evidence lower bound
    of importance weighting with K particles.

    Args:
      program: a generative function with its arguments, or another source.
      given: some of its choices.
      algorithm: None: `Importance(1)`, which draws from the program itself.
      estimator: of the gradient through the choice of a particle; None: `Score()`.

    Returns:
      A source over the other choices.

    Raises:
      AddressError: a given address is not the program's (raised when the program runs).

    Reference: Becker et al. (2024), section 5; Cusumano-Towner and Mansinghka (2017), "AIDE".
    """
    check_source(program, "program", "normalize")
    flatten(given, f"the given choices of normalize in {user_frame()}")
    if estimator is not None:
        check_estimator(estimator, f"normalize in {user_frame()}")
    return Normalized(program, given, the_algorithm(algorithm, "normalize"), estimator)
