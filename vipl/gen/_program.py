"""Generative functions: `simulate`, `assess`, `generate`.

Contracts, with p the density of all choices (times the factors):

    simulate   x ~ p without factors,  log_prob = log p(x)
    assess     log_prob = log p(x) for the given x
    generate   x_given as given, the rest drawn in order;  log_w = log p(x) - log p(rest drawn | ...),
               so that E[exp log_w] = p(x_given)

Each is a program again when it is called without a key (what it draws stays a `sample` effect of the program
around it), and a pure function when it is called with one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from vipl._errors import AddressError, ProgramError, SupportError, show_addresses
from vipl.core._interpret import Interpreter, Outcome, run
from vipl.core._keys import as_key
from vipl.core._packed import Packed, pack, python_integer
from vipl.core._places import Place, check_unique, places
from vipl.core._seed import seed
from vipl.core._site import Site, sample_p
from vipl.core._stage import Staged, stage_program
from vipl.gen._choices import Address, Drawn, drawn_at, flatten, match, nest, remember
from vipl.gen._density import is_factor, site_log_prob
from vipl.gen._estimator import Estimator
from vipl.gen._sample import check_estimator
from vipl.gen._supports import included


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trace:
    """One execution of a generative function.

    Attributes:
      choices: nested dicts of arrays; a choice made in `vmap` or `scan` has a leading axis for each, outermost
        first. Where a `cond` took another branch, the choices of the branches not taken are zeros.
      log_prob: f[], the log density of the choices, factors included.
      retval: what the function returned.
    """

    choices: dict[str, Any]
    log_prob: Any
    retval: Any


class GenerativeFunction:
    """A function that calls `sample`; made by `vipl.gen`. Calling it gives a `Program`.

    Attributes:
      fn: the function.
      estimators: replacements of estimators, pairs of address and estimator.
    """

    def __init__(self, fn: Callable, estimators: tuple[tuple[Address, Estimator], ...] = ()):
        """Wraps a function."""
        functools.update_wrapper(self, fn, updated=())
        self.fn, self.estimators = fn, estimators
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Program:
        """Applies the function to arguments; nothing runs yet."""
        return Program(self, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Makes it usable as a method."""
        return self if instance is None else functools.partial(self, instance)

    def with_estimators(self, estimators: Mapping[str, Any]) -> GenerativeFunction:
        """The same function with other estimators at some sites.

        Args:
          estimators: address -> estimator; nested addresses as nested dicts.

        Raises:
          AddressError: an address does not exist (raised when the program runs).
        """
        flat = flatten(estimators, f"with_estimators of {self.name}")
        for estimator in flat.values():
            check_estimator(estimator, f"with_estimators of {self.name}")
        merged = dict(self.estimators) | flat
        return GenerativeFunction(self.fn, tuple(merged.items()))

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.fn, "__name__", repr(self.fn))


def gen(fn: Callable) -> GenerativeFunction:
    """Makes a generative function of a function that calls `sample`; a decorator.

    Helper functions that call `sample` need no decorator: their sites belong to the function that calls them.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def coin(p):
      ...     return vipl.sample("side", dist.Bernoulli(p))
      >>> coin(0.25).assess({"side": 1}).log_prob
      Array(-1.3862944, dtype=float32)
    """
    return GenerativeFunction(fn)


