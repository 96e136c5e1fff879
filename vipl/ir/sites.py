"""Where the sites of a program stand: their paths, addresses, occurrences, and the loops around them.

Invariant: `list_sites(jaxpr)` lists the sites that `run` visits, in the order and with the paths of `run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vipl import _jax
from vipl._jax import Eqn, Jaxpr, Params, Primitive, ShapedArray
from vipl.errors import AddressError, show_address
from vipl.ir.batching import has_site
from vipl.ir.composite import composite_p
from vipl.ir.primitives import Path, Site, lanes_p, sample_p


class Loop(NamedTuple):
    """One loop around a site: its kind, which tags the index in keys, and its length."""

    kind: str
    size: int


class SiteInfo(NamedTuple):
    """One site of a program.

    Attributes:
      path: its position, unique in the program.
      site: what `sample` bound.
      avals: the abstract values of its operands.
      loops: the loops and lanes around it, outermost first; `given` and `emits` have these leading axes.
      occurrence: how many sites of the same address come before it in the program; branches of one `cond` count alike.
      outside_while: how many of the loops are outside the outermost `while` around it; None where there is none.
      branches: in how many branches of a `cond`, one inside another, it stands.
    """

    path: Path
    site: Site
    avals: tuple[ShapedArray, ...]
    loops: tuple[Loop, ...]
    occurrence: int
    outside_while: int | None
    branches: int

    @property
    def in_branch(self) -> bool:
        """Whether it stands in a branch of a `cond`."""
        return self.branches > 0

    @property
    def present(self) -> np.ndarray | None:
        """bool[*loops], which passes of the loops meet it; None where that is not known, or all do."""
        fixed = self.site.present
        return None if fixed is None or self.branches != 1 else np.broadcast_to(fixed.array(), self.loop_shape)

    @property
    def loop_shape(self) -> tuple[int, ...]:
        """The leading axes of what the site is handed and hands out."""
        return tuple(loop.size for loop in self.loops)

    @property
    def distribution_avals(self) -> tuple[ShapedArray, ...]:
        """The abstract values of the source's operands."""
        return self.avals[: self.site.num_distribution]

    @property
    def known_loops(self) -> tuple[Loop, ...]:
        """The loops outside every `while`."""
        return self.loops if self.outside_while is None else self.loops[: self.outside_while]

    @property
    def count(self) -> int:
        """How often the site is met in one run."""
        return math.prod(self.loop_shape)


def list_sites(jaxpr: Jaxpr, path: Path = (), *, whole: bool = False) -> list[SiteInfo]:
    """Lists the sites of a program in order.

    Args:
      jaxpr: the program.
      path: where it stands.
      whole: whether a composite counts as its values, each a place, or as the sites of its `draw`.
    """
    return _walk(jaxpr, path, _Around((), None, 0), {}, whole)[0]


class _Around(NamedTuple):
    """What stands around a program: loops, how many of them outside the outermost `while`, and how many branches."""

    loops: tuple[Loop, ...]
    outside_while: int | None
    branches: int


class _Child(NamedTuple):
    """A program inside an equation, with the path that `run` gives it, and what the equation puts around it."""

    path: Path
    jaxpr: Jaxpr
    loops: tuple[Loop, ...] = ()
    is_branch: bool = False
    in_while: bool = False

    def around(self, outside: _Around) -> _Around:
        """What stands around this program in an equation that has `outside` around it."""
        loops, outside_while, branches = outside
        if self.in_while and outside_while is None:
            outside_while = len(loops)
        return _Around(loops + self.loops, outside_while, branches + self.is_branch)


_Counts = dict[tuple[str, ...], int]  # address -> how many sites of it have been met


def _walk(jaxpr: Jaxpr, path: Path, around: _Around, counts: _Counts, whole: bool) -> tuple[list[SiteInfo], _Counts]:
    found: list[SiteInfo] = []
    for i, eqn in enumerate(_jax.parts(jaxpr).eqns):
        here = (*path, i)
        if eqn.primitive is sample_p or (whole and eqn.primitive is composite_p):
            avals = tuple(v.aval for v in eqn.invars)
            for at, site in _sites(eqn, here):
                occurrence = counts.get(site.address, 0)
                counts = counts | {site.address: occurrence + 1}
                found.append(SiteInfo(at, site, avals, around.loops, occurrence, *around[1:]))
        elif has_site(eqn):
            more, counts = _walk_inside(eqn, here, around, counts, whole)
            found += more
    return found, counts


