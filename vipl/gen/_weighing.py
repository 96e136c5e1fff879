"""Weighing: the one interpreter that gives the sites of a program their values, and adds up their log densities.

A policy says what a site does: it takes a value, or it is drawn.

    Given    the value is taken and weighed: an observation, a choice that is assessed, what a proposal drew
    Drawn    the site stays an effect; its own value is weighed, or is not

Invariant: whatever the policy, the total of a site is the log density of the value that the site has; of a scaled site,
that times its weight w, and where the policy leaves a log density out of a log weight, (w - 1) times it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from vipl._types import Array, PyTree
from vipl.distributions._draws import has_coordinates, total
from vipl.errors import AddressError, show_addresses
from vipl.gen._density import is_factor, site_log_prob
from vipl.gen._without_choice import is_random_key, is_record
from vipl.interpret.interpreter import Interpreter, Outcome, Visit
from vipl.ir.composite import Composite
from vipl.ir.dataflow import plain, walk
from vipl.ir.primitives import Path, Site, bind_site, split_weight
from vipl.ir.probe import WEIGHED, probe, watch


def density(site: Site, operands: Sequence[Array], value: Array, ndim: int = 0) -> Array:
    """f[...], the log density of a value that may lie outside the support, not summed over its first `ndim` axes."""
    return site_log_prob(site, operands, value, check=True, ndim=ndim)


def density_inside(site: Site, operands: Sequence[Array], value: Array, ndim: int = 0) -> Array:
    """f[...], the log density of a value that lies in the support, not summed over its first `ndim` axes."""
    return site_log_prob(site, operands, value, check=False, ndim=ndim)


class Given(NamedTuple):
    """A site takes a value, which is weighed.

    Attributes:
      value: [...], the value.
      density: (site, operands, value, ndim) -> its log density, f[] or the first `ndim` axes. A composite has its own.
    """

    value: Array
    density: Callable[[Site, Sequence[Array], Array, int], Array] = density


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
    emit: Callable[[Site, Sequence[Array], Array], PyTree] | None = lambda site, operands, value: value,
    *,
    name: str,
    by_site: bool = False,
) -> Interpreter:
    """An interpreter that values and weighs sites.

    Args:
      policy: what each site does.
      total: which totals a log density enters.
      emit: (site, its operands, its value) -> what is collected; None: nothing is. A composite has no operands.
      name: what the interpreter does, for messages.
      by_site: whether the log density of each site is collected, too, at `density_path(path)`: f[batch].
    """
    weigher = _Weigher(policy, total, emit, by_site)
    return Interpreter(weigher.handle, None, name, weigher.compose)


class _Weigher(NamedTuple):
    """See `weighing`."""

    policy: Policy
    total: Total
    emit: Callable[[Site, Sequence[Array], Array], PyTree] | None
    by_site: bool

    def handle(self, visit: Visit, operands: Sequence[Array], given: Any) -> Outcome:
        """What becomes of a site."""
        operands, weight = split_weight(visit.site, watch(WEIGHED, visit.site, operands))
        site = replace(visit.site, scaled=False)
        if is_factor(site):
            log_prob = density_inside(site, operands, jnp.zeros((0,)))
            probe(WEIGHED, site, (), jnp.zeros(()), log_prob)
            emits = self._density(visit.path, operands[0], None)
            return Outcome(jnp.zeros(site.shape), self.total([site], log_prob, True), emits)
        if is_random_key(site):
            return Outcome(bind_site(operands, site), {}, {})
        if is_record(site):
            return Outcome(jnp.zeros(site.shape), {}, self._emitted(site, operands, visit.path, operands[0]))
        does = self.policy(site, given)
        ndim = _batch_ndim(site, operands) if self.by_site or site.log_shape else 0
        value, log_probs = _value_and_density(site, operands, does, ndim, weight is not None)
        log_prob = total(log_probs) if ndim and log_probs is not None else log_probs
        totals, counts = {}, isinstance(does, Given) or does.weighs
        if counts or weight is not None:
            assert log_prob is not None
            probe(WEIGHED, site, operands, value, log_prob)
            totals = self._totals([site], log_prob, weight, counts, isinstance(does, Given))
        outs = (value, log_probs if site.log_shape else log_prob) if site.weighs else value
        emits = self._emitted(site, operands, visit.path, value) | self._density(visit.path, log_probs, weight)
        return Outcome(outs, totals, emits)

    def compose(self, composite: Composite, operands: list[Array], given: list[Any], path: Path) -> Outcome:
        """What becomes of the values of a composite: all are given, or none is."""
        operands, weight = split_weight(composite.sites[0], operands)
        sites = [replace(site, scaled=False) for site in composite.sites]
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
        totals = self._totals(sites, log_prob, weight, all(does.weighs for does in drawn), bool(taken))
        emits: dict[Path, PyTree] = {}
        for k, (site, x) in enumerate(zip(sites, values, strict=True)):
            emits |= self._emitted(site, (), (*path, k), x)
        return Outcome(values, totals, emits | self._density(path, log_prob, weight))

    def _totals(
        self, sites: Sequence[Site], log_prob: Any, weight: Any, counts: bool, is_given: bool
    ) -> dict[str, Any]:
        """What a log density enters.

        Args:
          sites: one, or those of a composite.
          log_prob: f[].
          weight: f[], or None.
          counts: whether the policy counts the log density.
          is_given: whether the value is given.
        """
        if weight is None:
            return self.total(sites, log_prob, is_given) if counts else {}
        beside = ((weight - 1) * log_prob).astype(log_prob.dtype)
        if not counts:
            return self.total(sites, beside, is_given)
        return {"log_w": beside} | self.total(sites, (weight * log_prob).astype(log_prob.dtype), is_given)

    def _density(self, path: Path, log_probs: Any, weight: Any) -> dict[Path, Any]:
        """The log densities of a site or composite, with its weight, where they are collected."""
        if not self.by_site:
            return {}
        log_probs = log_probs if weight is None else weight * log_probs
        return {density_path(path): jnp.asarray(log_probs).astype(float)}

    def _emitted(self, site: Site, operands: Sequence[Array], path: Path, value: Array) -> dict[Path, PyTree]:
        return {} if self.emit is None else {path: self.emit(site, operands, value)}


def density_path(path: Path) -> Path:
    """Where the log density of the site or composite at a path is collected; no site has this path."""
    return (*path, -1)


def _batch_ndim(site: Site, operands: Sequence[Array]) -> int:
    return len(site.distribution.combine(operands[: site.num_distribution]).batch_shape)


def _value_and_density(
    site: Site, operands: Sequence[Array], does: Given | Drawn, ndim: int, scaled: bool
) -> tuple[Array, Array | None]:
    """The value of a site, and its log density; None where neither the policy, the site nor a weight wants that."""
    if isinstance(does, Given):
        return does.value, does.density(site, operands, does.value, ndim)
    if does.weighs:
        return draw_and_weigh(site, operands, ndim)
    value = does.change(bind_site(operands, replace(site, weighs=False)))
    return value, density(site, operands, value, ndim) if site.weighs or scaled else None


def draw_and_weigh(site: Site, operands: Sequence[Array], ndim: int = 0) -> tuple[Array, Array]:
    """Binds a site; its value, and the log density of it, from before it was rounded where the site knows more."""
    d = site.distribution.combine(operands[: site.num_distribution])
    if site.weighs or has_coordinates(d):
        return bind_site(operands, replace(site, weighs=True, log_shape=tuple(d.batch_shape[:ndim])))
    value = bind_site(operands, site)
    return value, density_inside(site, operands, value, ndim)


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
