"""Where the sites of a program stand: their paths, addresses, occurrences, and the loops around them.

Invariant: `list_sites(jaxpr)` lists the sites that `run` visits, in the order and with the paths of `run`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from vipl import _jax
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
      in_branch: whether it stands in a branch of a `cond`.
    """

    path: Path
    site: Site
    avals: tuple[Any, ...]
    loops: tuple[Loop, ...]
    occurrence: int
    outside_while: int | None
    in_branch: bool

    @property
    def loop_shape(self) -> tuple[int, ...]:
        """The leading axes of what the site is handed and hands out."""
        return tuple(loop.size for loop in self.loops)

    @property
    def distribution_avals(self) -> tuple[Any, ...]:
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


def list_sites(jaxpr: Any, path: Path = (), *, whole: bool = False) -> list[SiteInfo]:
    """Lists the sites of a program in order.

    Args:
      jaxpr: the program.
      path: where it stands.
      whole: whether a composite counts as its values, each a place, or as the sites of its `draw`.
    """
    found, _ = _walk(jaxpr, path, (), None, False, {}, whole)
    return found


def _walk(
    jaxpr: Any,
    path: Path,
    loops: tuple[Loop, ...],
    outside_while: int | None,
    in_branch: bool,
    counts: dict[tuple[str, ...], int],
    whole: bool,
) -> tuple[list[SiteInfo], dict[tuple[str, ...], int]]:
    found: list[SiteInfo] = []
    for i, eqn in enumerate(_jax.parts(jaxpr).eqns):
        here = (*path, i)
        if eqn.primitive is sample_p or (whole and eqn.primitive is composite_p):
            avals = tuple(v.aval for v in eqn.invars)
            for at, site in _sites(eqn, here):
                occurrence = counts.get(site.address, 0)
                counts = counts | {site.address: occurrence + 1}
                found.append(SiteInfo(at, site, avals, loops, occurrence, outside_while, in_branch))
        elif has_site(eqn):
            alternatives = []
            for inner_path, inner, loop, is_while in _children(eqn, here):
                start = alternatives[-1] if alternatives and is_while else counts
                outside = len(loops) if is_while and outside_while is None else outside_while
                branch = in_branch or eqn.primitive is _jax.cond_p
                inside, after = _walk(inner, inner_path, loops + loop, outside, branch, start, whole)
                found += inside
                alternatives.append(after)
            counts = {a: max(c.get(a, 0) for c in alternatives) for c in alternatives for a in c} or counts
    return found, counts


def _sites(eqn: Any, path: Path) -> list[tuple[Path, Site]]:
    if eqn.primitive is sample_p:
        return [(path, eqn.params["site"])]
    return [((*path, k), site) for k, site in enumerate(eqn.params["composite"].sites)]


def _children(eqn: Any, path: Path) -> Sequence[tuple[Path, Any, tuple[Loop, ...], bool]]:
    """The programs inside an equation, with the paths that `run` gives them and the loop they stand in."""
    p = eqn.params
    if eqn.primitive is composite_p:
        return [(path, p["composite"].draw, (), False)]
    if eqn.primitive is lanes_p:
        return [(path, p["jaxpr"], (Loop("lane", p["lane"].size),), False)]
    if eqn.primitive is _jax.scan_p:
        return [(path, p["jaxpr"], (Loop("scan", p["length"]),), False)]
    if eqn.primitive is _jax.cond_p:
        return [((*path, b), branch, (), False) for b, branch in enumerate(p["branches"])]
    if eqn.primitive is _jax.while_p:
        return [((*path, 0), p["cond_jaxpr"], (), True), ((*path, 1), p["body_jaxpr"], (), True)]
    if eqn.primitive in (_jax.jit_p, _jax.remat_p):
        return [(path, p["jaxpr"], (), False)]
    return []  # `run` raises there


def check_unique(found: Sequence[SiteInfo], jaxpr: Any) -> None:
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


def _exclusive(jaxpr: Any, a: Path, b: Path) -> bool:
    """Whether two paths part at the branches of one `cond`."""
    for i, eqn in enumerate(_jax.parts(jaxpr).eqns):
        if a[0] == b[0] == i:
            inside = _children(eqn, (i,))
            if eqn.primitive is _jax.cond_p and a[1] != b[1]:
                return True
            for inner_path, inner, _, _ in inside:
                n = len(inner_path)
                if len(a) > n and len(b) > n and a[:n] == inner_path == b[:n]:
                    return _exclusive(inner, a[n:], b[n:])
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
