"""Simulation-based calibration of `infer`, for many datasets in one call.

Law: for z ~ p, y ~ p(· | z) and z_1 ... z_L drawn from the exact posterior given y, the rank of each number of z among
those of z_1 ... z_L is uniform on 0 ... L. So ranks that are not uniform show a posterior that is not exact: too narrow
(ranks at both ends), too wide (ranks in the middle), or moved (ranks at one end).

Reference: Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration".
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from vipl._checks import whole_number
from vipl._settings import with_own_settings
from vipl._types import Array, PRNGKeyArray
from vipl.errors import AddressError, ProgramError, show_addresses
from vipl.gen import Program
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, check_address, flatten, nest
from vipl.guides import FullRank, MeanField
from vipl.guides._gaussian import Look, by_hessians, by_secants, fit_by
from vipl.ir.keys import as_key
from vipl.posterior._draws import addresses_of
from vipl.posterior._table import Table, label, number

_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Ranks of what datasets were drawn from among draws of their posteriors; made by `calibrate`.

    Attributes:
      ranks: by address, i[num_datasets, ...], each from 0 to `num_draws`.
      num_draws: L, how many draws each is ranked among.
      errors: f[num_datasets], the standard error at which each fit ended, in posterior sds.
    """

    ranks: dict[str, Any]
    num_draws: int
    errors: np.ndarray

    def p_values(self) -> dict[str, Any]:
        """By address, the chi-square test of each number's ranks against the uniform law, in ten bins.

        Small values speak against calibration. With many numbers the smallest is small by chance: compare it with
        0.01 / how many.
        """

        def test(ranks: Any) -> np.ndarray:
            bins = (np.asarray(ranks) * _BINS) // (self.num_draws + 1)
            width = np.bincount((np.arange(self.num_draws + 1) * _BINS) // (self.num_draws + 1), minlength=_BINS)
            expected = bins.shape[0] * width / (self.num_draws + 1)
            counts = np.stack([(bins == b).sum(0) for b in range(_BINS)], -1)
            statistic = ((counts - expected) ** 2 / expected).sum(-1)
            return np.asarray(jax.scipy.special.gammaincc((_BINS - 1) / 2, statistic / 2))

        return jax.tree.map(test, self.ranks)

    def summary(self) -> Table:
        """A row for each number: the mean and the deviation of its ranks, beside those of the uniform law, and p."""
        rows, least = [], 1.0
        p_values = flatten(self.p_values(), "p_values")
        for address, ranks in flatten(self.ranks, "ranks").items():
            for index in np.ndindex(np.shape(ranks)[1:]):
                unit = (np.asarray(ranks)[(slice(None), *index)] + 0.5) / (self.num_draws + 1)
                p = float(p_values[address][index])
                rows.append((label(address, index), number(unit.mean()), number(unit.std() * np.sqrt(12)), f"{p:.3f}"))
                least = min(least, p)
        verdict = (
            f"Calibrated, as far as {len(self.errors)} datasets can tell."
            if least > 0.01 / len(rows)
            else "NOT calibrated: a mean rank away from 0.5 is a shift; a spread above 1, too narrow a posterior."
        )
        return Table((), ("", "mean rank (0.5)", "spread (1)", "p"), tuple(rows), (verdict,))

    def plot(self, axes: Any = None) -> Any:
        """Histograms of the ranks, one for each address, with the uniform law; returns matplotlib's axes."""
        import matplotlib.pyplot as plt

        flat = flatten(self.ranks, "ranks")
        if axes is None:
            _, axes = plt.subplots(1, len(flat), figsize=(2.6 * len(flat), 2.2), squeeze=False)
        for ax, (address, ranks) in zip(np.ravel(axes), flat.items(), strict=True):
            unit = (np.ravel(np.asarray(ranks)) + 0.5) / (self.num_draws + 1)
            ax.hist(unit, bins=_BINS, range=(0, 1), color="tab:blue", alpha=0.7)
            ax.axhline(unit.size / _BINS, color="black", linewidth=1)
            ax.set_title("/".join(address), fontsize=9)
            ax.set_yticks([])
        return axes


@with_own_settings
def calibrate(
    key: PRNGKeyArray,
    program: Program,
    observed: Any,
    *,
    guide: Any = FullRank,
    num_datasets: SupportsIndex = 200,
    num_draws: SupportsIndex = 99,
    given: Mapping[str, Any] | None = None,
) -> Calibration:
    """Fits many datasets that the model itself draws, and ranks what they were drawn from among posterior draws.

    (z, y) ~ p;   q ≈ p(· | y) as `vipl.infer` fits it;   rank = #{l : z_l < z},  z_1 ... z_L ~ q.

    All datasets are drawn and fitted in one compiled, `vmap`ped call.

    Args:
      key: PRNG key.
      program: over latents and data, a generative function with its arguments.
      observed: the addresses of the data: a string, or several; an address stands for all below it.
      guide: `vipl.guides.FullRank` or `vipl.guides.MeanField`.
      num_datasets: how many.
      num_draws: L.
      given: choices that are the same in all datasets.

    Returns:
      A `Calibration`.

    Raises:
      ProgramError: the guide is another one; or the density of the program is random.
      AddressError: an observed address is not the program's.
      DistributionError: a latent choice is discrete, or has no guide.

    Reference: Talts et al. (2018), algorithm 1.
    """
    check_source(program, "program", "calibrate", program=True)
    if guide not in (FullRank, MeanField):
        raise ProgramError(
            "calibrate cannot fit such a guide to many datasets at once.",
            at=f"calibrate of {program.name}",
            got=repr(guide),
            expected="vipl.guides.FullRank or vipl.guides.MeanField",
            fix=f"pass the class: guide=vipl.guides.{type(guide).__name__}"
            if type(guide) in (FullRank, MeanField)
            else "leave guide out; fit others by vipl.infer, one dataset at a time",
        )
    num_datasets = whole_number(num_datasets, "num_datasets", "calibrate", least=2)
    num_draws = whole_number(num_draws, "num_draws", "calibrate", least=_BINS - 1)
    given = dict(given or {})
    of_data = _observed(observed, program)
    outer = {a: jnp.asarray(x) for a, x in flatten(given, "the given choices").items()}
    both = [a for a in outer if a in of_data]
    if both:
        raise AddressError(
            "an observed address is given the same value in all datasets.",
            at=f"calibrate of {program.name}",
            got=f"{show_addresses(both)} observed and given",
            expected="data that each dataset draws anew",
            fix=f"leave {show_addresses(both)} out of given",
        )

    def one(key: PRNGKeyArray, look: Look) -> tuple[list[Array], Array, Array]:
        keys = jax.random.split(key, 3)
        drawn = flatten(program.generate(nest(outer), key=keys[0])[0].choices, program.name)
        family = guide(program, nest({a: x for a, x in drawn.items() if a in of_data or a in outer}))
        latents = family.latents
        if latents.discrete:
            raise _discrete(program, [x.address for x in latents.discrete])
        if latents.is_random:
            raise _random(program)
        start = jnp.zeros(latents.size, latents.real[0].dtype)
        found = fit_by(look, latents.density(), start, keys[1], diagonal=guide is MeanField, max_steps=400)
        noise = jax.random.normal(keys[2], (num_draws, latents.size), start.dtype)
        draws = jax.vmap(lambda e: latents.constrain(latents.split(found.loc + found.factor @ e))[0])(noise)
        return [jnp.sum(draws[x.address] < drawn[x.address], 0) for x in latents.real], found.error, found.misses

    names = [x.address for x in guide(program, _zeros(program, of_data, outer)).latents.real]
    keys = jax.random.split(as_key(key), num_datasets)
    ranks, errors, misses = jax.jit(jax.vmap(functools.partial(one, look=by_hessians)))(keys)
    if misses.any():
        ranks, errors, _ = jax.jit(jax.vmap(functools.partial(one, look=by_secants)))(keys)
    return Calibration(nest(dict(zip(names, ranks, strict=True))), num_draws, np.asarray(errors))


def _observed(observed: Any, program: Program) -> list[Address]:
    every = addresses_of(program)
    listed = [observed] if isinstance(observed, str) or not isinstance(observed, Iterable) else observed
    wanted = [check_address(a, f"the observed addresses of calibrate of {program.name}") for a in listed]
    missing = [w for w in wanted if not any(a[: len(w)] == w for a in every)]
    if missing or not wanted:
        raise AddressError(
            "an observed address is not the program's.",
            at=f"calibrate of {program.name}",
            got=show_addresses(missing) or "no addresses",
            expected=f"addresses among {show_addresses(every)}",
            fix='name the data: calibrate(key, program, "y")',
        )
    return [a for a in every if any(a[: len(w)] == w for w in wanted)]


def _zeros(program: Program, of_data: list[Address], outer: dict[Address, Array]) -> dict[str, Any]:
    """Some data of the right shapes."""
    shapes = jax.eval_shape(lambda k: program.simulate(k).choices, jax.random.key(0))
    flat = flatten(shapes, program.name)
    return nest({a: jnp.zeros(flat[a].shape, flat[a].dtype) for a in of_data} | outer)


def _random(program: Program) -> ProgramError:
    return ProgramError(
        "the density of the program is random: calibrate fits by natural gradients, which need a function.",
        at=f"calibrate of {program.name}",
        got="a random_key, or an estimated density",
        expected="a program with an exact density",
        fix="fit one dataset at a time by vipl.infer; or sum out exactly: vipl.inference.Enumeration(), say",
    )


def _discrete(program: Program, addresses: list[Address]) -> ProgramError:
    return ProgramError(
        "calibrate cannot rank choices that are integers.",
        at=f"calibrate of {program.name}",
        got=f"the discrete latent choices {show_addresses(addresses)}",
        expected="real latent choices",
        fix="give them values: given={...}; or sum them out in the model",
    )
