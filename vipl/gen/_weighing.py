"""Weighing: the one interpreter that gives the sites of a program their values, and adds up their log densities.

A policy says what a site does: it takes a value, or it is drawn.

    Given    the value is taken and weighed: an observation, a choice that is assessed, what a proposal drew
    Drawn    the site stays an effect; its own value is weighed, or is not

Invariant: whatever the policy, the total of a site is the log density of the value that the site has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from vipl._types import Array, ArrayLike, PyTree
from vipl.distributions._points import has_coordinates
from vipl.errors import AddressError, show_addresses
from vipl.gen._density import is_factor, site_log_prob
from vipl.interpret.interpreter import Interpreter, Outcome, Visit
from vipl.ir.composite import Composite
from vipl.ir.dataflow import plain, walk
from vipl.ir.primitives import Path, Site, bind_site
from vipl.ir.probe import WEIGHED, probe, watch


def density(site: Site, operands: Sequence[ArrayLike], value: Array) -> Array:
    """f[], the log density of a value that may lie outside the support."""
    return site_log_prob(site, operands, value, check=True)


def density_inside(site: Site, operands: Sequence[ArrayLike], value: Array) -> Array:
    """f[], the log density of a value that lies in the support."""
    return site_log_prob(site, operands, value, check=False)


class Given(NamedTuple):
    """A site takes a value, which is weighed.

    Attributes:
      value: [...], the value.
      density: (site, operands, value) -> its log density. A composite has its own.
    """

    value: Array
    density: Callable[[Site, Sequence[ArrayLike], Array], Array] = density


class Drawn(NamedTuple):
    """A site is drawn.

    Attributes:
      weighs: whether its log density counts.
      change: value -> the value that the site has instead.
    """

    weighs: bool = True
    change: Callable[[Array], Array] = lambda value: value


Policy = Callable[[Site, Any], Given | Drawn]
"""(site, what the interpreter is given for it) -> what the site does."""

Total = Callable[[Sequence[Site], Array, bool], dict[str, Array]]
"""(sites, log density, whether their values are given) -> what is added up; several sites for a composite."""


def log_weight(_: Sequence[Site], log_prob: Array, is_given: bool) -> dict[str, Array]:
    """The log density of everything that is weighed."""
    del is_given
    return {"log_w": log_prob}


def weighing(
    policy: Policy,
    total: Total = log_weight,
    emit: Callable[[Site, Sequence[ArrayLike], Array], PyTree] | None = lambda site, operands, value: value,
    *,
    name: str,
) -> Interpreter:
    """An interpreter that values and weighs sites.

    Args:
      policy: what each site does.
      total: which totals a log density enters.
      emit: (site, its operands, its value) -> what is collected; None: nothing is. A composite has no operands.
      name: what the interpreter does, for messages.
    """
    weigher = _Weigher(policy, total, emit)
    return Interpreter(weigher.handle, None, name, weigher.compose)


class _Weigher(NamedTuple):
    """See `weighing`."""

    policy: Policy
    total: Total
    emit: Callable[[Site, Sequence[ArrayLike], Array], PyTree] | None

    def handle(self, visit: Visit, operands: Sequence[ArrayLike], given: Any) -> Outcome:
        """What becomes of a site."""
        site = visit.site
        operands = watch(WEIGHED, site, operands)
        if is_factor(site):
            log_prob = density_inside(site, operands, jnp.zeros((0,)))
            probe(WEIGHED, site, (), jnp.zeros(()), log_prob)
            return Outcome(jnp.zeros(site.shape), self.total([site], log_prob, True), {})
        does = self.policy(site, given)
        value, log_prob = _value_and_density(site, operands, does)
        totals = {}
        if isinstance(does, Given) or does.weighs:
            assert log_prob is not None
            probe(WEIGHED, site, operands, value, log_prob)
            totals = self.total([site], log_prob, isinstance(does, Given))
        outs = (value, log_prob) if site.weighs else value
        return Outcome(outs, totals, self._emitted(site, operands, visit.path, value))

    def compose(self, composite: Composite, operands: list[ArrayLike], given: list[Any], path: Path) -> Outcome:
        """What becomes of the values of a composite: all are given, or none is."""
        sites = composite.sites
        each = [self.policy(site, x) for site, x in zip(sites, given, strict=True)]
        taken = [does for does in each if isinstance(does, Given)]
        drawn = [does for does in each if isinstance(does, Drawn)]
        if taken and drawn:
            raise partly_given(composite, [isinstance(does, Given) for does in each])
        if taken:
            values = [does.value for does in taken]
            (log_prob,) = walk(composite.weigh, [*operands[composite.num_draw :], *values], plain)
        else:
            *values, log_prob = walk(composite.draw, operands[: composite.num_draw], plain)
            values = [does.change(x) for does, x in zip(drawn, values, strict=True)]
        totals = self.total(sites, log_prob, bool(taken)) if all(does.weighs for does in drawn) else {}
        emits: dict[Path, PyTree] = {}
        for k, (site, x) in enumerate(zip(sites, values, strict=True)):
            emits |= self._emitted(site, (), (*path, k), x)
        return Outcome(values, totals, emits)

    def _emitted(self, site: Site, operands: Sequence[ArrayLike], path: Path, value: Array) -> dict[Path, PyTree]:
        return {} if self.emit is None else {path: self.emit(site, operands, value)}


def _value_and_density(site: Site, operands: Sequence[ArrayLike], does: Given | Drawn) -> tuple[Array, Array | None]:
    """The value of a site, and its log density; None where neither the policy nor the site wants that."""
    if isinstance(does, Given):
        return does.value, does.density(site, operands, does.value)
    if does.weighs:
        return draw_and_weigh(site, operands)
    value = does.change(bind_site(operands, replace(site, weighs=False)))
    return value, density(site, operands, value) if site.weighs else None


def draw_and_weigh(site: Site, operands: Sequence[ArrayLike]) -> tuple[Array, Array]:
    """Binds a site; its value, and the log density of it, from before it was rounded where the site knows more."""
    if site.weighs or has_coordinates(site.distribution.combine(operands[: site.num_distribution])):
        return bind_site(operands, replace(site, weighs=True))
    value = bind_site(operands, site)
    return value, density_inside(site, operands, value)


def partly_given(composite: Composite, is_given: list[bool]) -> AddressError:
    """The error where some values of a composite are given, and others are not."""
    given = [s.address for s, g in zip(composite.sites, is_given, strict=True) if g]
    every = [s.address for s in composite.sites]
    return AddressError(
        "some values of an estimated distribution are given, and others are not.",
        at=composite.sites[0].at(),
        got=f"choices at {show_addresses(given)}",
        expected=f"all of {show_addresses(every)}, or none",
        fix="give the others, too; or keep them apart, in two distributions",
    )
