"""Programs whose steps hang together by one unknown value alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vipl import _jax
from vipl._jax import Jaxpr
from vipl._types import Array, Float, PyTree
from vipl.errors import ProgramError
from vipl.gen import Source
from vipl.gen._choices import Choices
from vipl.gen._weighing import Given, weighing
from vipl.inference._algorithms import require_exact
from vipl.inference._smc import parts_of, steps_of
from vipl.interpret.interpreter import run, run_equations
from vipl.ir.dataflow import read, walk
from vipl.ir.primitives import Path, sample_p
from vipl.ir.sites import SiteInfo


@dataclass(frozen=True)
class Chain:
    """A program as a chain.

    Attributes:
      info: of the unknown site.
      first: the carry before the first step, and the log weight of what came before it.
      step: (carry, inputs, value) -> (carry, log density of the step at that value).
      inputs: xs and known values, over the steps in the order of execution.
      reverse: whether that is the reverse of the order of the choices.
    """

    info: SiteInfo
    first: tuple[list[Array], Float[Array, ""]]
    step: Callable[[list[Array], PyTree, Array], tuple[list[Array], Float[Array, ""]]]
    inputs: PyTree
    reverse: bool


def chain_of(program: Source, known: Choices, who: str) -> Chain:
    """Takes a program apart at its scan, and its steps at their unknown site; raises where it is not a chain."""
    require_exact(program, who)
    parts = parts_of(program, known)
    unknown = parts.in_steps
    if len(unknown) != 1 or len(parts.unknown) != 1:
        raise not_a_chain(parts.name, f"{len(unknown)} unknown sites in a step, {len(parts.unknown)} in all")
    info = unknown[0]
    if len(info.loops) != 1:
        raise not_a_chain(parts.name, "an unknown site in a loop of its own in each step")
    steps = steps_of(parts)
    num_carry = len(steps.carry)
    _check_markov(steps.body, info.path[1:], len(steps.fixed), num_carry, parts.name)
    given = {path: {"known": x} for path, x in parts.known.items()}
    start = run_equations(steps.before, steps.env, _interpreter, given)
    carry = read(start.value, steps.carry)
    step_given = {path: x for path, x in given.items() if path[0] == parts.at}

    def step(carry, inputs, value):
        x, step_given = inputs
        site_inputs = step_given | {info.path: {"known": value.astype(info.site.dtype)}}
        out = run(steps.body, [*steps.fixed, *carry, *x], _interpreter, site_inputs, (parts.at,))
        return out.value[:num_carry], out.totals.get("log_w", jnp.zeros(()))

    reverse = steps.options.get("reverse", False)
    inputs = (steps.xs, step_given)
    inputs = jax.tree.map(lambda x: x[::-1], inputs) if reverse else inputs
    log_w = start.totals.get("log_w", jnp.zeros(()))
    return Chain(info, (carry, log_w), step, inputs, reverse)


def _check_markov(body: Jaxpr, at: Path, num_consts: int, num_carry: int, name: str) -> None:
    """Raises where the carry that leaves a step depends on the one that enters by more than the unknown value.

    A part of the carry that depends on itself and known things alone, such as a counter, is the same for all values.
    What a known site returns is known, such as the datum of the step before in an autoregression.
    """
    _, _, invars, eqns, _ = _jax.parts(body)
    state = num_carry  # the unknown value counts as one more source
    site, *inside = at
    if inside:
        raise not_a_chain(name, "an unknown site inside another construct in the step")

    def visit(_, eqn, sources):
        if eqn.primitive is sample_p:
            return [{state} if eqn is eqns[site] else set()]
        return [set().union(*sources)] * len(eqn.outvars)

    entering = [{i - num_consts} if 0 <= i - num_consts < num_carry else set() for i in range(len(invars))]
    leaving = walk(body, entering, visit, constant=lambda _: set())[:num_carry]
    # what may differ from value to value, from the state on
    differs = {i for i, sources in enumerate(leaving) if state in sources}
    while True:
        more = {i for i, sources in enumerate(leaving) if sources & differs} | differs
        if more == differs:
            break
        differs = more
    if any(leaving[i] & differs for i in differs):
        raise not_a_chain(name, "a carry that depends on earlier steps by more than the unknown value of this one")


def not_a_chain(name: str, got: str) -> ProgramError:
    """The error of a program whose steps hang together otherwise."""
    return ProgramError(
        "a program is not a chain.",
        at=name,
        got=got,
        expected="one lax.scan with one unknown site in each step, whose value alone is carried on",
        fix="carry the state, and nothing computed from earlier states; or use SMC(...), or Enumeration()",
    )


_interpreter = weighing(lambda _, given: Given(given["known"]), emit=None, name="the algorithm")
