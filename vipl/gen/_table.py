"""`sites`: what a program holds, as a table. The program is staged; nothing is drawn.

Law: a row is what the program's `simulate` gives at its address: `shape` and `dtype` are those of the array there.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from vipl.distributions._draws import innermost
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import match
from vipl.gen._density import is_factor
from vipl.gen._program import as_program
from vipl.gen._source import Source
from vipl.gen._without_choice import check_no_choice, is_random_key, is_record, valued
from vipl.ir.primitives import Site
from vipl.ir.sites import Loop, SiteInfo


@dataclass(frozen=True)
class SiteRow:
    """One place of a program.

    Attributes:
      address: as `sample` takes it: a string, or a tuple of strings where it is nested.
      distribution: the name of NumPyro's class, without `to_event`, `expand` and masks; "factor", "deterministic",
        "random_key"; "composite" of a value that `marginal` or `normalize` draws.
      shape: of the choice or record, with the leading axes of loops.
      event_shape: the last axes of it, which have one log density.
      dtype: of the choice or record.
      support: where the density is positive, in words; empty where that is not known, or there is no choice.
      observed: whether the address is given.
      loops: kind and size of each loop around it, outermost first: "lane" of a `vmap`, "scan".
      estimator: the name of the gradient estimator's class; None where none is named at the site.
      scaled: whether its log density counts with a weight of `scaled`.
    """

    address: str | tuple[str, ...]
    distribution: str
    shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    dtype: np.dtype
    support: str
    observed: bool
    loops: tuple[Loop, ...]
    estimator: str | None
    scaled: bool

    def cells(self) -> tuple[str, ...]:
        """What the table shows, under `COLUMNS`."""
        address = self.address if isinstance(self.address, str) else " / ".join(self.address)
        loops = ", ".join(f"{loop.size} {_PASSES.get(loop.kind, loop.kind)}" for loop in self.loops)
        name = f"scaled {self.distribution}" if self.scaled else self.distribution
        shape = "" if self.distribution in ("factor", "random_key") else f"{self.dtype.name}{list(self.shape)}"
        return address, name, shape, loops, self.support, "yes" if self.observed else "", self.estimator or ""


_PASSES = {"scan": "steps", "lane": "lanes"}

COLUMNS = ("address", "distribution", "value", "loops", "support", "observed", "estimator")


class SiteTable(Sequence[SiteRow]):
    """The places of a program, in order; made by `sites`. `print` shows it as text, a notebook as HTML."""

    def __init__(self, rows: Sequence[SiteRow]):
        """Keeps the rows."""
        self._rows = tuple(rows)

    def __len__(self) -> int:
        """How many places there are."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> SiteRow: ...
    @overload
    def __getitem__(self, index: slice) -> SiteTable: ...

    def __getitem__(self, index: Any) -> Any:
        """A row, or the table of several."""
        return SiteTable(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __eq__(self, other: Any) -> bool:
        """Whether all rows are equal."""
        return isinstance(other, SiteTable) and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    def _shown(self) -> Iterator[tuple[str, ...]]:
        """The header and the rows, without columns that are empty."""
        cells = [row.cells() for row in self._rows]
        kept = [i for i in range(len(COLUMNS)) if i < 2 or any(row[i] for row in cells)]
        yield from (tuple(row[i] for i in kept) for row in (COLUMNS, *cells))

    def __repr__(self) -> str:
        """An aligned table of text."""
        rows = list(self._shown())
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rule = tuple("-" * width for width in widths)
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in (rows[0], rule, *rows[1:]))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table of HTML, which notebooks show."""
        header, *rows = (tuple(map(html.escape, row)) for row in self._shown())
        head = "".join(f"<th>{cell}</th>" for cell in header)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def sites(program: Source, given: dict[str, Any] | None = None) -> SiteTable:
    """The sites, factors, records and random keys of a program, as a table.

    The program is staged, and nothing is drawn. Branches of a `cond` that share an address have a row each.

    Args:
      program: a generative function with its arguments, or another source.
      given: the observed choices, nested dicts as for `generate`; their rows are `observed`.

    Returns:
      A sequence of rows, in the order of the program. A row has `address`, `distribution`, `shape`, `event_shape`,
      `dtype`, `support`, `observed`, `loops`, `estimator`, `scaled`.

    Raises:
      AddressError: a given address is unknown, or two sites have the same address.
      ChoiceError: a given value has the wrong shape or kind of dtype.
      ProgramError: the program is not a source.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def coins(n):
      ...     p = vipl.sample("p", dist.Beta(2.0, 2.0))
      ...     return jax.vmap(lambda: vipl.sample("side", dist.Bernoulli(p)), axis_size=n)()
      >>> print(vipl.sites(coins(3), {"side": jax.numpy.array([1, 0, 1])}))
      address  distribution    value      loops    support               observed
      -------  --------------  ---------  -------  --------------------  --------
      p        Beta            float32[]           reals from 0 to 1
      side     BernoulliProbs  int32[3]   3 lanes  integers from 0 to 1  yes
    """
    check_source(program, "program", "sites")
    known = {} if given is None else given
    _, found = as_program(program).staged()
    check_no_choice(known, found, program.name)
    observed = match(known, valued(found), program.name, complete=False)
    return SiteTable([_row(info, info.site.address in observed) for info in found])


def _row(info: SiteInfo, observed: bool) -> SiteRow:
    site = info.site
    first, *below = site.address
    name, shape, event_shape, dtype = _described(site, info.distribution_avals)
    return SiteRow(
        address=site.address if below else first,
        distribution=name,
        shape=(*info.loop_shape, *shape),
        event_shape=event_shape,
        dtype=np.dtype(dtype),
        support="" if site.support is None else str(site.support),
        observed=observed,
        loops=info.loops,
        estimator=None
        if site.estimator is None
        else type(site.estimator.combine(info.avals[site.num_distribution :])).__name__,
        scaled=site.scaled,
    )


def _described(site: Site, avals: Sequence[Any]) -> tuple[str, tuple[int, ...], tuple[int, ...], Any]:
    """The name of a site's source; shape, event shape and dtype of its value in one lane."""
    if site.distribution is None:
        return "composite", site.shape, site.shape, site.dtype
    if is_factor(site):
        return "factor", (), (), site.dtype
    if is_record(site):
        return "deterministic", avals[0].shape, (), avals[0].dtype
    if is_random_key(site):
        return "random_key", (), (), site.dtype
    d = site.distribution.combine(avals)
    return type(innermost(d)).__name__, site.shape, tuple(d.event_shape), site.dtype
