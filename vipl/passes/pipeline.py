"""The passes over the program of an objective, and their order.

1. `stage_program` (`vipl.ir.stage`, called by `vipl.expectation.expectation`) makes one jaxpr of the program: its sites
   are equations, its plain `jit`s are inlined (`vipl.ir.inline`).
2. `separate_sites` (`vipl.expectation.vector_sites`, called by `make_plan`) makes vector sites lanes of one element.
3. `unroll_scans` writes out the loops that the user has asked to be written out.
4. `expose_sums` takes sums at the objective's linear end out of loops, where drawn values are held by `stop_gradient`;
   and numbers that a loop adds up, where a site weighs what it reaches.
5. `make_plan` (`vipl.expectation.plan`) calls `prepare`, which is 3 and 4, and analyses the result (`vipl.analysis`).
   Where no elements of a vector are told apart it begins at 2 again, with that site whole.
6. The program is run (`vipl.expectation.run`, by `vipl.interpret.interpreter`). Each scan is split in what has to be
   done step by step, and the rest (`vipl.passes.scan_fission`).
7. `cse` (called by `vipl.expectation.expectation`) evaluates equal equations of all runs once, unread ones not at all,
   and many rows of one array together. Only then does JAX differentiate.
"""

from __future__ import annotations

from vipl._jax import ClosedJaxpr
from vipl.analysis.decomposition import expose_sums
from vipl.passes.unroll import unroll_scans


def prepare(jaxpr: ClosedJaxpr, weighs: bool = True) -> ClosedJaxpr:
    """The passes before the analysis; of a program with a site that weighs what it reaches, or without."""
    return expose_sums(unroll_scans(jaxpr), weighs)
