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
  guards and alarms, `checkpoint` (whose body is to be kept small), and every primitive that is not in the table of
  `vipl.ir.traits`.

Moving trades memory for time: the loop stacks what the rest reads, also where no derivative is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _jax
from vipl._jax import Atom, Eqn, Jaxpr, Params, Var
from vipl._types import Array
from vipl.ir.dataflow import Cut, backward, evaluate, plain, read, walk
from vipl.ir.inline import inline_jits
from vipl.ir.purity import is_pure
from vipl.ir.traits import Move, traits_of

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

    eqns: Sequence[Eqn]
    carry: list[tuple[Var, Atom]]
    steps: Sequence[Var]
    outs: Sequence[Atom]
    level: dict[Var, int]
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
    reads: list[Var]
    stacked: list[Var]
    late: list[int]


def scan(
    jaxpr: Jaxpr, init: Sequence[Array], xs: Sequence[Array], totals: Sequence[bool], options: Params
) -> list[Array]:
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
    n = len(init)
    body = _analyse(jaxpr, n)
    added_up = [v for v, total in zip(body.outs, totals, strict=True) if total]
    split = _split(body, added_up) if options["length"] else None
    if split is None:

        def whole(carry, x):
            outs = walk(jaxpr, [*carry, *x], plain)
            return outs[:n], outs[n:]

        carry, outs = lax.scan(whole, list(init), list(xs), **options)
        return [*carry, *outs]
    constvars, consts, *_ = _jax.parts(jaxpr)
    return _evaluate(body, split, dict(zip(constvars, consts, strict=True)), list(init), xs, options)


# --- what is known of a body --------------------------------------------------------------------------------


def _analyse(jaxpr: Jaxpr, n: int) -> _Body:
    constvars, _, invars, eqns, outvars = _jax.parts(jaxpr)
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


def _levels(eqns: Sequence[Eqn], kinds: list[Move], base: dict[Var, int]) -> tuple[dict[Var, int], set[int]]:
    stays, handed = set(), {v for v, at in base.items() if at == LOOP}

    def visit(i, eqn, levels):
        size = sum(v.aval.size for v in eqn.outvars)
        # A part of an array is handed over, not the array: a history in the carry is as long as the loop.
        picks = kinds[i] == Move.PICKS and any(_is_in(v, handed) and v.aval.size > size for v in eqn.invars)
        if kinds[i] == Move.STAYS or picks:
            stays.add(i)
            handed.update(eqn.outvars)
        return [LOOP if i in stays else max(levels, default=FIXED)] * len(eqn.outvars)

    return evaluate(eqns, base, visit, constant=lambda _: FIXED), stays


def _kind(eqn: Eqn) -> Move:
    """How an equation may be moved; of one that holds a program, the worst in it."""
    if not is_pure(eqn) or any(map(_is_key, [*eqn.invars, *eqn.outvars])):
        return Move.STAYS
    if eqn.primitive is _jax.custom_jvp_call_p:
        inner = inline_jits(eqn.params["call_jaxpr"])  # as that of `jax.nn.relu`, which is a `jit`
        return max(map(_kind, _jax.parts(inner).eqns), default=Move.CHEAP)
    return traits_of(eqn).move


def _is_key(v: Atom) -> bool:
    return jnp.issubdtype(v.aval.dtype, jax.dtypes.extended)


def _has_derivative(eqn: Eqn) -> bool:
    floats = any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
    return floats and not _jax.stops_gradient(eqn)


def _of(level: dict[Var, int], v: Atom) -> int:
    return FIXED if isinstance(v, _jax.Literal) else level[v]


def _is_in(v: Atom, some: Container[Var]) -> TypeGuard[Var]:
    return not isinstance(v, _jax.Literal) and v in some


# --- the split ----------------------------------------------------------------------------------------------


def _split(body: _Body, totals: list[Atom]) -> _Split | None:
    """Decides what goes where; None where nothing can be moved."""
    level = body.level
    carried = [i for i, (before, _) in enumerate(body.carry) if level[before] == LOOP]
    roots = _roots(body, carried)
    moved = _move(body, totals, roots)
    if moved is None:
        return None
    after, kept = moved
    stacked = [v for v in dict.fromkeys([*after.ends, *kept]) if level[v] == LOOP]
    late = _late(body, carried, stacked)
    stacked = [v for v in stacked if v not in {body.carry[i][0] for i in late}]
    known = [body.carry[i][1] for i in sum(body.rounds, [])]
    before = [v for v in [*after.ends, *known, *body.outs] if _of(level, v) < LOOP]
    ahead = backward(body.eqns, before).numbers
    loop = backward(body.eqns, [*roots, *stacked], lambda i, v: i not in ahead or _grows(body.eqns[i], v))
    reads = [v for v in loop.ends if level[v] == AHEAD]
    return _Split(ahead, loop.numbers | body.stays, after.numbers, carried, reads, stacked, late)


