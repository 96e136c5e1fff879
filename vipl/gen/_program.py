"""Generative functions: functions that call `sample`.

Contracts, with p the density of all choices (times the factors):

    simulate   x ~ p without factors,  log_prob = log p(x)
    assess     log_prob = log p(x) for the given x
    generate   x_given as given, the rest drawn in order;  log_w = log p(x) - log p(rest drawn | ...),
               so that E[exp log_w] = p(x_given)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp

from vipl._jax import wants_by_site
from vipl._types import Array, Bool, Float, Int, PyTree
from vipl.errors import AddressError, ProgramError, show_addresses
from vipl.gen._by_site import log_probs_by_address
from vipl.gen._check_support import lies_inside
from vipl.gen._choices import Address, Choices, flatten, match, merge, nest
from vipl.gen._density import is_factor
from vipl.gen._estimator import Estimator
from vipl.gen._sample import check_estimator
from vipl.gen._source import Source, Trace
from vipl.gen._weighing import Drawn, Given, density, density_inside, weighing
from vipl.gen._without_choice import check_no_choice, is_random_key, is_record, records, valued
from vipl.interpret.interpreter import Interpreter, run
from vipl.interpret.seed import violations
from vipl.interpret.subprograms import rewrite
from vipl.ir.frames import user_frame
from vipl.ir.functions import check_function
from vipl.ir.partition import partition, python_integer
from vipl.ir.primitives import Path, Site, split_weight
from vipl.ir.probe import tally_sites
from vipl.ir.sites import SiteInfo, check_unique, list_sites
from vipl.ir.stage import Staged, stage_program

T = TypeVar("T")


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

    def __repr__(self) -> str:
        return f"<generative function {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Program:
        """Applies the function to arguments; nothing runs yet."""
        return Program(self, args, kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Makes it usable as a method."""
        return self if instance is None else _Method(self, instance)

    def __getattr__(self, name: str) -> NoReturn:
        """Programs have more attributes than functions: says so."""
        if name not in _OF_PROGRAMS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise ProgramError(
            "a generative function was not applied to its arguments.",
            at=user_frame(),
            got=f"{self.name}.{name}",
            expected=f"a program: {self.name}(...)",
            fix=f"write {self.name}(...).{name}{'(key)' if name == 'simulate' else '(...)'}",
        )

    def with_estimators(self, estimators: dict[str, PyTree]) -> GenerativeFunction:
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


class _Run(NamedTuple):
    """What a program gives with values at some of its sites.

    Attributes:
      trace: its choices, log density and return value.
      log_w: f[], the sum of the log densities that count, factors included.
      violations: i[], how many parameters of sites are not what NumPyro asks for; 0 where that was not looked at.
    """

    trace: Trace
    log_w: Float[Array, ""]
    violations: Int[Array, ""]


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
    check_function(fn, "vipl.gen")
    return GenerativeFunction(fn)


def as_program(source: Source) -> Program:
    """Any source as a generative function with its arguments."""
    return source if isinstance(source, Program) else gen(_inlined)(source)


def _inlined(source: Source) -> Any:
    return source.inline((), source.name)


class _Method(functools.partial):
    """A generative function as a method of an object."""

    def with_estimators(self, estimators: dict[str, PyTree]) -> _Method:
        """See `GenerativeFunction.with_estimators`."""
        return _Method(self.func.with_estimators(estimators), *self.args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)


