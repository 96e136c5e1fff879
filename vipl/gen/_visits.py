"""Which sites a program visits: those in a branch that is not taken have no value."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from vipl._types import Array
from vipl.gen._choices import Address, flatten
from vipl.gen._program import Program, merge_emits
from vipl.gen._without_choice import valued
from vipl.interpret.interpreter import Interpreter, Outcome, run


def visits(program: Program, choices: Mapping[Address, Array]) -> dict[Address, Array]:
    """bool[*loops] by address, whether a site is visited where the choices are these; of sites in branches alone.

    Args:
      program: the program.
      choices: all of them, by address.
    """
    staged, every = program.staged()
    found = valued(every)
    here = {info.path: choices[info.site.address] for info in found}
    yes = jnp.ones((), bool)

    def handle(visit, operands, x):
        del operands
        if visit.path not in here:  # a factor, a record, a key
            return Outcome(jnp.zeros(visit.site.shape, visit.site.dtype), {}, {})
        return Outcome(x, {}, {visit.path: yes})

    def compose(composite, operands, given, path):
        del operands
        return Outcome(given, {}, {(*path, k): yes for k in range(len(composite.sites))})

    emits = run(staged.jaxpr, [], Interpreter(handle, None, "which sites are visited", compose), here).emits
    in_branch = {info.site.address for info in found if info.in_branch}
    merged = flatten(merge_emits([info for info in found if info.path in emits], emits), program.name)
    return {a: x for a, x in merged.items() if a in in_branch}
