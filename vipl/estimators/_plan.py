"""The plan of an expectation: what each site will do, known before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vipl._errors import EstimatorError, ProgramError
from vipl.core._draw import SiteProgram
from vipl.core._keys import check_digests
from vipl.core._packed import pack
from vipl.core._places import Place, places
from vipl.core._site import Path
from vipl.core._stage import Staged
from vipl.estimators._enumerate import MAX_POINTS
from vipl.estimators._reparam import Reparam
from vipl.estimators._score import Score
from vipl.gen import Draw, Support
from vipl.gen._density import is_factor
from vipl.gen._sample import points_of


class Plan(NamedTuple):
    """What is known of a program before it runs.

    Attributes:
      staged: the staged program.
      found: its sites.
      programs: path -> the site's program.
      enumerated: the sites that are evaluated at all their values.
      branching: the sites with alternatives, and the number of the first alternative of each; the pruned ones last.
      num_full: how many alternatives are run.
      num_pruned: how many there are of which one is run.
      shares: sites whose baseline is the other samples' value.
    """

    staged: Staged
    found: list[Place]
    programs: dict[Path, SiteProgram]
    enumerated: list[Place]
    branching: dict[Path, int]
    num_full: int
    num_pruned: int
    shares: list[Place]


def make_plan(staged: Staged) -> Plan:
    """Finds the sites of a program, and asks their estimators what they will do."""
    found = [_with_estimator(p) for p in places(staged.jaxpr)]
    check_digests(found)
    for place in found:
        if is_factor(place.site):
            raise ProgramError(
                "a factor stands in an objective, outside every generative function, where it weighs nothing.",
                at=place.site.at(),
                got="vipl.factor in a program that is not simulated, assessed or generated",
                expected="a factor inside a function decorated with @vipl.gen",
                mend="add the log weight to the objective's value, or move it into the model",
            )
    programs = {p.path: points_of(p.site, p.avals) for p in found if p.outside_while is None}
    shapes = {path: program.shape for path, program in programs.items()}
    enumerated = [p for p in found if isinstance(shapes.get(p.path), Support)]
    _check_enumeration(enumerated, shapes)
    branching, counts = {}, [0]
    for name in ("alternatives", "pruned"):
        count = 0
        for p in found:
            shape = shapes.get(p.path)
            if isinstance(shape, Draw) and (others := getattr(shape, name)) is not None:
                branching[p.path] = sum(counts) + count
                count += p.count * others.weights.shape[0]
        counts.append(count)
    _, num_full, num_pruned = counts
    shares = [p for p in found if isinstance(s := shapes.get(p.path), Draw) and s.shared_control is not None]
    return Plan(staged, found, programs, enumerated, branching, num_full, num_pruned, shares)


def _with_estimator(place: Place) -> Place:
    """Gives a site without an estimator the default one."""
    site = place.site
    if site.estimator is not None or is_factor(site):
        return place
    reparametrized = site.source.unpack(place.source_avals).has_rsample
    packed, _ = pack(Reparam() if reparametrized else Score())
    return place._replace(site=replace(site, estimator=packed))


def _check_enumeration(enumerated: Sequence[Place], shapes: dict[Path, Any]) -> None:
    total = 1
    for p in enumerated:
        size = shapes[p.path].log_weights.shape[0]
        total *= size**p.count
        if total > MAX_POINTS:
            around = " x ".join(f"{loop.size} {loop.kind}s" for loop in p.loops) or "no loop"
            raise EstimatorError(
                "a program has too many joint values to enumerate.",
                at=p.site.at(),
                got=f"{size} values at each of {p.count} visits ({around}), and {len(enumerated)} enumerated sites",
                expected=f"at most {MAX_POINTS} joint values",
                mend="use MeasureValued() or Score() there; or map `estimate` over independent data, not the site",
            )