def _walk_inside(eqn: Eqn, path: Path, around: _Around, counts: _Counts, whole: bool) -> tuple[list[SiteInfo], _Counts]:
    """The sites inside an equation. Branches start from the same counts; the parts of a `while` follow each other."""
    found: list[SiteInfo] = []
    ends: list[_Counts] = []
    for child in _children(eqn, path):
        start = ends[-1] if ends and child.in_while else counts
        more, end = _walk(child.jaxpr, child.path, child.around(around), start, whole)
        found += more
        ends.append(end)
    return found, {a: max(end.get(a, 0) for end in ends) for end in ends for a in end} or counts


def _sites(eqn: Eqn, path: Path) -> list[tuple[Path, Site]]:
    if eqn.primitive is sample_p:
        return [(path, eqn.params["site"])]
    return [((*path, k), site) for k, site in enumerate(eqn.params["composite"].sites)]


def _children(eqn: Eqn, path: Path) -> list[_Child]:
    """The programs inside an equation; none where `run` raises."""
    children = _CHILDREN.get(eqn.primitive)
    return children(eqn.params, path) if children else []


def _one(params: Params, path: Path) -> list[_Child]:
    return [_Child(path, params["jaxpr"])]


_CHILDREN: dict[Primitive, Callable[[Params, Path], list[_Child]]] = {
    _jax.jit_p: _one,
    _jax.remat_p: _one,
    composite_p: lambda p, path: [_Child(path, p["composite"].draw)],
    lanes_p: lambda p, path: [_Child(path, p["jaxpr"], (Loop("lane", p["lane"].size),))],
    _jax.scan_p: lambda p, path: [_Child(path, p["jaxpr"], (Loop("scan", p["length"]),))],
    _jax.cond_p: lambda p, path: [_Child((*path, b), j, is_branch=True) for b, j in enumerate(p["branches"])],
    _jax.while_p: lambda p, path: [
        _Child((*path, k), p[name], in_while=True) for k, name in enumerate(("cond_jaxpr", "body_jaxpr"))
    ],
}


def check_unique(found: Sequence[SiteInfo], jaxpr: Jaxpr) -> None:
    """Raises where two sites of one address can both be met in one run.

    Branches of one `cond` may share an address: only one of them is taken.
    """
    seen: dict[tuple[str, ...], list[SiteInfo]] = {}
    for info in found:
        address = info.site.address
        for other in seen.get(address, []):
            if not _exclusive(jaxpr, info.path, other.path):
                raise AddressError(
                    "two sites have the same address.",
                    at=info.site.at(),
                    got=f"{show_address(address)} again, first at {other.site.where}",
                    expected="every address at most once in a generative function",
                    fix=_why_twice(info, other),
                )
        seen.setdefault(address, []).append(info)
        prefix = next((a for a in _prefixes(address) if a in seen), None)
        below = next((a for a in seen if address in _prefixes(a)), None)
        if below is not None:
            address, prefix = below, address
        if prefix is not None:
            raise AddressError(
                "one site's address is the beginning of another's.",
                at=info.site.at(),
                got=f"{show_address(address)} beside {show_address(prefix)}",
                expected="an address that is a site, or holds sites, not both",
                fix=f"rename the site {show_address(prefix)} ({seen[prefix][0].site.where})",
            )


def _prefixes(address: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [address[:n] for n in range(1, len(address))]


def _exclusive(jaxpr: Jaxpr, a: Path, b: Path) -> bool:
    """Whether two paths part at the branches of one `cond`."""
    for i, eqn in enumerate(_jax.parts(jaxpr).eqns):
        if a[0] == b[0] == i:
            if eqn.primitive is _jax.cond_p and a[1] != b[1]:
                return True
            for child in _children(eqn, (i,)):
                n = len(child.path)
                if len(a) > n and len(b) > n and a[:n] == child.path == b[:n]:
                    return _exclusive(child.jaxpr, a[n:], b[n:])
    return False


def _why_twice(info: SiteInfo, other: SiteInfo) -> str:
    if _jax.jit_disabled():
        return "rename one of them; under jax.disable_jit a loop is unrolled: stage the program with jit enabled"
    if info.site.where == other.site.where:
        return (
            "call the function once per address, as sample(address, fn(...)) with fn a generative function; a lax.map "
            "with batch_size repeats the body for the remainder (use a batch_size that divides the length), and "
            "lax.associative_scan repeats it for each level (use lax.scan)"
        )
    return "rename one of them"
