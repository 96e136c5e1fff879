"""What `sample` takes besides a distribution: something over choices, with `simulate`, `assess`, `generate`.

The three verbs are programs when they are called without a key (what they draw are effects of the program around
them), and compiled pure functions when they are called with one, or where nothing around them is staged.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from vipl._jax import by_site, staging
from vipl._types import Array, Bool, Float, PRNGKeyArray, PyTree
from vipl.cache.programs import compiled, parts_of
from vipl.errors import ProgramError, show_aval
from vipl.gen._choices import Address, Choices
from vipl.interpret.seed import seed
from vipl.ir.batching import sites_in
from vipl.ir.frames import user_frame
from vipl.ir.keys import as_key, is_key
from vipl.ir.partition import not_arrays, partition, python_integer
from vipl.ir.primitives import outside, sample_effect
from vipl.ir.staging_rules import in_program


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trace:
    """One execution of a generative function.

    Attributes:
      choices: nested dicts of arrays; a choice made in `vmap` or `scan` has a leading axis for each, outermost
        first. Where a `cond` took another branch, the choices of the branches not taken are zeros.
      log_prob: f[], the log density of the choices, factors included; of an estimated density, its estimate.
      retval: what the function returned.
      deterministics: nested dicts of the values that `vipl.deterministic` recorded, with axes as choices have.
      log_probs: nested dicts of the log density by site; computed where it is read.
    """

    choices: Choices
    log_prob: Float[Array, "..."]
    retval: Any
    deterministics: dict[str, Any] = field(default_factory=dict)
    _by_site: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def log_probs(self) -> dict[str, Any]:
        """The log density by site, nested as choices are; the sum of all numbers in it is `log_prob`.

        A site has the axes of the loops around it, and then the batch shape of its distribution: one number for each
        event, f[*loops, *batch]. A factor stands under its own address with the shape of its log weight. What `scaled`
        weighs is weighed; a branch of a `cond` that is not taken has zeros. Values that `marginal` or `normalize` draws
        have one log density together: at the address, if it is one value, else where the choices have their common
        part, under the other parts joined by commas, as in `log_probs["post"]["a, b"]`.

        Nothing is computed for it until it is read: the program then runs once more, with the same key. So a trace that
        left `jax.jit`, `jax.vmap` or the like has none.

        Raises:
          ProgramError: the trace was returned by a transformed function: read it in that function.
        """
        if self._by_site is None:
            object.__setattr__(self, "_by_site", self.__dict__.get("_again", _unread)())
        return self._by_site  # type: ignore[return-value]


def _unread() -> Any:
    error = ProgramError(
        "the log densities by site are read of a trace that does not know its program.",
        at=user_frame(),
        got="trace.log_probs of a trace that jax.vmap, jit, or the like has returned",
        expected="trace.log_probs inside the function that is mapped or compiled",
        fix="return the log densities from it: jax.vmap(lambda key: program.simulate(key).log_probs)(keys)",
    )
    error.needs_by_site = True  # in a program: it is staged again, with them
    raise error


def _traces(out: Any) -> list[Trace]:
    """The trace in what a verb gave; none in what is none."""
    return [x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Trace)]


def _with_again(out: Any, again: Callable[[], Any]) -> Any:
    """What a verb gave, its trace with a way to run again for its log densities by site."""
    for trace in _traces(out):
        object.__setattr__(trace, "_again", again)
    return out


def _by_site_of(out: Any) -> Any:
    (trace,) = _traces(out)
    return trace._by_site


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

        def plainly(key, leaves, extra_leaves):
            source, extra = skeleton.combine(leaves), skeleton_extra.combine(extra_leaves)
            return source, seed(lambda: getattr(source, verb)(*extra))(key)

        def run(*args):
            with by_site(False):
                source, result = plainly(*args)
            if others := not_arrays(result):
                raise ProgramError(
                    "a program that is called with a key returns something that is not an array.",
                    at=source.name,
                    got=", ".join(map(show_aval, others)),
                    expected="a pytree of arrays",
                    fix="return arrays; call without a key, inside a program, to get anything else",
                )
            return result

        def run_by_site(*args):
            with by_site(True):
                return _by_site_of(plainly(*args)[1])

        def compiled_as(kind, run):
            return compiled(kind, (*roots, *more), (static, rest), run, (key, leaves, extra_leaves))

        return _with_again(compiled_as(verb, run), lambda: compiled_as(f"{verb} by site", run_by_site))

    def _without_key(self, verb: str, choices: Choices) -> Any:
        """Compiled, too, where it is called from ordinary Python; inside a program, a part of that."""

        def inside():
            return getattr(self, verb)(choices)

        def plainly():
            try:
                return inside()
            except ValueError as error:
                if str(sample_effect) not in str(error):
                    raise
            return outside(site=next(sites_in(jax.make_jaxpr(inside)())))  # JAX lowers no loop with a site in it

        def again():
            with by_site(True):
                return _by_site_of(inside())

        if staging():
            return inside() if in_program() else _with_again(inside(), again)
        skeleton, leaves = partition(self, keep=python_integer)
        packed_choices, values = partition(choices)
        try:
            (roots, static), (more, rest) = parts_of(skeleton), parts_of(packed_choices)
        except TypeError:
            return _with_again(plainly(), again)

        def run(leaves, values):
            source, choices = skeleton.combine(leaves), packed_choices.combine(values)
            with by_site(False):
                return source._checked(verb, choices)

        def run_by_site(leaves, values):
            source, choices = skeleton.combine(leaves), packed_choices.combine(values)
            with by_site(True):
                return _by_site_of(getattr(source, verb)(choices)), False

        def compiled_as(kind, run, instead):
            return compiled(kind, (*roots, *more), (static, rest), run, (leaves, values), instead)

        out = compiled_as(f"{verb} at once", run, plainly)
        return _with_again(out, lambda: compiled_as(f"{verb} by site", run_by_site, again))

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
