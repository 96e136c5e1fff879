"""The benchmarks compare what is comparable, and find a wrong implementation."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks import fits, report
from benchmarks.machine import machine
from benchmarks.measure import DisagreementError, compare, count_equations, measure
from benchmarks.workloads import cone, mixture, regression


def by_name(cases, name):
    return next(c for c in cases if c.name == name)


@pytest.mark.oldest
def test_a_wrong_implementation_is_an_error():
    case = by_name(regression.cases(True), "eight schools")
    compare(case)
    right = case.objectives["handwritten"]
    wrong = lambda key, params, *data: right(key, params, *data) - 3.0 * params["mu"][1]  # noqa: E731
    broken = dataclasses.replace(case, objectives={"vipl": wrong, "handwritten": right})
    with pytest.raises(DisagreementError, match="eight schools: vipl against handwritten: z = "):
        compare(broken)


def test_a_twin_of_a_fit_that_ends_elsewhere_is_an_error():
    def ends_at(mean):
        return lambda key: {"m": mean + 0.01 * jax.random.normal(key, (4,)), "s": jnp.zeros(4)}

    fits.compare(ends_at(1.0), lambda key: ends_at(1.0)(jax.random.fold_in(key, 1)))
    with pytest.raises(DisagreementError, match="fits: vipl.fit against the loop by hand: z = "):
        fits.compare(ends_at(1.0), lambda key: ends_at(1.03)(jax.random.fold_in(key, 1)))


def test_figures_of_a_fit_are_told():
    figures = {"wall_us": 3.0, "cpu_us": 2.0, "flops": 6.0, "equations": 9}
    halves = {name: x / 2 for name, x in figures.items()}
    told = fits.text({"rows": 1000, "vipl": figures, "loop": halves, "all": figures, "randint": {"wall_us": 9.0}})
    assert [line.split()[-2:] for line in told.split("\n")] == [["2.00", "1.00"]] * 4
    assert told.split("\n")[0].split() == ["1,000", "us", "3.00", "1.50", "3.00", "9.00", "2.00", "1.00"]


def test_an_exact_gradient_has_no_variance():
    figures = compare(by_name(mixture.cases(True), "Enumerate"))
    assert figures["vipl"]["relative_variance"] < 1e-9


def test_what_is_measured_is_reported():
    case = by_name(cone.cases(True), "IWELBO 5")
    figures = measure(case, seconds=0.02, traces=1, check=False)
    entry = {"workload": case.workload, "name": case.name, "note": "", "figures": figures}
    ratio = figures["vipl"]["flops"] / figures["numpyro"]["flops"]
    assert 0.5 < ratio < 1.5
    assert f"({ratio:.2f})" in report.row(entry)
    page = report.markdown({"machine": machine(), "cases": [entry], "seconds": 1.0})
    assert f"| noisy cone: IWELBO 5 | vipl | {1e6 * figures['vipl']['time_s']:.0f} |" in page


def test_equations_of_inner_programs_are_counted():
    inner = jax.jit(lambda x: jnp.sin(x) + 1.0)
    assert count_equations(jax.make_jaxpr(lambda x: inner(x) * 2.0)(1.0)) == 4


def test_workloads_that_are_measured_again_replace_their_lines_alone():
    """The other lines stay in their places, and the page says which are newer."""

    def entry(workload, name, time):
        figures = {which: {"time_s": time, "trace_s": 1, "compile_s": 1, "memory": 1, "flops": 1, "bytes": 1,
                           "equations": 1} for which in ("vipl", "handwritten")}  # fmt: skip
        return {"workload": workload, "name": name, "note": "", "figures": figures}

    old = [entry("a", "1", 1.0), entry("b", "1", 1.0), entry("b", "2", 1.0), entry("c", "1", 1.0)]
    new = [entry("b", "1", 2.0), entry("b", "3", 2.0), entry("d", "1", 2.0)]
    before = {"machine": machine(), "cases": old, "seconds": 60.0, "growth": {"kept": 1}}
    result = report.renewed({"machine": machine(), "cases": new, "seconds": 1.0}, before)
    lines = [(e["workload"], e["name"], e["figures"]["vipl"]["time_s"]) for e in result["cases"]]
    assert lines == [("a", "1", 1.0), ("b", "1", 2.0), ("b", "3", 2.0), ("c", "1", 1.0), ("d", "1", 2.0)]
    assert result["growth"] == {"kept": 1}
    page = report.markdown({k: x for k, x in result.items() if k != "growth"})
    assert f"at commit {machine()['commit']}: b; d." in page
