"""What `python -m vipl zoo` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from vipl.zoo._method import Method, Number, load, names


def title(method: Method) -> str:
    """The first line of a method's docstring, without its full stop."""
    return (method.__doc__ or "").strip().split("\n")[0].rstrip(".")


def show_list() -> None:
    """Prints all methods with their papers and objectives."""
    for name in names():
        method = load(name)
        print(f"{name}\n    {title(method)}\n    {method.PAPER}\n    objective: {method.OBJECTIVE}")
    print("\npython -m vipl zoo NAME runs one; python -m vipl zoo --all runs all, and prints one table.")


def run(chosen: Sequence[str], out: Path) -> int:
    """Runs methods, prints what each reached beside what is known, and saves their pictures.

    Returns:
      0, or 1 where a number is not within its tolerance.
    """
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    print(f"  {'method':24s} {'number':44s} {'reached':>12s} {'reference':>12s} {'tolerance':>9s} {'seconds':>7s}")
    missed = 0
    for name in chosen:
        start = time.perf_counter()
        outcome = load(name).run(progress=len(chosen) == 1)
        seconds = f"{time.perf_counter() - start:7.1f}"
        for number in outcome.numbers:
            print(f"  {name:24s} {_row(number)} {seconds}", flush=True)
            missed += not number.holds
            seconds = ""
        figure = Figure(figsize=(8, 4), layout="constrained")
        outcome.draw(figure)
        figure.savefig(out / f"{name}.png", dpi=100)
    print(f"\n{len(chosen)} methods; pictures in {out}/. " + (f"{missed} NUMBERS MISSED." if missed else "All hold."))
    return int(missed > 0)


def _row(number: Number) -> str:
    values = f"{number.reached:12.6f} {number.reference:12.6f} {number.tolerance:9.2g}"
    return f"{number.name:44s} {values}{'' if number.holds else '  MISSED'}"
