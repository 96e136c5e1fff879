"""Results as lines, as Markdown, and as figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import air

FOLDER = Path(__file__).parent
RATIOS = {
    "time": "time_s",
    "flops": "flops",
    "bytes": "bytes",
    "memory": "memory",
    "trace+compile": "build_s",
    "equations": "equations",
    "time x var": "time_x_variance",
}


def ratios(figures: dict[str, dict[str, float]], base: str) -> dict[str, float | None]:
    """vipl's figures over those of another implementation."""
    mine, other = figures.get("vipl", {}), figures.get(base, {})
    return {
        name: mine[key] / other[key] if other.get(key) and mine.get(key) is not None else None
        for name, key in RATIOS.items()
    }


def heading() -> str:
    """The columns of the lines."""
    return f"{'vipl over handwritten (over numpyro)':58}" + "".join(f"{name:>15}" for name in RATIOS)


def row(entry: dict[str, Any]) -> str:
    """One line."""
    hand, numpyro = (ratios(entry["figures"], base) for base in ("handwritten", "numpyro"))
    cells = (f"{_number(hand[n])} ({_number(numpyro[n])})" for n in RATIOS)
    return f"{entry['workload'] + ', ' + entry['name']:58}" + "".join(f"{c:>15}" for c in cells)


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}" if x < 100 else f"{x:.0f}"