_OF_PROGRAMS = frozenset("simulate assess generate weigh simulate_split is_exact has_factors unknown inline".split())


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Program(Source):
    """A generative function applied to arguments: what `sample` takes as a source.

    Attributes:
      gf: the generative function.
      args: its positional arguments.
      kwargs: its keyword arguments.
    """

    gf: GenerativeFunction
    args: tuple[PyTree, ...]
    kwargs: dict[str, PyTree]

    def tree_flatten(self) -> tuple[tuple[tuple[PyTree, ...], dict[str, PyTree]], GenerativeFunction]:
        """Pytree interface: the arguments are the children."""
        return (self.args, self.kwargs), self.gf

    @classmethod
    def tree_unflatten(cls, gf: GenerativeFunction, children: tuple[tuple[PyTree, ...], dict[str, PyTree]]) -> Program:
        """Pytree interface."""
        return cls(gf, *children)

    @property
    def name(self) -> str:
        """The function's name."""
        return self.gf.name

    def with_estimators(self, estimators: dict[str, PyTree]) -> Program:
        """The same program with other estimators at some sites; see `GenerativeFunction.with_estimators`."""
        return replace(self, gf=self.gf.with_estimators(estimators))

    def inline(self, address: Address, where: str) -> Any:
        """Runs the program as a part of the one around it, its addresses below `address`."""
        staged, _ = self.staged()
        outs = rewrite(staged.jaxpr, [], lambda inner: (*address, *inner), lambda site, operands: (site, operands))
        return staged.result(outs)

    def _simulate(self) -> Trace:
        return self._run({}, "simulate").trace

    def _assess(self, choices: Choices) -> Trace:
        return self._run(choices, "assess", complete=True).trace

    def _generate(self, choices: Choices) -> tuple[Trace, Float[Array, ""]]:
        run = self._run(choices, "generate")
        return run.trace, run.log_w

    def _checked(self, verb: str, choices: Choices) -> tuple[PyTree, Bool[Array, ""]]:
        run = self._run(choices, verb[1:], complete=verb == "_assess", check=True)
        out = run.trace if verb == "_assess" else (run.trace, run.log_w)
        return out, (run.violations > 0) | ~jnp.isfinite(run.trace.log_prob)

    def weigh(self, known: Choices, drawn: Choices) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """See `Source.weigh`."""
        names = flatten(drawn, self.name)
        run = self._run(
            merge(known, drawn), "generate", complete=True, counts=lambda a, given: given and a not in names
        )
        return run.trace.log_prob, run.log_w

    def simulate_split(self, counts: Callable[[Address], bool]) -> tuple[Trace, Float[Array, ""]]:
        """See `Source.simulate_split`."""
        run = self._run({}, "simulate", counts=lambda a, _: counts(a))
        return run.trace, run.log_w

    def is_exact(self) -> bool:
        """Whether no site of it has an estimated density."""
        return all(p.site.is_exact for p in self.staged()[1])

    def has_factors(self) -> bool:
        """Whether it is unnormalized."""
        return any(is_factor(p.site) for p in self.staged()[1])

    def has_weights(self) -> bool:
        """Whether it is unnormalized by `scaled`."""
        return any(p.site.scaled for p in self.staged()[1])

    def unknown(self, known: Choices) -> list[SiteInfo]:
        """The places of the choices that are not known."""
        _, found = self.staged()
        check_no_choice(known, found, self.name)
        given = match(known, valued(found), self.name, complete=False)
        return [p for p in valued(found) if p.site.address not in given]

    def staged(self) -> tuple[Staged, list[SiteInfo]]:
        """The program as a jaxpr, and its places; raises where two of them have one address."""
        fn = functools.partial(with_estimators, self.gf.fn, self.gf.estimators, self.name)
        staged = stage_program(fn if self.gf.estimators else self.gf.fn, self.args, self.kwargs)
        found = list_sites(staged.jaxpr, whole=True)
        check_unique(found, staged.jaxpr)
        return staged, found

    def _run(
        self,
        choices: Choices,
        verb: str,
        *,
        complete: bool = False,
        counts: Callable[[Address, bool], bool] = lambda _, given: given,
        check: bool = False,
    ) -> _Run:
        """Runs with values at some sites; the others stay effects.

        Args:
          choices: the given values.
          verb: for messages.
          complete: whether all have to be given.
          counts: (address, whether it is given) -> whether its log density enters the weight.
          check: whether to count violations.
        """
        staged, found = self.staged()
        check_no_choice(choices, found, self.name)
        given = match(choices, valued(found), self.name, complete=complete)
        surely_inside = {a for a, x in given.items() if lies_inside(x, [p.site for p in found if p.site.address == a])}
        by_path = {p.path: given[p.site.address] for p in found if p.site.address in given}

        def policy(site, value):
            if value is None:
                return Drawn()
            return Given(value, density_inside if site.address in surely_inside else density)

        tallied = tally_sites(valued(found))

        def total(sites, log_prob, is_given):
            log_prob = tallied(sites[0], log_prob)
            weighs = all(is_factor(s) or counts(s.address, is_given) for s in sites)
            return {"log_prob": log_prob} | ({"log_w": log_prob} if weighs else {})

        interpreter = weighing(policy, total, name=verb, by_site=wants_by_site())
        interpreter = _counting_violations(interpreter) if check else interpreter
        outs, totals, emits = run(staged.jaxpr, [], interpreter, by_path)
        zero = jnp.zeros(())
        made = nest(given) if complete else merge_emits(valued(found), emits)
        recorded = merge_emits(records(found), emits)
        log_probs = log_probs_by_address(found, emits) if wants_by_site() else None
        trace = Trace(made, totals.get("log_prob", zero), staged.result(outs), recorded, log_probs)
        return _Run(trace, totals.get("log_w", zero), totals.get("violations", jnp.zeros((), jnp.int32)))


