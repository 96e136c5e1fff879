"""The passes over the program of an objective, and their order.

1. The program is staged (`vipl.ir.stage`): one jaxpr, its sites are equations, its plain `jit`s are inlined.
2. `unroll_scans`: loops that the user has asked to be written out are written out.
3. `expose_sums`: where drawn values are held by `stop_gradient`, no loop hides the sums at the objective's linear end.
4. The program is analysed (`vipl.analysis`), planned and run (`vipl.expectation`), each scan of a run split in what has
   to be done step by step and the rest (`vipl.passes.scan_fission`).
5. `cse`: of what all runs together have become, equal equations are evaluated once, and unread ones not at all.
   Only then does JAX differentiate.
"""

from __future__ import annotations

from typing import Any

from vipl.analysis.decomposition import expose_sums
from vipl.passes.unroll import unroll_scans


def prepare(jaxpr: Any) -> Any:
    """The passes before the analysis."""
    return expose_sums(unroll_scans(jaxpr))
