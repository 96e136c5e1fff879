"""Inlining of `jit`: each plain call of a compiled function is replaced by the equations of that function.

Invariant: the same equations on the same operands, each with its own context and source line. What stays is a `jit`
that says something about devices or the compiler; and one with constants in a program that can hold none, as that of a
checkpoint is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vipl import _jax
from vipl._jax import Atom, Eqn, Jaxpr, Var
from vipl._types import Array
from vipl.ir.primitives import lanes_p

J = TypeVar("J", bound=Jaxpr)

_ENTERED = (_jax.scan_p, _jax.cond_p, _jax.while_p, _jax.remat_p, lanes_p)


def inline_jits(jaxpr: J) -> J:
    """The same program without plain `jit`s, also inside loops, branches, lanes and checkpoints."""
    if not _has_jit(jaxpr):
        return jaxpr
    constvars, consts, _, eqns, outvars = _jax.parts(jaxpr)
    program = _Program(list(constvars), list(consts), _jax.is_closed(jaxpr))
    env: dict[Var, Atom] = {}
    program.append(eqns, env)
    return _jax.with_parts(jaxpr, program.constvars, program.consts, program.eqns, _renamed(env, outvars))


def _has_jit(jaxpr: Jaxpr) -> bool:
    return any(
        _jax.is_plain_jit(eqn) or (eqn.primitive in _ENTERED and any(map(_has_jit, _jax.bodies(eqn))))
        for eqn in _jax.parts(jaxpr).eqns
    )


def _renamed(env: dict[Var, Atom], variables: Sequence[Atom]) -> list[Atom]:
    return [v if isinstance(v, _jax.Literal) else env.get(v, v) for v in variables]


class _Program:
    """A program in the making: constants and equations."""

    def __init__(self, constvars: list[Var], consts: list[Array], closed: bool):
        self.constvars, self.consts, self.closed = constvars, consts, closed
        self.eqns: list[Eqn] = []

    def append(self, eqns: Sequence[Eqn], env: dict[Var, Atom], *, copy: bool = False) -> None:
        """Adds equations; `env`: variable -> what stands for it; `copy`: their results get variables of their own."""
        for eqn in eqns:
            operands = _renamed(env, eqn.invars)
            if _jax.is_plain_jit(eqn) and (self.closed or not _jax.parts(eqn.params["jaxpr"]).consts):
                results = self._call(eqn.params["jaxpr"], operands)
                env.update(zip(eqn.outvars, results, strict=True))
                continue
            params = _jax.map_bodies(eqn, inline_jits) if eqn.primitive in _ENTERED else eqn.params
            results = [_jax.new_variable(v) for v in eqn.outvars] if copy else eqn.outvars
            env.update(zip(eqn.outvars, results, strict=True))
            self.eqns.append(_jax.with_ends(eqn, operands, results, params))

    def _call(self, jaxpr: Jaxpr, operands: Sequence[Atom]) -> list[Atom]:
        constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
        env = dict(zip(invars, operands, strict=True))
        for v, x in zip(constvars, consts, strict=True):
            env[v] = own = _jax.new_variable(v)
            self.constvars.append(own)
            self.consts.append(x)
        self.append(eqns, env, copy=True)
        return _renamed(env, outvars)