def with_estimators(
    fn: Callable[..., T], estimators: Iterable[tuple[Address, Estimator]], name: str, *args: PyTree, **kwargs: PyTree
) -> T:
    """Runs a program as a part of the one around it, with other estimators at some sites.

    Args:
      fn: a function that calls `sample`.
      estimators: pairs of address and estimator; every address has to be one of the program's.
      name: the program, for messages.
      *args: its arguments.
      **kwargs: its keyword arguments.
    """
    wanted = {a: partition(e, keep=python_integer) for a, e in estimators}
    staged = stage_program(fn, args, kwargs)
    sites = [p.site for p in list_sites(staged.jaxpr)]
    known = dict.fromkeys(s.address for s in sites if not (is_record(s) or is_random_key(s)))
    unknown = [a for a in wanted if a not in known]
    if unknown:
        raise AddressError(
            "an estimator is given for an address that the program does not have.",
            at=f"with_estimators of {name}",
            got=show_addresses(unknown),
            expected=f"addresses among {show_addresses(known)}",
            fix="name the sites as the program does; nested addresses as nested dicts",
        )

    def change(site: Site, operands):
        if site.address in wanted:
            skeleton, leaves = wanted[site.address]
            _, weight = split_weight(site, operands)
            operands = [*operands[: site.num_distribution], *leaves, *([] if weight is None else [weight])]
            site = replace(site, estimator=skeleton)
        return site, operands

    return staged.result(rewrite(staged.jaxpr, [], lambda address: address, change))


def _counting_violations(interpreter: Interpreter) -> Interpreter:
    """The same interpreter, which counts the parameters that violate their constraints, too."""

    def handle(visit, operands, given):
        site, out = visit.site, interpreter.handle(visit, operands, given)
        number = violations(site.distribution.combine(operands[: site.num_distribution]))
        return out._replace(totals=out.totals | {"violations": number})

    return interpreter._replace(handle=handle)


def merge_emits(found: list[SiteInfo], emits: dict[Path, Array]) -> Choices:
    """What sites handed out, by address; branches of a `cond` that share an address are merged.

    Only one of them is taken, and the others handed out zeros, so their sum is the value.
    """
    flat: dict[Address, Array] = {}
    for info in found:
        address, value = info.site.address, emits[info.path]
        if address in flat:
            other = flat[address]
            if other.shape != value.shape or other.dtype != value.dtype:
                raise AddressError(
                    "branches of one `cond` give different kinds of value to one address.",
                    at=info.site.at(),
                    got=f"{value.dtype}{list(value.shape)} here, {other.dtype}{list(other.shape)} in another branch",
                    expected="one shape and dtype for one address",
                    fix="give the site in each branch its own address",
                )
            value = (other | value) if value.dtype == bool else other + value
        flat[address] = value
    return nest(flat)
