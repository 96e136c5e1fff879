"""Where values lie: sets of arrays, each with the measure that densities on it refer to.

`included(a, b)` says whether a value of `a` always has a density at a site of support `b`: True; False, where it can
lie outside or the two densities refer to different measures; None, where only the value can tell.

A set is a box (bounds of every number) and a structure (such as "increasing along the last axis"). The measure is told
apart from the set: the simplex lies in R^n, but a density over the n - 1 free numbers of a point of it is no density
over R^n.

Not here: which set a distribution draws on (`vipl.gen._supports`), where values go in a program (`supports`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_MAX_BOUNDS = 4096  # of an array with more unequal entries the bounds count as unknown


class Numbers(NamedTuple):
    """A concrete array that is hashable; it broadcasts against the last axes of the value."""

    shape: tuple[int, ...]
    values: tuple[float, ...]

    def array(self) -> np.ndarray:
        """The array, f64[...]."""
        return np.asarray(self.values, dtype=float).reshape(self.shape)


def numbers(x: ArrayLike) -> Numbers | None:
    """Keeps a concrete array; as one number where all are equal. None where one is NaN, or there are too many."""
    array = np.asarray(x, dtype=float)
    if np.isnan(array).any() or array.size == 0:
        return None
    if (array == array.flat[0]).all():
        return Numbers((), (float(array.flat[0]),))
    return Numbers(array.shape, tuple(array.ravel().tolist())) if array.size <= _MAX_BOUNDS else None


Measure = Any
"""One of the names below; or a tuple of a name, and of what it is made of."""

Bound = ArrayLike | Numbers | None

LEBESGUE, COUNTING, COMPLEX, POINT = "real numbers", "integers", "complex numbers", "points"
ATOM, ATOMS = "real numbers and an atom at 0", "atoms"  # in mixtures; a single point is no atom of anything
_PLAIN = (LEBESGUE, COUNTING)  # a part of a value has a density with respect to the same measure

_WORDS = {
    LEBESGUE: "a density over real numbers",
    COUNTING: "a probability of integers",
    ATOM: "a density over real numbers with an atom at 0",
    COMPLEX: "a density over complex numbers",
    POINT: "a point mass",
    ATOMS: "an atom",
}


class Region(NamedTuple):
    """A set of arrays, with the measure of densities on it.

    Attributes:
      measure: hashable; told by equality.
      low: the lower bounds; None where they are not known.
      high: the upper bounds.
      structure: what else holds of the last `event_dim` axes: a name, and its parameters. None: nothing.
      event_dim: how many axes the structure spans.
      exact: whether the set is all of the box that has the structure; otherwise it is an unknown part of that.
      tight: whether every number takes all values between its bounds.
    """

    measure: Measure
    low: Numbers | None
    high: Numbers | None
    structure: tuple[Any, ...] | None = None
    event_dim: int = 0
    exact: bool = True
    tight: bool = True

    @property
    def rank(self) -> int:
        """How many of the last axes tell their entries apart."""
        shapes = [x.shape for x in (self.low, self.high, *(self.structure or ())) if isinstance(x, Numbers)]
        inner = self.event_dim if self.structure and isinstance(self.structure[-1], Numbers) else 0
        return max([self.event_dim, *(len(s) + inner for s in shapes)])

    def __str__(self) -> str:
        if kind := _kind(self.measure):
            if kind == "image":
                return f"transformed {_named(self.measure[1])}"
            if kind == "either":
                return " or ".join(dict.fromkeys(map(_named, self.measure[1:])))
            if kind == "slices":
                return "several supports, slice by slice"
        if self.measure in (POINT, ATOMS):
            return "one point"
        if self.structure is not None:
            return self._structured()
        if self.measure == COMPLEX:
            return "complex numbers"
        kind = "integers" if self.measure == COUNTING else "reals"
        return f"all {kind}" if self._is_whole() else f"{kind} {self._range()}"

    def _structured(self) -> str:
        name, *parameters = self.structure or ("",)
        if name == "multinomial":
            return f"counts that sum to {_shown(parameters[0])}"
        bounded = self.measure == LEBESGUE and name == "increasing vectors" and not self._is_whole()
        return f"{name} {self._range()}" if bounded else str(name)

    def _is_whole(self) -> bool:
        return (self.low, self.high) == (EVERYWHERE.low, EVERYWHERE.high)

    def _range(self) -> str:
        return f"from {_shown(self.low)} to {_shown(self.high)}"

    def measured(self) -> str:
        """The measure in words."""
        return _measured(self.measure)


def _kind(measure: Measure) -> str | None:
    """The name of a measure that is made of others, or of a manifold; None: it is one of those in `_WORDS`."""
    return measure[0] if isinstance(measure, tuple) else None


def _named(measure: Measure) -> str:
    if measure in _WORDS:
        return measure
    return "values of several supports" if measure[0] in ("image", "either", "slices") else str(measure[0])


def _measured(measure: Measure) -> str:
    if measure in _WORDS:
        return _WORDS[measure]
    if measure[0] == "either":
        return " or ".join(dict.fromkeys(map(_measured, measure[1:])))
    if measure[0] == "slices":
        return "densities of several kinds, slice by slice"
    if measure[0] == "image":
        return f"a density over the image of {_named(measure[1])} under a transform"
    return f"a density over the free numbers of {measure[0]}"


def _shown(x: Numbers | None) -> str:
    if x is None:
        return "?"
    return f"{x.values[0]:g}" if x.shape == () else np.array2string(x.array(), threshold=6, separator=", ")


def box(measure: Measure, low: Bound, high: Bound, **more: Any) -> Region:
    """All arrays between bounds; a bound is an array, `Numbers`, or None."""
    lower, upper = (x if x is None or isinstance(x, Numbers) else numbers(x) for x in (low, high))
    return Region(measure, lower, upper, **more)


EVERYWHERE = box(LEBESGUE, -math.inf, math.inf)


def manifold(name: str, event_dim: int, *parameters: Hashable) -> Region:
    """All points of a set of lower dimension than the arrays in it; densities are over its free numbers."""
    whole = EVERYWHERE
    return Region((name, *parameters), whole.low, whole.high, (name, *parameters), event_dim, tight=False)


def image(region: Region, description: Hashable | None = None) -> Region:
    """What becomes of a set where nothing is known but that it is no more what it was."""
    return Region(("image", region.measure, description), None, None, exact=False, tight=False)


def part(region: Region) -> Region:
    """An unknown part of a set."""
    return region._replace(exact=False, tight=False)


def unsure(region: Region) -> Region:
    """A set of which the measure alone is known."""
    return Region(region.measure, None, None, exact=False, tight=False)


# --- inclusion --------------------------------------------------------------------------------------------


def included(a: Region | None, b: Region | None) -> bool | None:
    """Says whether a value of `a` always has a density at a site of support `b`: True, False, or None for unknown.

    Open and closed ends of real intervals count as equal: they differ by a set of probability zero. So do bounds that
    differ by rounding. A point mass has no density to compare; its point is looked at.
    """
    if a is None or b is None:
        return None
    if (same := continuous(a.measure, b.measure)) is not True:
        return same
    between = _all([_above(a.low, b.low, a.measure), _above(_negative(a.high), _negative(b.high), a.measure)])
    if between is False:
        return False if a.tight else None
    structured = _has_structure(a, b)
    if structured is False:
        return False if a.exact else None
    return True if between and structured and b.exact else None


def continuous(a: Measure, b: Measure) -> bool | None:
    """Says whether densities with respect to measure `a` are densities with respect to `b`."""
    if _kind(a) == "either":
        return _all(continuous(x, b) for x in a[1:])
    if _kind(b) == "either":  # a mixture: the sum of the measures of its parts
        return _any(continuous(a, x) for x in b[1:])
    if "slices" in (_kind(a), _kind(b)) and a != b:
        return _by_slices(a, b)
    if a == POINT:
        return None  # the mode of a posterior (MAP): nothing is compared, the point is looked at
    if _kind(a) == _kind(b) == "image":
        return True if a == b and a[2] is not None else None
    return a == b or (a, b) == (LEBESGUE, ATOM)


def _by_slices(a: Measure, b: Measure) -> bool | None:
    """Never sure: which slice is compared with which is not known. False: the one measure fits no slice at all."""
    if _kind(a) == _kind(b):
        return None
    parts = [continuous(x, b) for x in a[1:]] if _kind(a) == "slices" else [continuous(a, x) for x in b[1:]]
    return False if False in parts else None


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    known = set(verdicts)
    return False if False in known else None if None in known else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    known = set(verdicts)
    return True if True in known else None if None in known else False


def _negative(x: Numbers | None) -> Numbers | None:
    return x and Numbers(x.shape, tuple(-v for v in x.values))


def _above(x: Numbers | None, bound: Numbers | None, measure: Measure) -> bool | None:
    """Whether no number of `x` is below `bound`."""
    if bound is not None and all(v == -math.inf for v in bound.values):
        return True
    if x is None or bound is None:
        return None
    values, bounds = x.array(), bound.array()
    finite = [abs(v) for v in (*x.values, *bound.values) if math.isfinite(v)]
    rounding = 0.0 if measure == COUNTING else 1e-6 * max(finite, default=0.0)
    try:
        return bool((values >= bounds - rounding).all())
    except ValueError:  # bounds of different shapes: the value has other axes than the site that it comes from
        return None


def _has_structure(a: Region, b: Region) -> bool | None:
    """Whether all of `a` has the structure of `b`."""
    if b.structure is None:
        return True
    name, *parameters = b.structure
    if a.structure is not None and a.structure[0] == name:
        if None in (*parameters, *a.structure[1:]):
            return None
        return a.structure == b.structure
    rule = {"increasing vectors": _increases, "the l1 ball": _in_l1_ball}.get(name)
    if rule is not None:
        return rule(a, *parameters)
    if name == "multinomial" and a.structure is None and a.low is not None and a.high is not None:
        return False if (a.low.array() != a.high.array()).any() else None
    return None


def _increases(a: Region) -> bool | None:
    if a.structure is not None:
        return False if a.structure[0] == "the l1 ball" else None
    if a.low is None or a.high is None:
        return None
    low, high = np.broadcast_arrays(a.low.array(), a.high.array())
    if low.ndim == 0 or low.shape[-1] == 1:
        return False
    return bool((high[..., :-1] <= low[..., 1:]).all())


def _in_l1_ball(a: Region, size: int) -> bool | None:
    """The farthest corner decides; increasing vectors between two numbers come as near to it as one likes."""
    if a.low is None or a.high is None or (a.structure is not None and a.low.shape + a.high.shape != ()):
        return None
    if a.structure is not None and a.structure[0] != "increasing vectors":
        return None
    corner = np.maximum(np.abs(a.low.array()), np.abs(a.high.array()))
    total = size * corner if corner.ndim == 0 or corner.shape[-1] == 1 else corner.sum(-1)
    return bool((total <= 1 + 1e-6).all())


# --- several sets, and parts of arrays --------------------------------------------------------------------


def union(a: Region, b: Region) -> Region:
    """A set that holds two."""
    if a == b:
        return a
    measure = a.measure if a.measure == b.measure else ("either", *_alternatives(a), *_alternatives(b))
    alike = a.structure == b.structure and a.event_dim == b.event_dim
    structure, event_dim = (a.structure, a.event_dim) if alike else (None, 0)
    low, high = _extreme(np.minimum, a.low, b.low), _extreme(np.maximum, a.high, b.high)
    return Region(measure, low, high, structure, event_dim, exact=False, tight=False)


def _alternatives(a: Region) -> tuple[Measure, ...]:
    return a.measure[1:] if _kind(a.measure) == "either" else (a.measure,)


def _extreme(
    which: Callable[[np.ndarray, np.ndarray], np.ndarray], x: Numbers | None, y: Numbers | None
) -> Numbers | None:
    if x is None or y is None:
        return None
    try:
        return numbers(which(x.array(), y.array()))
    except ValueError:
        return None


def coordinates(region: Region) -> Region | None:
    """The set of single numbers of an array, each with a density of its own; None where they have none."""
    if region.measure not in _PLAIN:
        return None
    low = None if region.low is None else numbers(min(region.low.values))
    high = None if region.high is None else numbers(max(region.high.values))
    loose = region.rank > region.event_dim  # the bounds differ from entry to entry
    return Region(region.measure, low, high, exact=False, tight=region.tight and not loose)


def rearranged(region: Region, shape: tuple[int, ...], move: Callable[[np.ndarray], np.ndarray]) -> Region | None:
    """The set after `move`, a function of NumPy arrays of a given shape that moves, repeats or picks entries."""
    if region.structure is not None:
        return coordinates(region) or image(region)
    low, high = (
        None if x is None else numbers(move(np.broadcast_to(x.array(), shape))) for x in (region.low, region.high)
    )
    return region._replace(low=low, high=high)


def reshaped(region: Region, shape: tuple[int, ...], new: tuple[int, ...]) -> Region:
    """A box in arrays of another shape."""

    def move(x: Numbers | None) -> Numbers | None:
        return x and numbers(np.broadcast_to(x.array(), shape).reshape(new))

    return region._replace(low=move(region.low), high=move(region.high))


def concatenated(regions: Sequence[Region], shapes: Sequence[tuple[int, ...]], axis: int) -> Region:
    """The box of arrays whose slices along an axis lie in boxes of one measure."""

    def joined(every: list[Numbers | None]) -> Numbers | None:
        arrays = [np.broadcast_to(x.array(), shape) for x, shape in zip(every, shapes, strict=True) if x is not None]
        return numbers(np.concatenate(arrays, axis)) if len(arrays) == len(every) else None

    low, high = joined([r.low for r in regions]), joined([r.high for r in regions])
    exact, tight = all(r.exact for r in regions), all(r.tight for r in regions)
    return Region(regions[0].measure, low, high, exact=exact, tight=tight)
