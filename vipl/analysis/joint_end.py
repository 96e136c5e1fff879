"""Where lanes of enumerated sites meet.

The particles of a bound stay apart, each in its lane, until their weights are added up. There all joint values of all
lanes count, size^lanes of them; but what leads there is a function of one lane's values alone, and is evaluated once
for each of these, in all lanes at once:

    E[f] = Σ_e W_e g(h_1(e_1), ..., h_L(e_L)),   h_l(e) for all lanes l and values e first, then g for all joint values.

Invariant: the same sum as by running the whole program at every joint value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vipl import _jax
from vipl._jax import Atom, Eqn, Jaxpr, Var
from vipl.analysis.dependence import Dependence
from vipl.ir.dataflow import Cut, backward
from vipl.ir.primitives import Path
from vipl.ir.purity import is_pure


class JointEnd(NamedTuple):
    """The end of a program, in which lanes meet.

    Attributes:
      lanes: the enumerated sites whose lanes meet only there, and which of the loops around each are these lanes.
      eqns: the equations of the end; none of them holds a site, all are pure.
      leaves: the variables that the end reads, and what reaches them.
      sites: the sites in whose values these lanes are apart, and what reaches these, and whether they are visited; no
        other reaches the end.
    """

    lanes: dict[Path, tuple[int, ...]]
    eqns: tuple[Eqn, ...]
    leaves: dict[Var, Dependence]
    sites: dict[Path, Dependence]


def find_joint_end(
    jaxpr: Jaxpr,
    values: Mapping[Var, Dependence],
    sites: Mapping[Path, Dependence],
    outs: Sequence[Atom],
    lanes: Mapping[Path, tuple[int, ...]],
) -> JointEnd | None:
    """Follows a program backwards to the values in which all given lanes are apart; None where there are none.

    Args:
      jaxpr: the program.
      values: what reaches its variables.
      sites: what reaches its sites' values, and whether they are visited.
      outs: the variables that are wanted.
      lanes: the loops to look for, of each site; those that meet before or at another site are left out.
    """
    eqns = _jax.parts(jaxpr).eqns
    kept = {path: loops for path, loops in lanes.items() if loops}
    while kept:
        end, blocked = _end(eqns, values, outs, kept)
        if not blocked:
            reaches = {v: values.get(v, {}) for v in end.ends}
            before = {path: reach for path, reach in sites.items() if not _met(reach, kept)}
            return JointEnd(kept, tuple(end.eqns(eqns)), reaches, before)
        left = {p: tuple(i for i in loops if (p, i) not in blocked) for p, loops in kept.items()}
        kept = {path: loops for path, loops in left.items() if loops}
    return None


def _end(
    eqns: Sequence[Eqn], values: Mapping[Var, Dependence], outs: Sequence[Atom], lanes: Mapping[Path, tuple[int, ...]]
) -> tuple[Cut, set[tuple[Path, int]]]:
    """The part behind the lanes, and which lanes meet in an equation that has to stay before it."""
    blocked: set[tuple[Path, int]] = set()

    def meets(i, v):
        met = set() if blocked else _met(values.get(v, {}), lanes)
        if met and not is_pure(eqns[i]):  # a site, for one
            blocked.update(met)
        return bool(met)

    return backward(eqns, outs, meets), blocked


def _met(reach: Dependence, lanes: Mapping[Path, tuple[int, ...]]) -> set[tuple[Path, int]]:
    """The sites and loops that a value no longer tells apart, each along an axis of its own."""
    return {(p, i) for p, loops in lanes.items() if p in reach for i in loops if not isinstance(reach[p][i], int)}
