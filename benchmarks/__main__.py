"""The benchmark suite: `python -m benchmarks [NAME ...] [--impl vipl,handwritten,numpyro] [--json OUT] [--write]`.

Without names all workloads run. `--write` makes benchmarks/RESULTS.md and its figures from the results; with names, the
lines of other workloads stay as they were.
`python -m benchmarks fits` compares a step of `vipl.fit` with loops by hand; `python -m benchmarks practice [PROBLEM]`
whole analyses with NumPyro's. How the figures are made: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from typing import Any

import jax

from benchmarks import air, fits, practice, report
from benchmarks.machine import machine
from benchmarks.measure import DisagreementError, measure

WORKLOADS = ("core", "vae", "cone", "mixture", "discrete", "sbn", "series", "regression", "air")
OTHERS = ("scaling", "training", "fits")


def main() -> None:
    """Runs what is asked for; the exit status is 1 where implementations disagree."""
    if sys.argv[1:2] == ["practice"]:
        practice.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *WORKLOADS, *OTHERS], help="workloads; none: all")
    parser.add_argument("--impl", default="vipl,handwritten,numpyro", help="implementations, with commas between")
    parser.add_argument("--json", help="where the results go")
    parser.add_argument("--mnist", help="the .npz file of MNIST; or set VIPL_MNIST")
    parser.add_argument("--quick", action="store_true", help="the smallest size of each workload, short timings")
    parser.add_argument("--write", action="store_true", help="make benchmarks/RESULTS.md and its figures")
    options = parser.parse_args()
    if options.mnist:
        os.environ["VIPL_MNIST"] = options.mnist
    wanted = options.impl.split(",")
    names = options.names or [*WORKLOADS, *OTHERS]
    result: dict[str, Any] = {"machine": machine(), "cases": []}
    failed = False
    start = time.perf_counter()
    print(report.heading(), flush=True)
    for name in names:
        if name == "training":
            result["air"] = air.short(options.quick)
            continue
        if name == "fits":
            result["fits"] = fits.lines(options.quick)
            continue
        workload = importlib.import_module(f"benchmarks.workloads.{name}")
        if name == "scaling":
            result |= {"growth": workload.growth(options.quick), "lanes": workload.lanes()}
            print(report.scaling(result), flush=True)
            continue
        for case in workload.cases(options.quick):
            case.objectives = {n: f for n, f in case.objectives.items() if n in wanted}
            try:
                figures = measure(case, seconds=0.5 if options.quick else 2.0, traces=3 if options.quick else 5)
            except DisagreementError as error:
                print(f"WRONG: {error}", file=sys.stderr, flush=True)
                failed = True
                continue
            entry = {"workload": case.workload, "name": case.name, "note": case.note, "figures": figures}
            result["cases"].append(entry)
            print(report.row(entry), flush=True)
            jax.clear_caches()
    result["seconds"] = time.perf_counter() - start
    print(f"{result['seconds']:.0f} s in all")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    if options.write:
        report.write(report.renewed(result) if options.names else result)
    sys.exit(failed)


if __name__ == "__main__":
    main()
