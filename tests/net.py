"""`python -m tests.net record FILE`, `python -m tests.net compare FILE`: what a change of the insides did to programs.

For every program of the conformance table (double precision) and every workload of the benchmarks (single precision,
small sizes): value and gradient of `estimate` at four keys, to the bit; equations of the jaxpr; floating-point
operations and bytes of the compiled program. `record` writes them; `compare` measures again, and prints every program
that differs, and by how much. A record holds for one machine and one JAX: it is made before a change, not kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tests.conftest  # noqa: F401  (sets the flags of XLA, which reads them with the first program)
from benchmarks.measure import count_equations, step_of

NUM_KEYS = 4

Entry = dict[str, Any]
Step = tuple[Callable, tuple[Any, ...]]


def conformance() -> Iterator[tuple[str, Step]]:
    """The programs of `tests/estimators/test_conformance.py`."""
    from tests.helpers.cases import FAMILIES, program, table  # not before the precision is chosen: they make arrays

    for structure, name, estimator in table():
        family = FAMILIES[name]
        objective = program(structure, family, estimator)
        baseline = "" if getattr(estimator, "baseline", None) is None else " with a baseline"
        args = (jnp.array(family.theta), 1.0)
        yield f"{structure}, {name}, {type(estimator).__name__}{baseline}", (step_of(objective.estimate), args)


def workloads() -> Iterator[tuple[str, Step]]:
    """vipl's programs among the benchmarks, at their smallest sizes."""
    from benchmarks.__main__ import WORKLOADS  # likewise

    for name in WORKLOADS:
        for case in importlib.import_module(f"benchmarks.workloads.{name}").cases(True):
            yield f"{case.workload}: {case.name}", (step_of(case.objectives["vipl"]), case.args)


PARTS: dict[str, tuple[bool, Callable[[], Iterator[tuple[str, Step]]]]] = {
    "conformance": (True, conformance),
    "workloads": (False, workloads),
}


def measured(step: Callable, args: tuple[Any, ...]) -> Entry:
    """The figures of one program."""
    keys = [jax.random.key(100 + i) for i in range(NUM_KEYS)]
    traced = jax.jit(step).trace(keys[0], *args)
    compiled = traced.lower().compile()
    cost: Any = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    results = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(compiled(key, *args))]) for key in keys]
    return {
        "equations": count_equations(traced.jaxpr),
        "flops": cost.get("flops", 0.0),
        "bytes": cost.get("bytes accessed", 0.0),
        # Of a large gradient the first numbers, and sums that no change leaves alone.
        "results": [[float(x).hex() for x in [*r[:8], r.sum(), np.abs(r).sum()]] for r in results],
    }


def entries_of(part: str, wanted: str) -> dict[str, Entry]:
    """Name and figures of the programs of one part whose name matches."""
    double, programs = PARTS[part]
    jax.config.update("jax_enable_x64", double)
    entries: dict[str, Entry] = {}
    for name, (step, args) in programs():
        if re.search(wanted, f"{part}: {name}"):
            entries[f"{part}: {name}"] = measured(step, args)
            jax.clear_caches()
    return entries


def everything(wanted: str) -> dict[str, Entry]:
    """All of them; each part in a process of its own, since precision is chosen once in a process."""
    entries: dict[str, Entry] = {}
    for part in PARTS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            entries |= pool.submit(entries_of, part, wanted).result()
    return entries


def difference(old: Entry, new: Entry) -> str | None:
    """What differs, in words; None where nothing does."""
    parts = []
    for figure in ("equations", "flops", "bytes"):
        if old[figure] != new[figure]:
            parts.append(f"{figure} {old[figure]:g} -> {new[figure]:g} ({new[figure] / max(old[figure], 1):.3f})")
    if old["results"] != new["results"]:
        a, b = (np.array([[float.fromhex(x) for x in row] for row in e["results"]]) for e in (old, new))
        parts.append(
            f"results differ by up to {np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-12)):.2g} of themselves"
        )
    return "; ".join(parts) or None


def main() -> int:
    """Runs the command; the exit status is 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.net", description=__doc__)
    parser.add_argument("command", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("-k", default="", help="only programs whose name matches this regular expression")
    options = parser.parse_args()
    if options.command == "record":
        entries = everything(options.k)
        options.file.write_text(json.dumps(entries, indent=0) + "\n")
        print(f"{len(entries)} programs recorded")
        return 0
    before = json.loads(options.file.read_text())
    after = everything(options.k)
    differing = 0
    for name, entry in after.items():
        text = difference(before[name], entry) if name in before else "not in the record"
        if text:
            differing += 1
            print(f"{name}: {text}")
    missing = [name for name in before if name not in after and re.search(options.k, name)]
    print("".join(f"{name}: gone\n" for name in missing), end="")
    for figure in ("equations", "flops", "bytes"):
        sums = [sum(e[name][figure] for name in after if name in before) for e in (before, after)]
        print(f"{figure} of all: {sums[0]:g} -> {sums[1]:g} ({sums[1] / sums[0]:.4f})")
    print(f"{len(after)} programs, {differing} differ")
    return 1 if differing or missing else 0


if __name__ == "__main__":
    sys.exit(main())