@dataclass(frozen=True)
class Program:
    """A generative function applied to arguments: what `sample` takes as a source.

    Attributes:
      gf: the generative function.
      args: its positional arguments.
      kwargs: its keyword arguments.
    """

    gf: GenerativeFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The function's name."""
        return self.gf.name

    def with_estimators(self, estimators: Mapping[str, Any]) -> Program:
        """The same program with other estimators at some sites; see `GenerativeFunction.with_estimators`."""
        return replace(self, gf=self.gf.with_estimators(estimators))

    def simulate(self, key: Any = None) -> Trace:
        """Runs the program forward.

        x ~ p;   log_prob = log p(x).

        Args:
          key: PRNG key; None inside a program, whose effects the draws then are. With a key the run is compiled, and
            staged once for each kind of arguments: as under `jax.jit`, what the function closes over is what it was
            at the first call.

        Returns:
          A `Trace`. Differentiable in the parameters of reparametrized sites; inside an expectation, unbiased in all.

        Raises:
          AddressError: two sites have the same address.
          ControlFlowError: a site stands in a `while_loop`, or where it cannot be honoured.
        """
        if key is not None:
            return self._with_key("simulate", key)
        staged, found = self._staged()

        def handle(visit, operands, _):
            site = visit.site
            if is_factor(site):
                return _factor(site, operands)
            value = sample_p.bind(*operands, site=site)
            log_prob = site_log_prob(site, operands, value, check=False)
            return Outcome(value, {"log_prob": log_prob}, {visit.path: value})

        outs, totals, emits = run(staged.jaxpr, [], Interpreter(handle, None, "simulate"), {})
        trace = Trace(_merge(found, emits), _total(totals, "log_prob"), staged.result(outs))
        self._remember(trace.choices, found)
        return trace

    def assess(self, choices: dict[str, Any], *, key: Any = None) -> Trace:
        """Evaluates the log density of given choices.

        log_prob = log p(choices); exact, and differentiable in choices and parameters. Choices outside a site's
        support give -inf.

        Args:
          choices: a value for every site, by address. A value has the site's shape, with a leading axis for each
            `scan` and `vmap` around it, outermost first.
          key: unused by programs whose densities are exact.

        Returns:
          A `Trace`.

        Raises:
          AddressError: an address is unknown or missing.
          ChoiceError: a value has the wrong shape or kind of dtype.
          SupportError: a value comes from a site of another program whose support is wider.
        """
        if key is not None:
            return self._with_key("assess", key, choices)
        staged, found = self._staged()
        given = match(choices, _valued(found), self.name, complete=True)
        outs, totals, _ = self._run_given(staged, found, given, "assess")
        return Trace(nest(given), _total(totals, "log_prob"), staged.result(outs))

    def generate(self, choices: dict[str, Any], *, key: Any = None) -> tuple[Trace, Any]:
        """Runs the program with some choices given, and draws the rest.

        log_w = Σ over given sites of log p(x_site | earlier choices), plus the factors;  E[exp log_w] = p(given).

        Args:
          choices: values for some sites, by address.
          key: PRNG key; None inside a program.

        Returns:
          A `Trace`, and log_w: f[], the log importance weight.

        Raises:
          AddressError: an address is unknown.
          ChoiceError: a value has the wrong shape or kind of dtype.
          SupportError: a value comes from a site of another program whose support is wider.
        """
        if key is not None:
            return self._with_key("generate", key, choices)
        staged, found = self._staged()
        given = match(choices, _valued(found), self.name, complete=False)
        outs, totals, emits = self._run_given(staged, found, given, "generate")
        trace = Trace(_merge(found, emits), _total(totals, "log_prob"), staged.result(outs))
        return trace, _total(totals, "log_w")

    # --- how ----------------------------------------------------------------------------------------------

    def inline(self, address: Address) -> Any:
        """Runs the program as a part of the one around it, its addresses below `address`."""
        staged, _ = self._staged()

        def handle(visit, operands, _):
            site = replace(visit.site, address=(*address, *visit.site.address))
            return Outcome(sample_p.bind(*operands, site=site), {}, {})

        rewrite = Interpreter(handle, lambda *_: {}, "sample")
        return staged.result(run(staged.jaxpr, [], rewrite, {}).value)

    def _staged(self) -> tuple[Staged, list[Place]]:
        fn = functools.partial(with_estimators, self.gf.fn, self.gf.estimators, self.name)
        staged = stage_program(fn if self.gf.estimators else self.gf.fn, self.args, self.kwargs)
        found = places(staged.jaxpr)
        check_unique(found, staged.jaxpr)
        return staged, found

    def _run_given(self, staged: Staged, found: list[Place], given: dict[Address, Any], verb: str) -> Outcome:
        """Runs with values at some sites; the others stay effects."""
        surely_inside = {a for a, x in given.items() if _inside(x, [p for p in found if p.site.address == a])}
        by_path = {p.path: given[p.site.address] for p in found if p.site.address in given}

        def handle(visit, operands, value):
            site = visit.site
            if is_factor(site):
                return _factor(site, operands)
            if value is None:
                value = sample_p.bind(*operands, site=site)
                log_prob = site_log_prob(site, operands, value, check=False)
                return Outcome(value, {"log_prob": log_prob}, {visit.path: value})
            log_prob = site_log_prob(site, operands, value, check=site.address not in surely_inside)
            return Outcome(value, {"log_prob": log_prob, "log_w": log_prob}, {visit.path: value})

        return run(staged.jaxpr, [], Interpreter(handle, None, verb), by_path)

    def _remember(self, choices: dict[str, Any], found: list[Place]) -> None:
        values = flatten(choices, self.name)
        for place in _valued(found):
            supports = {p.site.support for p in found if p.site.address == place.site.address}
            support = supports.pop() if len(supports) == 1 else None
            remember(values[place.site.address], Drawn(place.site.at(), support))

    def _with_key(self, verb: str, key: Any, *extra: Any) -> Any:
        """Calls a verb with a key: compiled, and staged once for each kind of arguments."""
        key = as_key(key)
        packed_args, leaves = pack((self.args, self.kwargs), keep=python_integer)
        packed_extra, extra_leaves = pack(extra)
        packed = (packed_args, packed_extra)
        cache = self.gf._compiled
        try:
            if (verb, packed) not in cache:
                cache[verb, packed] = _compile(self.gf, verb, packed)
        except TypeError:
            raise ProgramError(
                "an argument of a generative function is neither an array nor hashable.",
                at=self.name,
                got=", ".join(
                    sorted({type(v).__name__ for kept, v in (*packed_args.static, *packed_extra.static) if kept})
                ),
                expected="pytrees of arrays, and hashable objects",
                mend="pass arrays, or close over the object",
            ) from None
        return cache[verb, packed](key, leaves, extra_leaves)


