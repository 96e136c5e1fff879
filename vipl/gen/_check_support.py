"""The check of a value that is given to a site against the site's support, before anything runs.

Invariant: a value that surely lies in the support is not looked at again when the program runs; one that can lie
outside, or whose density refers to another measure, is an error; of all others the program looks at the value.
"""

from __future__ import annotations

from collections.abc import Sequence

from vipl._jax import Tracer
from vipl._types import Array
from vipl.analysis.regions import POINT, Region, continuous
from vipl.analysis.supports import ENTERS, Drawn, mark, origin, verdict
from vipl.errors import SupportError
from vipl.ir.primitives import Site


def lies_inside(value: Array, sites: Sequence[Site]) -> bool:
    """Whether a value surely lies in the support of its site; raises where its own support is another.

    Branches of a `cond` may share an address: a verdict has to hold for all of their sites.

    Raises:
      SupportError: the value is drawn where the density is zero, or from a density with respect to another measure.
    """
    wanted, about = [s.support for s in sites], (sites[0].at(), sites[0].support)
    known = origin(value)
    if known == ENTERS and isinstance(value, Tracer):
        mark(value, wanted, _refuse, about)
    inside = verdict(known, wanted)
    if inside is False and isinstance(known, Drawn):
        raise _refuse(known, about)
    return inside is True


def _refuse(drawn: Drawn, about: tuple[str, Region]) -> SupportError:
    at, wanted = about
    got = drawn.region
    assert got is not None
    on_support = "TransformedDistribution(base, biject_to(model_distribution.support))"
    fix = f"draw it from a distribution on that support, e.g. {on_support}"
    if wanted.measure == POINT:
        fix = "draw it from Delta there, too; or give the site its value as a datum"
    if continuous(got.measure, wanted.measure) is False:
        return SupportError(
            "a value's density and the density of the site that it is given to are with respect to different measures.",
            at=at,
            got=f"a value of {drawn.at}, which has {got.measured()}",
            expected=f"{wanted.measured()}, on {wanted}",
            fix=fix,
        )
    return SupportError(
        "a value can lie where the density of the site that it is given to is zero.",
        at=at,
        got=f"a value of {drawn.at}, whose support is {got}",
        expected=f"values in {wanted}",
        fix=fix,
    )
