"""The primitive `composite`: several values that are drawn by a program, with one estimated log weight for all.

A composite carries two programs:

    draw    operands -> (values, log_w)        how the values are drawn
    weigh   operands, values -> log_w          what the log weight of given values is

Both may hold sites. What asks for densities (`simulate`, `assess`, `generate`) takes a composite as a whole, as one
equation with several addresses; what only draws (`seed`, `expectation`) sees the sites of `draw`, and no weight.

Not here: what the weights mean (`vipl.gen._source`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vipl import _jax
from vipl._jax import AxisData, ClosedJaxpr, ShapedArray
from vipl._types import Array
from vipl.ir.primitives import Batched, Site, defer_lanes, outside, refuse_derivative, sample_effect


@dataclass(frozen=True, eq=False)
class Composite:
    """Everything about a composite but its arrays.

    Attributes:
      sites: its values: address, shape and dtype of each; without a source. Where they are `scaled`, the last operand
        is the weight of all of them.
      draw: jaxpr, `operands[:num_draw] -> (*values, log_w)`.
      weigh: jaxpr, `(*operands[num_draw:], *values) -> (log_w,)`.
      num_draw: how many operands belong to `draw`.
      where: function, file and line of the user's call.
    """

    sites: tuple[Site, ...]
    draw: ClosedJaxpr
    weigh: ClosedJaxpr
    num_draw: int
    where: str


def _abstract(*_: ShapedArray, composite: Composite) -> list[ShapedArray]:
    return [_jax.drawn_aval(s.shape, s.dtype) for s in composite.sites]


def _batch(
    axis_data: AxisData, values: Sequence[Array], dims: Sequence[int | None], *, composite: Composite
) -> Batched:
    return defer_lanes(lambda *xs: composite_p.bind(*xs, composite=composite), axis_data, values, dims)


composite_p = _jax.define_effectful_primitive(
    "sample_composite",
    effect=sample_effect,
    abstract=_abstract,
    batch=_batch,
    impl=outside,
    refuse_derivative=refuse_derivative,
)