def _compile(gf: GenerativeFunction, verb: str, packed: tuple[Packed, Packed]) -> Callable:
    @jax.jit
    def compiled(key, leaves, extra_leaves):
        args, kwargs = packed[0].unpack(leaves)
        extra = packed[1].unpack(extra_leaves)
        return seed(lambda: getattr(Program(gf, args, kwargs), verb)(*extra))(key)

    return compiled


def with_estimators(fn: Callable, estimators: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Runs a program as a part of the one around it, with other estimators at some sites.

    Args:
      fn: a function that calls `sample`.
      estimators: pairs of address and estimator; every address has to be one of the program's.
      name: the program, for messages.
      *args: its arguments.
      **kwargs: its keyword arguments.
    """
    wanted = {a: pack(e) for a, e in estimators}
    staged = stage_program(fn, args, kwargs)
    known = dict.fromkeys(p.site.address for p in places(staged.jaxpr))
    unknown = [a for a in wanted if a not in known]
    if unknown:
        raise AddressError(
            "an estimator is given for an address that the program does not have.",
            at=f"with_estimators of {name}",
            got=show_addresses(unknown),
            expected=f"addresses among {show_addresses(known)}",
            mend="name the sites as the program does; nested addresses as nested dicts",
        )

    def handle(visit, operands, _):
        site: Site = visit.site
        if site.address in wanted:
            packed, leaves = wanted[site.address]
            site, operands = replace(site, estimator=packed), [*operands[: site.num_source], *leaves]
        return Outcome(sample_p.bind(*operands, site=site), {}, {})

    return staged.result(run(staged.jaxpr, [], Interpreter(handle, lambda *_: {}, "sample"), {}).value)


def _factor(site: Site, operands: Any) -> Outcome:
    log_weight = site_log_prob(site, operands, jnp.zeros((0,)), check=False)
    return Outcome(jnp.zeros(site.shape), {"log_prob": log_weight, "log_w": log_weight}, {})


def _valued(found: list[Place]) -> list[Place]:
    return [p for p in found if not is_factor(p.site)]


def _total(totals: dict[str, Any], name: str) -> Any:
    return totals.get(name, jnp.zeros(()))


def _merge(found: list[Place], emits: dict[Any, Any]) -> dict[str, Any]:
    """Choices from what the sites handed out; branches of a `cond` that share an address are merged.

    Only one of them is taken, and the others handed out zeros, so their sum is the choice.
    """
    flat: dict[Address, Any] = {}
    for place in _valued(found):
        address, value = place.site.address, emits[place.path]
        if address in flat:
            other = flat[address]
            if other.shape != value.shape or other.dtype != value.dtype:
                raise AddressError(
                    "branches of one `cond` give different kinds of value to one address.",
                    at=place.site.at(),
                    got=f"{value.dtype}{list(value.shape)} here, {other.dtype}{list(other.shape)} in another branch",
                    expected="one shape and dtype for one address",
                    mend="give the site in each branch its own address",
                )
            value = (other | value) if value.dtype == bool else other + value
        flat[address] = value
    return nest(flat)


def _inside(value: Any, candidates: list[Place]) -> bool:
    """Whether a value surely lies in the support of its site; raises where the value's own support is wider.

    Branches of a `cond` may share an address: a verdict has to hold for all of them.
    """
    drawn = drawn_at(value)
    if drawn is None:
        return False
    place = candidates[0]
    verdicts = {included(drawn.support, p.site.support) for p in candidates}
    if verdicts == {False}:
        raise SupportError(
            "a value can lie where the density of the site that it is given to is zero.",
            at=place.site.at(),
            got=f"a value of {drawn.at}, whose support is {drawn.support}",
            expected=f"values in {place.site.support}",
            mend="draw it from a distribution on that support, e.g. "
            "TransformedDistribution(base, biject_to(model_distribution.support))",
        )
    return verdicts == {True}
