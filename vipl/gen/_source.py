"""What `sample` takes besides a distribution: something over choices, with `simulate`, `assess`, `generate`.

The three verbs are programs when they are called without a key (what they draw are effects of the program around
them), and compiled pure functions when they are called with one, or where nothing around them is staged.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vipl._jax import staging
from vipl._types import Array, Bool, Float, PRNGKeyArray, PyTree
from vipl.cache.programs import compiled, parts_of
from vipl.errors import ProgramError, show_aval
from vipl.gen._choices import Address, Choices
from vipl.interpret.seed import seed
from vipl.ir.keys import as_key, is_key
from vipl.ir.partition import not_arrays, partition, python_integer
from vipl.ir.primitives import user_frame


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trace:
    """One execution of a generative function.

    Attributes:
      choices: nested dicts of arrays; a choice made in `vmap` or `scan` has a leading axis for each, outermost
        first. Where a `cond` took another branch, the choices of the branches not taken are zeros.
      log_prob: f[], the log density of the choices, factors included; of an estimated density, its estimate.
      retval: what the function returned.
    """

    choices: Choices
    log_prob: Float[Array, "..."]
    retval: Any


class Source(abc.ABC):
    """Base of everything over choices: a pytree whose leaves are arrays, or hashable."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """How messages call it."""

    @abc.abstractmethod
    def _simulate(self) -> Trace: ...

    @abc.abstractmethod
    def _assess(self, choices: Choices) -> Trace: ...

    @abc.abstractmethod
    def _generate(self, choices: Choices) -> tuple[Trace, Float[Array, ""]]: ...

    @abc.abstractmethod
    def weigh(self, known: Choices, drawn: Choices) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Log density of all, and the log weight that `generate(known)` gives when it draws `drawn`; a program."""

    @abc.abstractmethod
    def simulate_split(self, counts: Callable[[Address], bool]) -> tuple[Trace, Float[Array, ""]]:
        """A trace, and the part of its log density at the addresses that count; a program."""

    @abc.abstractmethod
    def is_exact(self) -> bool:
        """Whether its density is exact."""

    @abc.abstractmethod
    def inline(self, address: Address, where: str) -> Any:
        """Becomes a part of the program around it, its addresses below `address`; what `sample` calls."""

    def simulate(self, key: PRNGKeyArray | None = None) -> Trace:
        """Draws choices.

        x ~ p;   log_prob = log p(x), or (of an estimated density) log w with E[1 / w | x] = 1 / p(x).

        Args:
          key: PRNG key; None inside a program, whose effects the draws then are. With a key the run is compiled once
            for each kind of arguments, and anew where something that the function reads has changed.

        Returns:
          A `Trace`. Differentiable in the parameters of reparametrized sites; inside an expectation, unbiased in all.

        Raises:
          AddressError: two sites have the same address.
          ControlFlowError: a site stands in a `while_loop`, or where it is not supported.
        """
        return self._simulate() if key is None else self._with_key("_simulate", key)

    def assess(self, choices: Choices, *positional: object, key: PRNGKeyArray | None = None) -> Trace:
        """Evaluates the log density of given choices.

        log_prob = log p(choices), exact, or (of an estimated density) log w with E[w] = p(choices). Differentiable in
        choices and parameters. Choices outside a site's support give -inf, NaN gives NaN.

        Args:
          choices: a value for every site, by address. A value has the site's shape, with a leading axis for each
            `scan` and `vmap` around it, outermost first.
          *positional: nothing; a key here raises.
          key: unused by programs whose densities are exact.

        Returns:
          A `Trace`.

        Raises:
          AddressError: an address is unknown or missing.
          ChoiceError: a value has the wrong shape or kind of dtype.
          SupportError: a value comes from a site of another program whose support is wider.
        """
        _check_positional(self, "assess", choices, positional)
        return self._without_key("_assess", choices) if key is None else self._with_key("_assess", key, choices)

    def generate(
        self, choices: Choices, *positional: object, key: PRNGKeyArray | None = None
    ) -> tuple[Trace, Float[Array, ""]]:
        """Runs with some choices given, and draws the rest.

        log_w = Σ over given sites of log p(x_site | earlier choices), plus the factors;  E[exp log_w] = p(given).

        Args:
          choices: values for some sites, by address.
          *positional: nothing; a key here raises.
          key: PRNG key; None inside a program.

        Returns:
          A `Trace`, and log_w: f[], the log importance weight.

        Raises:
          AddressError: an address is unknown.
          ChoiceError: a value has the wrong shape or kind of dtype.
          SupportError: a value comes from a site of another program whose support is wider.
        """
        _check_positional(self, "generate", choices, positional)
        return self._without_key("_generate", choices) if key is None else self._with_key("_generate", key, choices)

    def _with_key(self, verb: str, key: PRNGKeyArray, *extra: Choices) -> Any:
        key = as_key(key)
        skeleton, leaves = partition(self, keep=python_integer)
        skeleton_extra, extra_leaves = partition(extra)
        try:
            (roots, static), (more, rest) = parts_of(skeleton), parts_of(skeleton_extra)
        except TypeError:
            raise ProgramError(
                "an argument of a generative function is neither an array nor hashable.",
                at=self.name,
                got=", ".join(
                    sorted({type(v).__name__ for kept, v in (*skeleton.static, *skeleton_extra.static) if kept})
                ),
                expected="pytrees of arrays, and hashable objects",
                fix="pass arrays, or close over the object",
            ) from None

        def run(key, leaves, extra_leaves):
            source, extra = skeleton.combine(leaves), skeleton_extra.combine(extra_leaves)
            result = seed(lambda: getattr(source, verb)(*extra))(key)
            if others := not_arrays(result):
                raise ProgramError(
                    "a program that is called with a key returns something that is not an array.",
                    at=source.name,
                    got=", ".join(map(show_aval, others)),
                    expected="a pytree of arrays",
                    fix="return arrays; call without a key, inside a program, to get anything else",
                )
            return result

        return compiled(verb, (*roots, *more), (static, rest), run, (key, leaves, extra_leaves))

    def _without_key(self, verb: str, choices: Choices) -> Any:
        """Compiled, too, where it is called from ordinary Python; inside a program, a part of that."""

        def plainly():
            return getattr(self, verb)(choices)

        if staging():
            return plainly()
        skeleton, leaves = partition(self, keep=python_integer)
        packed_choices, values = partition(choices)
        try:
            (roots, static), (more, rest) = parts_of(skeleton), parts_of(packed_choices)
        except TypeError:
            return plainly()

        def run(leaves, values):
            source, choices = skeleton.combine(leaves), packed_choices.combine(values)
            return source._checked(verb, choices)

        return compiled(f"{verb} at once", (*roots, *more), (static, rest), run, (leaves, values), plainly)

    def _checked(self, verb: str, choices: Choices) -> tuple[PyTree, Bool[Array, ""]]:
        """What a verb gives; and bool[], whether something may be wrong that is seen in values only."""
        out = getattr(self, verb)(choices)
        return out, ~jnp.isfinite((out if verb == "_assess" else out[0]).log_prob)


def _check_positional(source: Source, verb: str, choices: object, positional: tuple[object, ...]) -> None:
    if not positional and not is_key(choices):
        return
    raise ProgramError(
        f"{verb} takes choices, and a key by name only.",
        at=user_frame(),
        got=f"{verb}({', '.join('key' if is_key(x) else show_aval(x) for x in (choices, *positional))})",
        expected=f"{verb}(choices), or {verb}(choices, key=key)",
        fix=f"write program.{verb}(choices, key=key)",
    )
