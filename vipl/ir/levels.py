"""A program in parts, by what its equations depend on: constants alone, a key alone, or anything else.

Law: `constant`, then `made`, then `drawn`, then `other` are the equations of the program in an order in which it can be
evaluated, and the order of those that are not pure is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vipl._jax import Atom, Eqn, Literal, Var
from vipl.ir.dataflow import evaluate
from vipl.ir.purity import is_pure
from vipl.ir.traits import RANDOM_BITS, traits_of

FIXED, KEY, DRAWN, OTHER = range(4)
"""The levels of a variable: a constant, evaluated wherever it is read; a key, made of the key and constants alone; what
depends on the key otherwise, not on operands; what depends on operands, or is not known to be pure."""


class Parts(NamedTuple):
    """The equations of a program.

    Attributes:
      levels: of all variables.
      constant: …, those that depend on constants alone.
      made: …, those that make keys of the key, or random bits of keys.
      drawn: …, others that depend on the key alone.
      other: …, all others.
    """

    levels: dict[Var, int]
    constant: list[Eqn]
    made: list[Eqn]
    drawn: list[Eqn]
    other: list[Eqn]

    def ends(self, used: Mapping[Var, None]) -> list[Var]:
        """All bits that are made, and the keys among the variables that are used otherwise."""
        bits = [v for eqn in self.made if eqn.primitive.name == RANDOM_BITS for v in eqn.outvars]
        return bits + [v for v, level in self.levels.items() if level == KEY and v in used]


def by_level(eqns: Sequence[Eqn], inputs: Mapping[Var, int]) -> Parts:
    """The parts of a program, given the levels of its inputs and constants."""
    parts: tuple[list[Eqn], ...] = ([], [], [], [])

    def visit(_: int, eqn: Eqn, levels: list[int]) -> list[int]:
        here = max(levels, default=FIXED) if is_pure(eqn) else OTHER
        out = DRAWN if here == KEY and not traits_of(eqn).makes_keys else here
        parts[here if eqn.primitive.name == RANDOM_BITS else out].append(eqn)
        return [out] * len(eqn.outvars)

    return Parts(evaluate(eqns, inputs, visit, constant=lambda _: FIXED), *parts)


def read_by(eqns: Sequence[Eqn], outs: Sequence[Atom]) -> dict[Var, None]:
    """The variables that equations read, and those among `outs`."""
    variables = [v for eqn in eqns for v in eqn.invars] + list(outs)
    return dict.fromkeys(v for v in variables if not isinstance(v, Literal))