def _roots(body: _Body, carried: list[int]) -> list[Atom]:
    """What the loop makes, whatever is moved: the carries, and the results of the equations that stay."""
    staying = [body.eqns[i] for i in sorted(body.stays)]
    roots = [body.carry[i][1] for i in carried]
    return roots + [v for eqn in staying for v in eqn.outvars or eqn.invars]  # a print makes nothing


def _move(body: _Body, totals: list[Atom], roots: list[Atom]) -> tuple[Cut, list[Var]] | None:
    """What is evaluated after the loop that makes `roots`, and the outs that the loop computes; None: nothing is."""
    level = body.level
    kept: list[Var] = []
    while True:
        later = _later(body, [*roots, *kept])
        after = backward(body.eqns, totals, later)
        if not after.numbers and not any(i is not None and level[v] < LOOP for v, i in after.ends.items()):
            return None
        new = []
        for v in body.outs:
            if _is_in(v, level) and level[v] == LOOP and v not in kept:
                more = backward(body.eqns, [v], later)
                if sum(u.aval.size for u in more.ends if level[u] == LOOP and u not in after.ends) <= v.aval.size:
                    after = Cut(after.numbers | more.numbers, after.ends | more.ends)
                else:
                    new.append(v)
        if not new:
            return after, kept
        kept += new


def _late(body: _Body, carried: list[int], stacked: list[Var]) -> list[int]:
    """The carries that are stacked before and after a step; none of them is made of another."""
    late: list[int] = []
    for i in carried:
        others = [v for j in late for v in body.carry[j]]
        if all(_is_in(v, stacked) and v not in others for v in body.carry[i]):
            late.append(i)
    return late


def _later(body: _Body, roots: list[Atom]) -> Callable[[int, Var], bool]:
    """Says of a variable whether its equation is evaluated after the loop that makes `roots`, or is read from it."""
    level, eqns = body.level, body.eqns
    loop = backward(eqns, roots, lambda _, v: level[v] == LOOP).numbers
    slope = backward(eqns, roots, lambda i, v: level[v] == LOOP and _has_derivative(eqns[i])).numbers
    outs = {v for v in [*body.outs, *(after for _, after in body.carry)] if not isinstance(v, _jax.Literal)}

    def later(i, v):
        if level[v] < LOOP:
            return False
        if i not in loop:
            return True
        cheap = v not in outs and _kind(eqns[i]) == Move.CHEAP
        return _has_derivative(eqns[i]) and (i not in slope or cheap)

    return later


def _grows(eqn: Eqn, v: Atom) -> bool:
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

    def __init__(self, body: _Body, fixed: dict[Var, Array], stacks: dict[Var, Array], options: Params):
        self.body, self.fixed, self.stacks, self.options = body, fixed, stacks, options

    def select(self, numbers: set[int]) -> list[Eqn]:
        """The equations with these numbers, in order."""
        return [self.body.eqns[i] for i in sorted(numbers)]

    def evaluate(self, numbers: set[int]) -> None:
        """Evaluates equations for all steps."""
        eqns = self.select(numbers)
        made = [v for eqn in eqns for v in eqn.outvars]
        known = list(dict.fromkeys(v for eqn in eqns for v in eqn.invars if _is_in(v, self.stacks)))

        def step(values):
            return read(evaluate(eqns, self.fixed | dict(zip(known, values, strict=True)), plain), made)

        if eqns:
            values = [self.stacks[v] for v in known]
            stacks = jax.vmap(step, axis_size=self.options["length"])(values)
            self.stacks |= dict(zip(made, stacks, strict=True))

    def of(self, v: Atom) -> Array:
        """[length, ...], the values of a variable or literal."""
        if _is_in(v, self.stacks):
            return self.stacks[v]
        (x,) = read(self.fixed, [v])
        return jnp.broadcast_to(x, (self.options["length"], *jnp.shape(x)))

    def delay(self, number: int, first: Array) -> Array:
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
    body: _Body, split: _Split, consts: dict[Var, Array], init: list[Array], xs: Sequence[Array], options: Params
) -> list[Array]:
    fixed = consts | {v: x for (v, _), x in zip(body.carry, init, strict=True) if body.level[v] == FIXED}
    steps = _Steps(body, fixed, dict(zip(body.steps, xs, strict=True)), options)
    constant = {i for i in split.ahead if body.level[body.eqns[i].outvars[0]] == FIXED}
    steps.fixed = evaluate(steps.select(constant), fixed, plain)
    last, done = dict(enumerate(init)), constant
    for known in body.rounds:
        made = [body.carry[i][1] for i in known]
        now = backward(body.eqns, made, lambda _, v: not _is_in(v, steps.stacks)).numbers
        steps.evaluate(now - constant)
        done = done | now
        last |= {i: steps.delay(i, init[i]) for i in known}
    steps.evaluate(split.ahead - done)
    last |= _loop(steps, split, init)
    for i in split.late:
        steps.delay(i, init[i])
    steps.evaluate(split.after)
    return [*(last[i] for i in range(len(init))), *map(steps.of, body.outs)]


def _loop(steps: _Steps, split: _Split, init: list[Array]) -> dict[int, Array]:
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
