"""Scan fission: a loop keeps what has to be done step by step; the rest is done for all steps at once.

Let a scan's body be  (c, x) -> (c', y, l)  with the carry c, and totals l that are added up over the steps. Its
equations are split in three:

    ahead    what the xs and constants alone decide, as far as the other two need it: one `vmap` before the loop
    loop     what c' needs; every equation that is not known to be safe to move; and what these need
    after    what only l needs: one `vmap` after the loop, from the values of the loop that it reads

Invariant: carry, ys and totals are those of the scan, and so are their derivatives; an equation is evaluated for the
same steps, with the same operands, as in the scan.

- A carry whose next value is known ahead (the choices of an assessed chain) is no loop: it is that value, one step
  later. A loop of which nothing remains is not made.
- What the loop hands over is the carry, the results of equations that stay, and, where the loop computes them
  anyway, values without derivative (so that what is scored is, bit for bit, what was drawn), results of costly
  equations, and outputs. Other numbers are computed again: cheaper than a derivative that goes through the loop.
- A ys is moved, too, where that hands over no more numbers than it has itself.
- What stays: effects, sites, keys and random numbers, control flow (the `vmap` of a `cond` takes all its branches),
  guards and alarms, `checkpoint` (whose body is to be kept small), and every primitive that `_jax` does not list.

Moving trades memory for time: the loop stacks what the rest reads, also where no derivative is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _jax
from vipl.ir.dataflow import evaluate, follow_back, plain, read, walk
from vipl.ir.inline import inline_jits
from vipl.ir.purity import is_pure

FIXED, AHEAD, LOOP = range(3)  # the levels of a variable: equal in all steps; known before the loop; made by it


class _Body(NamedTuple):
    """The body of a scan.

    Attributes:
      eqns: its equations.
      carry: variables of the carry, before and after a step.
      steps: variables of the xs.
      outs: what is stacked.
      level: variable -> its level.
      stays: numbers of the equations that are not moved.
      rounds: numbers of the carries that are known ahead; those of a round need those of the rounds before.
    """

    eqns: Sequence[Any]
    carry: list[tuple[Any, Any]]
    steps: Sequence[Any]
    outs: Sequence[Any]
    level: dict[Any, int]
    stays: set[int]
    rounds: list[list[int]]


class _Split(NamedTuple):
    """Which equations are evaluated where, by their numbers, and what goes from one part to the next.

    Attributes:
      ahead: before the loop.
      loop: in it.
      after: after it.
      carried: numbers of the carries that the loop keeps.
      reads: variables with a value for each step that the loop is given.
      stacked: variables that it hands over.
      late: variables of a carry that are handed over as the stacked variables one step earlier.
    """

    ahead: set[int]
    loop: set[int]
    after: set[int]
    carried: list[int]
    reads: list[Any]
    stacked: list[Any]
    late: list[int]


def scan(
    jaxpr: Any, init: Sequence[Any], xs: Sequence[Any], totals: Sequence[bool], options: dict[str, Any]
) -> list[Any]:
    """Evaluates a scan, split where it has totals that can be moved.

    Args:
      jaxpr: the body, `(*carry, *x) -> (*carry, *outs)`.
      init: the carry before the first step.
      xs: [length, ...] each.
      totals: for each of the outs, whether it is only added up.
      options: keyword arguments of `lax.scan`.

    Returns:
      The carry after the last step, and the outs, stacked.
    """
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    n = len(init)
    body = _analyse(constvars, invars, eqns, outvars, n)
    split = (
        _split(body, [v for v, total in zip(body.outs, totals, strict=True) if total]) if options["length"] else None
    )
    fixed = dict(zip(constvars, consts, strict=True))
    if split is None:

        def whole(carry, x):
            outs = walk(jaxpr, [*carry, *x], plain)
            return outs[:n], outs[n:]

        carry, outs = lax.scan(whole, list(init), list(xs), **options)
        return [*carry, *outs]
    return _evaluate(body, split, fixed, list(init), xs, options)


# --- what is known of a body --------------------------------------------------------------------------------


def _analyse(constvars: Any, invars: Any, eqns: Any, outvars: Any, n: int) -> _Body:
    carry = list(zip(invars[:n], outvars[:n], strict=True))
    kinds = [_kind(eqn) for eqn in eqns]
    base = dict.fromkeys(constvars, FIXED) | dict.fromkeys(invars[n:], AHEAD)
    base |= {before: FIXED if before is after else LOOP for before, after in carry}
    rounds: list[list[int]] = []
    while True:
        level, stays = _levels(eqns, kinds, base)
        known = [i for i, (a, b) in enumerate(carry) if base[a] == LOOP and _of(level, b) < LOOP and not _is_key(a)]
        if not known:
            return _Body(eqns, carry, invars[n:], outvars[n:], level, stays, rounds)
        rounds.append(known)
        base |= {carry[i][0]: AHEAD for i in known}


def _levels(eqns: Any, kinds: list[int], base: dict[Any, int]) -> tuple[dict[Any, int], set[int]]:
    stays, handed = set(), {v for v, at in base.items() if at == LOOP}

    def visit(i, eqn, levels):
        size = sum(v.aval.size for v in eqn.outvars)
        # A part of an array is handed over, not the array: a history in the carry is as long as the loop.
        picks = kinds[i] == _jax.PICKS and any(_has(handed, v) and v.aval.size > size for v in eqn.invars)
        if kinds[i] == _jax.STAYS or picks:
            stays.add(i)
            handed.update(eqn.outvars)
        return [LOOP if i in stays else max(levels, default=FIXED)] * len(eqn.outvars)

    return evaluate(eqns, base, visit, constant=lambda _: FIXED), stays


def _kind(eqn: Any) -> int:
    """How an equation may be moved; of one that holds a program, the worst in it."""
    if not is_pure(eqn) or any(map(_is_key, [*eqn.invars, *eqn.outvars])):
        return _jax.STAYS
    if eqn.primitive is _jax.custom_jvp_call_p:
        inner = inline_jits(eqn.params["call_jaxpr"])  # as that of `jax.nn.relu`, which is a `jit`
        return max(map(_kind, _jax.parts(inner).eqns), default=_jax.CHEAP)
    return _jax.MOVES.get(eqn.primitive.name, _jax.STAYS)


def _is_key(v: Any) -> bool:
    return jnp.issubdtype(v.aval.dtype, jax.dtypes.extended)


def _has_derivative(eqn: Any) -> bool:
    floats = any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
    return floats and not _jax.stops_gradient(eqn)


def _of(level: dict[Any, int], v: Any) -> int:
    return FIXED if isinstance(v, _jax.Literal) else level[v]


def _has(some: Any, v: Any) -> bool:
    return not isinstance(v, _jax.Literal) and v in some


# --- the split ----------------------------------------------------------------------------------------------


def _split(body: _Body, totals: list[Any]) -> _Split | None:
    """Decides what goes where; None where nothing can be moved."""
    level = body.level
    carried = [i for i, (before, _) in enumerate(body.carry) if level[before] == LOOP]
    roots = _roots(body, carried)
    moved = _move(body, totals, roots)
    if moved is None:
        return None
    after, read_after, kept = moved
    stacked = [v for v in dict.fromkeys([*read_after, *kept]) if level[v] == LOOP]
    late = _late(body, carried, stacked)
    stacked = [v for v in stacked if v not in {body.carry[i][0] for i in late}]
    known = [body.carry[i][1] for i in sum(body.rounds, [])]
    before = [v for v in [*read_after, *known, *body.outs] if _of(level, v) < LOOP]
    ahead, _ = follow_back(body.eqns, before)
    loop, ends = follow_back(body.eqns, [*roots, *stacked], lambda i, v: i not in ahead or _grows(body.eqns[i], v))
    return _Split(ahead, loop | body.stays, after, carried, [v for v in ends if level[v] == AHEAD], stacked, late)


def _roots(body: _Body, carried: list[int]) -> list[Any]:
    """What the loop makes, whatever is moved: the carries, and the results of the equations that stay."""
    staying = [body.eqns[i] for i in sorted(body.stays)]
    roots = [body.carry[i][1] for i in carried]
    return roots + [v for eqn in staying for v in eqn.outvars or eqn.invars]  # a print makes nothing


def _move(body: _Body, totals: list[Any], roots: list[Any]) -> tuple[set[int], dict[Any, Any], list[Any]] | None:
    """What is evaluated after the loop that makes `roots`, what that reads, and the outs that the loop computes."""
    level, kept = body.level, []
    while True:
        later = _later(body, [*roots, *kept])
        after, ends = follow_back(body.eqns, totals, later)
        if not after and not any(i is not None and level[v] < LOOP for v, i in ends.items()):
            return None
        new = []
        for v in body.outs:
            if _of(level, v) == LOOP and v not in kept:
                more, more_ends = follow_back(body.eqns, [v], later)
                if sum(u.aval.size for u in more_ends if level[u] == LOOP and u not in ends) <= v.aval.size:
                    after, ends = after | more, ends | more_ends
                else:
                    new.append(v)
        if not new:
            return after, ends, kept
        kept += new


def _late(body: _Body, carried: list[int], stacked: list[Any]) -> list[int]:
    """The carries that are stacked before and after a step; none of them is made of another."""
    late: list[int] = []
    for i in carried:
        others = [v for j in late for v in body.carry[j]]
        if all(_has(stacked, v) and v not in others for v in body.carry[i]):
            late.append(i)
    return late


def _later(body: _Body, roots: list[Any]) -> Callable[[int, Any], bool]:
    """Says of a variable whether its equation is evaluated after the loop that makes `roots`, or is read from it."""
    level, eqns = body.level, body.eqns
    loop, _ = follow_back(eqns, roots, lambda _, v: level[v] == LOOP)
    slope, _ = follow_back(eqns, roots, lambda i, v: level[v] == LOOP and _has_derivative(eqns[i]))
    outs = {v for v in [*body.outs, *(after for _, after in body.carry)] if not isinstance(v, _jax.Literal)}

    def later(i, v):
        if level[v] < LOOP:
            return False
        if i not in loop:
            return True
        cheap = v not in outs and _kind(eqns[i]) == _jax.CHEAP
        return _has_derivative(eqns[i]) and (i not in slope or cheap)

    return later


def _grows(eqn: Any, v: Any) -> bool:
    """Whether a variable has more numbers than what it is made of: it is then not stacked to be read by the loop."""
    inputs = [u.aval.size for u in eqn.invars if not isinstance(u, _jax.Literal)]
    return v.aval.size > max(inputs, default=0)


# --- evaluation ---------------------------------------------------------------------------------------------


class _Steps:
    """Values of variables for all steps at once.

    Attributes:
      body: of the scan.
      fixed: variable -> its value in every step.
      stacks: variable -> [length, ...], its values.
      options: of the scan.
    """

    def __init__(self, body: _Body, fixed: dict[Any, Any], stacks: dict[Any, Any], options: dict[str, Any]):
        self.body, self.fixed, self.stacks, self.options = body, fixed, stacks, options

    def select(self, numbers: set[int]) -> list[Any]:
        """The equations with these numbers, in order."""
        return [self.body.eqns[i] for i in sorted(numbers)]

    def evaluate(self, numbers: set[int]) -> None:
        """Evaluates equations for all steps."""
        eqns = self.select(numbers)
        made = [v for eqn in eqns for v in eqn.outvars]
        known = list(dict.fromkeys(v for eqn in eqns for v in eqn.invars if _has(self.stacks, v)))

        def step(values):
            return read(evaluate(eqns, self.fixed | dict(zip(known, values, strict=True)), plain), made)

        if eqns:
            values = [self.stacks[v] for v in known]
            stacks = jax.vmap(step, axis_size=self.options["length"])(values)
            self.stacks |= dict(zip(made, stacks, strict=True))

    def of(self, v: Any) -> Any:
        """[length, ...], the values of a variable or literal."""
        if _has(self.stacks, v):
            return self.stacks[v]
        (x,) = read(self.fixed, [v])
        return jnp.broadcast_to(x, (self.options["length"], *jnp.shape(x)))

    def delay(self, number: int, first: Any) -> Any:
        """Makes a carry before each step from that after each step, and returns that after the last."""
        before, after = self.body.carry[number]
        stack = self.of(after)
        first = jnp.expand_dims(jnp.asarray(first, stack.dtype), 0)
        if self.options["reverse"]:
            both = jnp.concatenate([stack, first])
            self.stacks[before] = both[1:]
            return both[0]
        both = jnp.concatenate([first, stack])
        self.stacks[before] = both[:-1]
        return both[-1]


def _evaluate(
    body: _Body, split: _Split, consts: dict[Any, Any], init: list[Any], xs: Sequence[Any], options: dict[str, Any]
) -> list[Any]:
    fixed = consts | {v: x for (v, _), x in zip(body.carry, init, strict=True) if body.level[v] == FIXED}
    steps = _Steps(body, fixed, dict(zip(body.steps, xs, strict=True)), options)
    constant = {i for i in split.ahead if body.level[body.eqns[i].outvars[0]] == FIXED}
    steps.fixed = evaluate(steps.select(constant), fixed, plain)
    last, done = dict(enumerate(init)), constant
    for known in body.rounds:
        made = [body.carry[i][1] for i in known]
        now, _ = follow_back(body.eqns, made, lambda _, v: not _has(steps.stacks, v))
        steps.evaluate(now - constant)
        done = done | now
        last |= {i: steps.delay(i, init[i]) for i in known}
    steps.evaluate(split.ahead - done)
    last |= _loop(steps, split, init)
    for i in split.late:
        steps.delay(i, init[i])
    steps.evaluate(split.after)
    return [*(last[i] for i in range(len(init))), *map(steps.of, body.outs)]


def _loop(steps: _Steps, split: _Split, init: list[Any]) -> dict[int, Any]:
    """Runs what is left of the loop: adds what it hands over to `steps`, and returns its carries after the last."""
    carry = [steps.body.carry[i] for i in split.carried]
    eqns = steps.select(split.loop)

    def step(values, x):
        env = steps.fixed | dict(zip([before for before, _ in carry], values, strict=True))
        env = evaluate(eqns, env | dict(zip(split.reads, x, strict=True)), plain)
        return read(env, [after for _, after in carry]), read(env, split.stacked)

    if not eqns and not split.stacked:
        return {}
    xs = [steps.stacks[v] for v in split.reads]
    last, stacks = lax.scan(step, [init[i] for i in split.carried], xs, **steps.options)
    steps.stacks |= dict(zip(split.stacked, stacks, strict=True))
    return dict(zip(split.carried, last, strict=True))