def scaling(result: dict[str, Any]) -> str:
    """Growth and lanes, as Markdown."""
    lines = ["", "| estimator | sites | equations | trace, ms | call, us |", "| --- | --- | --- | --- | --- |"]
    for name, by_size in result["growth"]["sites"].items():
        for n, f in by_size.items():
            lines.append(f"| {name} | {n} | {f['equations']} | {1e3 * f['trace_s']:.0f} | {1e6 * f['time_s']:.0f} |")
    lines += [
        "",
        "| estimator | steps of a scan | equations | trace, ms | call, us |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, by_size in result["growth"]["steps"].items():
        for n, f in by_size.items():
            lines.append(f"| {name} | {n} | {f['equations']} | {1e3 * f['trace_s']:.0f} | {1e6 * f['time_s']:.0f} |")
    lines += ["", "| standard deviation of the gradient of one lane | 1 lane | 10 | 100 |", "| --- | --- | --- | --- |"]
    for name, by_size in result["lanes"].items():
        lines.append(f"| {name} | " + " | ".join(f"{s:.2f}" for s in by_size.values()) + " |")
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    m = result["machine"]
    versions = ", ".join(f"{p} {v}" for p, v in m["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`; how the figures are made, and what they mean, is in `docs/benchmarks.md`.",
        "",
        f"{m['date']}, {m['device']}, {m['cores']} cores, {m['machine']}; Python {m['python']}; {versions};",
        f"commit {m['commit']}; {result['seconds'] / 60:.0f} minutes in all.",
        *map(_again, result.get("again", [])),
        "",
        "vipl over the hand-written program; in brackets, over NumPyro. Below 1, vipl is faster or smaller.",
        "",
        "| workload | " + " | ".join(RATIOS) + " |",
        "| --- |" + " --- |" * len(RATIOS),
    ]
    for entry in result["cases"]:
        hand, other = (ratios(entry["figures"], base) for base in ("handwritten", "numpyro"))
        has_other = "numpyro" in entry["figures"]
        cells = [_number(hand[n]) + (f" ({_number(other[n])})" if has_other else "") for n in RATIOS]
        note = f" ({entry['note']})" if entry["note"] else ""
        lines.append(f"| {entry['workload']}: {entry['name']}{note} | " + " | ".join(cells) + " |")
    if result["cases"]:
        lines += ["", "![Time of a call](results/time.png)"]
    lines += [
        "",
        "In figures:",
        "",
        "| workload | implementation | call, us | trace, ms | compile, ms | MB | rel. variance |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for entry in result["cases"]:
        for name, f in entry["figures"].items():
            variance = f"{f['relative_variance']:.2g}" if "relative_variance" in f else "-"
            lines.append(
                f"| {entry['workload']}: {entry['name']} | {name} | {1e6 * f['time_s']:.0f} | {1e3 * f['trace_s']:.0f} "
                f"| {1e3 * f['compile_s']:.0f} | {f['memory'] / 1e6:.2f} | {variance} |"
            )
    if "growth" in result:
        lines += ["", "## Growth", scaling(result)]
    if "fits" in result:
        lines += ["", *steps(result["fits"])]
    if "air" in result:
        lines += ["", *training(result["air"])]
    lines += long_runs()
    return "\n".join(lines) + "\n"


def _again(part: dict[str, Any]) -> str:
    made = f"{part['machine']['date']} at commit {part['machine']['commit']}"
    return f"\nMeasured again on {made}: {'; '.join(part['workloads'])}."


def steps(fits: list[dict[str, Any]]) -> list[str]:
    """A step of a fit beside loops that are written by hand."""
    lines = [
        "## A step of a fit",
        "",
        "Microseconds of a step, of whole calls with 20,000 steps (`benchmarks/fits.py`).",
        "",
        "| rows | vipl.fit | loop by hand | all by hand | rows by randint | over the loop | of CPU time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for f in fits:
        each = [f"{f[name]['wall_us']:.2f}" if name in f else "-" for name in ("vipl", "loop", "all", "randint")]
        over = [f"{f['vipl'][kind] / f['loop'][kind]:.2f}" for kind in ("wall_us", "cpu_us")]
        lines.append(f"| {f['rows'] or 'no batches'} | " + " | ".join([*each, *over]) + " |")
    return lines


def training(air: dict[str, Any]) -> list[str]:
    """The short run of attend, infer, repeat."""
    options = air["options"]
    lines = [
        "## Attend, infer, repeat: a short run",
        "",
        f"{options['images']} canvases made of {air['data']}, Adam {options['learning_rate']:g}; without compilation.",
        "",
        "| estimator | epoch | seconds | objective per image | count accuracy |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, log in air["logs"].items():
        for e in log:
            lines.append(f"| {name} | {e['epoch']} | {e['seconds']:.0f} | {e['objective']:.1f} | {e['accuracy']:.3f} |")
    return [*lines, "", "![Objective and count accuracy against wall clock](results/air.png)"]


def long_runs() -> list[str]:
    """What is kept of longer runs of attend, infer, repeat: results/air-*.json, and the pictures beside them."""
    files = sorted((FOLDER / "results").glob("air-*.json"))
    if not files:
        return []
    lines = [
        "",
        "## Attend, infer, repeat: longer runs",
        "",
        "Made by `python -m benchmarks.air`, with `--json` and `--picture`; the logs of all epochs are in the files.",
        "",
        "| estimator | canvases | Adam | epochs | seconds | objective | count accuracy | above .98 from | file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for file in files:
        run = json.loads(file.read_text())
        o = run["options"]
        for name, log in run["logs"].items():
            above = next((f"epoch {e['epoch']}, {e['seconds']:.0f} s" for e in log if e["accuracy"] > 0.98), "-")
            last = log[-1]
            lines.append(
                f"| {name} | {o['images']} of {run['data']} | {o['learning_rate']:g} | {last['epoch']} "
                f"| {last['seconds']:.0f} | {last['objective']:.1f} | {last['accuracy']:.3f} | {above} | {file.stem} |"
            )
    for file in files:
        run = json.loads(file.read_text())
        m, note = run["machine"], run["options"]["note"]
        made = f"{m['date']}, {m['device']}, {m['cores']} cores, commit {m['commit']}"
        lines += ["", f"{file.stem}: {made}. {note}".rstrip()]
        if file.with_suffix(".png").exists():
            lines += ["", f"![{file.stem}: objective and count accuracy against wall clock](results/{file.stem}.png)"]
    return lines


def picture(result: dict[str, Any], path: Path) -> None:
    """Time of a call over the hand-written one, for each case and implementation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [e for e in result["cases"] if "handwritten" in e["figures"]]
    figure, axis = pyplot.subplots(figsize=(8, 0.28 * len(cases) + 1.2))
    for name, color, marker in (("vipl", "#1f6fb4", "o"), ("numpyro", "#d95f02", "s")):
        points = [
            (e["figures"][name]["time_s"] / e["figures"]["handwritten"]["time_s"], i)
            for i, e in enumerate(cases)
            if name in e["figures"]
        ]
        axis.plot(*zip(*points, strict=True), marker, color=color, label=name)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="time of a call, over hand-written", yticks=range(len(cases)))
    axis.set_yticklabels([f"{e['workload']}: {e['name']}" for e in cases], fontsize=7)
    axis.invert_yaxis()
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def renewed(result: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """The results `before` (those that were kept last) with the lines of the workloads that were measured anew."""
    if before is None:
        return renewed(result, json.loads((FOLDER / "results" / "bench.json").read_text()))
    new = {entry["workload"]: [e for e in result["cases"] if e["workload"] == entry["workload"]]
           for entry in result["cases"]}  # fmt: skip
    left, cases = dict(new), []
    for entry in before["cases"]:
        cases += left.pop(entry["workload"], []) if entry["workload"] in new else [entry]
    cases += [entry for entries in left.values() for entry in entries]
    parts = {k: x for k, x in result.items() if k not in ("machine", "cases", "seconds")}
    again = {"machine": result["machine"], "workloads": list(new) + list(parts), "seconds": result["seconds"]}
    older = [x for x in before.get("again", []) if not set(x["workloads"]) <= set(again["workloads"])]
    return before | parts | {"cases": cases, "again": [*older, again]}


def write(result: dict[str, Any]) -> None:
    """Makes RESULTS.md, results/time.png and results/bench.json."""
    (FOLDER / "results").mkdir(exist_ok=True)
    (FOLDER / "results" / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    if result["cases"]:
        picture(result, FOLDER / "results" / "time.png")
    if "air" in result:
        air.picture(FOLDER / "results" / "air.png", result["air"]["logs"])
    (FOLDER / "RESULTS.md").write_text(markdown(result))
