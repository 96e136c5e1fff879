"""Sums inside loops, branches and checkpoints, taken out of them.

    scan          c' = c + a - b: the steps' a and b are added up after the loop;  y = a - b: so are the stacked
    cond, remat   a - b: it returns a and b

Integers that are stacked and then made floats, as draws of a loop that is written out are, are made floats first.

So the terms can be told apart, where some of them hold a value by `stop_gradient` and others do not. Of numbers that a
scan adds up in its carry (`numbers_alone`), so can the steps. Invariant: the same values, up to the order in which they
are added.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vipl import _jax
from vipl._jax import Atom, ClosedJaxpr, Eqn, Jaxpr, Literal, Params, ScanParts, Var
from vipl._types import Array
from vipl.ir.dataflow import evaluate, maker, plain, read, walk
from vipl.ir.primitives import lanes_p, sample_p
from vipl.ir.traits import traits_of

J = TypeVar("J", bound=Jaxpr)

Terms = list[tuple[int, Atom]]
"""The terms of a sum: pairs of a sign and a variable."""

Signed = list[tuple[int, Array]]
"""The same with values."""


def summed_after(jaxpr: J, numbers_alone: bool = False) -> J | ClosedJaxpr:
    """The same program without such sums; or without those of numbers in the carry of a scan alone."""
    if not _any(jaxpr, numbers_alone):
        return jaxpr
    avals = [v.aval for v in _jax.parts(jaxpr).invars]
    return jax.make_jaxpr(lambda *args: walk(jaxpr, args, functools.partial(_visit, numbers_alone)))(*avals)


_STACKS = ("stack", "concatenate", "broadcast_in_dim", "reshape", "squeeze")


def floats_stacked(jaxpr: Jaxpr) -> ClosedJaxpr:
    """The same program, in which integers that are stacked and then made floats are made floats first."""
    constvars, consts, _, eqns, _ = _jax.parts(jaxpr)
    made_by = maker(eqns)
    values: dict[Var, Array] = dict(zip(constvars, consts, strict=True))

    def made_float(v: Atom, dtype: DTypeLike) -> Array:
        e = made_by(v)
        if e is None or e.primitive.name not in _STACKS:
            return jax.lax.convert_element_type(read(values, [v])[0], dtype)
        with _jax.eqn_context(e):
            return _jax.rebind(e, [made_float(x, dtype) for x in e.invars])[0]

    def visit(i: int, eqn: Eqn, operands: list[Array]) -> Sequence[Array]:
        if eqn.primitive.name == "convert_element_type" and _is_float(eqn.outvars[0]) and not _is_float(eqn.invars[0]):
            outs = [made_float(eqn.invars[0], eqn.params["new_dtype"])]
        else:
            outs = plain(i, eqn, operands)
        values.update(zip(eqn.outvars, outs, strict=True))
        return outs

    return jax.make_jaxpr(lambda: walk(jaxpr, [], visit))()


def _any(jaxpr: Jaxpr, numbers_alone: bool) -> bool:
    return any(_in_sight(eqn, numbers_alone) for eqn in _jax.parts(jaxpr).eqns)


def _inside(eqn: Eqn) -> Sequence[Jaxpr]:
    """The programs in an equation that are looked into."""
    if eqn.primitive is _jax.cond_p and "branches_platforms" not in eqn.params:
        return eqn.params["branches"]
    known = eqn.primitive in (_jax.scan_p, _jax.remat_p, lanes_p)
    return (eqn.params["jaxpr"],) if known else ()


def _in_sight(eqn: Eqn, numbers_alone: bool) -> bool:
    inside = _inside(eqn)
    if any(_any(jaxpr, numbers_alone) for jaxpr in inside):
        return True
    num_carry = 0
    if eqn.primitive is _jax.scan_p:
        num_carry = _jax.scan_parts(eqn.params).num_carry
        if _sums(eqn.params, numbers_alone):
            return True
    return any(len(t) > 1 for jaxpr in inside for t in _outputs(jaxpr, numbers_alone)[num_carry:])


def _visit(numbers_alone: bool, i: int, eqn: Eqn, values: list[Array]) -> Sequence[Array]:
    if not _in_sight(eqn, numbers_alone):
        return plain(i, eqn, values)
    inside = [summed_after(jaxpr, numbers_alone) for jaxpr in _inside(eqn)]
    with _jax.eqn_context(eqn):
        if eqn.primitive is _jax.scan_p:
            return _scan(eqn.params | {"jaxpr": inside[0]}, values, numbers_alone)
        return _branches(eqn, inside, values, numbers_alone)


def _branches(eqn: Eqn, branches: Sequence[Jaxpr], values: list[Array], numbers_alone: bool) -> list[Array]:
    """Of a `cond`, of lanes or of a checkpoint."""
    terms = [_outputs(b, numbers_alone) for b in branches]
    longest = [max(map(len, each)) for each in zip(*terms, strict=True)]
    avals = [v.aval for v in _jax.parts(branches[0]).outvars]

    def part(jaxpr, mine, *operands):
        outs = []
        for pairs, n, aval in zip(_values(jaxpr, operands, mine), longest, avals, strict=True):
            signed = [x if sign > 0 else -x for sign, x in pairs]
            outs.append([*signed, *[jnp.zeros(aval.shape, aval.dtype)] * (n - len(pairs))])
        return outs

    parts = [functools.partial(part, b, mine) for b, mine in zip(branches, terms, strict=True)]
    if eqn.primitive is _jax.cond_p:
        outs = jax.lax.switch(values[0], parts, *values[1:])
    elif eqn.primitive is _jax.remat_p:
        outs = jax.checkpoint(parts[0], **_jax.remat_options(eqn.params))(*values)
    else:
        jaxpr, shape = jax.make_jaxpr(parts[0], return_shape=True)(*(v.aval for v in _jax.parts(branches[0]).invars))
        outs = jax.tree.unflatten(jax.tree.structure(shape), lanes_p.bind(*values, **eqn.params | {"jaxpr": jaxpr}))
    return [functools.reduce(jnp.add, each) for each in outs]


def _values(jaxpr: Jaxpr, operands: Sequence[Array], outs: Sequence[Terms]) -> list[Signed]:
    """The terms of a program's outputs, with their values."""
    constvars, consts, invars, eqns, _ = _jax.parts(jaxpr)
    env = evaluate(eqns, dict(zip([*constvars, *invars], [*consts, *operands], strict=True)), plain)
    return [[(sign, read(env, [v])[0]) for sign, v in pairs] for pairs in outs]


class Sum(NamedTuple):
    """A carry to which terms are added in each step, and that nothing else reads but records (`vipl.deterministic`).

    Attributes:
      terms: pairs of a sign and a variable of the body.
      eqns: the numbers of the equations that add to the carry, where it is not recorded.
      recorded: whether it is.
    """

    terms: Terms
    eqns: frozenset[int]
    recorded: bool


def _scan(params: Params, values: list[Array], numbers_alone: bool) -> list[Array]:
    scan, sums = _jax.scan_parts(params), _sums(params, numbers_alone)
    kept = [k for k in range(scan.num_carry) if k not in sums or sums[k].recorded]
    consts, init, xs = scan.operands(values)
    stacked = _outputs(scan.jaxpr, numbers_alone)[scan.num_carry :]
    body = _body_without(scan, sums, kept, consts, [*(s.terms for s in sums.values()), *stacked])
    carry, steps = jax.lax.scan(body, [init[k] for k in kept], xs, **scan.options)
    after = dict(zip(kept, carry, strict=True))
    for (k, s), terms in zip(sums.items(), steps, strict=False):
        totals = [jnp.sum(x, axis=0) for x in terms]
        after[k] = _added([(1, init[k]), *_signed(s.terms, totals)])
    ys = [_added(_signed(pairs, terms)) for pairs, terms in zip(stacked, steps[len(sums) :], strict=True)]
    return [*(after[k] for k in range(scan.num_carry)), *ys]


def _body_without(
    scan: ScanParts, sums: Mapping[int, Sum], kept: Sequence[int], consts: Sequence[Array], terms: Sequence[Terms]
) -> Callable[[list[Array], list[Array]], tuple[list[Array], list[list[Array]]]]:
    """The body of a scan without its sums: (kept carries, x) -> (kept carries, the values of terms)."""
    constvars, inner, invars, eqns, outvars = _jax.parts(scan.jaxpr)
    dropped = frozenset().union(*(s.eqns for s in sums.values()))
    rest = [e for k, e in enumerate(eqns) if k not in dropped]
    const_vars, carry_vars, x_vars = scan.operands(list(invars))
    known = dict(zip([*constvars, *const_vars], [*inner, *consts], strict=True))

    def body(carry, x):
        env = known | dict(zip([*(carry_vars[k] for k in kept), *x_vars], [*carry, *x], strict=True))
        env = evaluate(rest, env, plain)
        return read(env, [outvars[k] for k in kept]), [read(env, [v for _, v in pairs]) for pairs in terms]

    return body


def _signed(terms: Terms, values: Sequence[Array]) -> Signed:
    return [(sign, x) for (sign, _), x in zip(terms, values, strict=True)]


def _added(terms: Signed) -> Array:
    (sign, total), *rest = terms
    total = total if sign > 0 else -total
    for sign, x in rest:
        total = total + x if sign > 0 else total - x
    return total


def _sums(params: Params, numbers_alone: bool) -> dict[int, Sum]:
    """The carries of a scan that are sums, by number. Arrays would be stacked for all steps: numbers can be alone."""
    scan = _jax.scan_parts(params)
    _, _, invars, _, outvars = _jax.parts(scan.jaxpr)
    follower = _Follower.of(scan.jaxpr)
    _, carry, _ = scan.operands(list(invars))
    floats = {k: v for k, v in enumerate(carry) if _is_float(outvars[k]) and not (numbers_alone and v.aval.shape)}
    ends = {k: follower.follow(v, outvars[k]) for k, v in floats.items()}
    return {k: found for k, found in ends.items() if found is not None}


class _Follower(NamedTuple):
    """Follows a variable of a program forwards.

    Attributes:
      eqns: the program's.
      outvars: its outputs.
      readers: variable -> the numbers of the equations that read it, but for sites whose values nothing reads.
      recorded: the variables that such sites read, as records do.
      made_by: variable -> the equation that makes it, if any.
    """

    eqns: Sequence[Eqn]
    outvars: Sequence[Atom]
    readers: dict[Var, list[int]]
    recorded: set[Var]
    made_by: Callable[[Atom], Eqn | None]

    @classmethod
    def of(cls, jaxpr: Jaxpr) -> _Follower:
        """Looks at a program."""
        _, _, _, eqns, outvars = _jax.parts(jaxpr)
        everything = [v for e in eqns for v in e.invars] + list(outvars)
        needed = {v for v in everything if not isinstance(v, Literal)}
        readers: dict[Var, list[int]] = {}
        recorded: set[Var] = set()
        for i, e in enumerate(eqns):
            is_record = e.primitive is sample_p and needed.isdisjoint(e.outvars)
            for v in e.invars:
                if isinstance(v, Literal):
                    continue
                if is_record:
                    recorded.add(v)
                else:
                    readers.setdefault(v, []).append(i)
        return cls(eqns, outvars, readers, recorded, maker(eqns))

    def follow(self, v: Var, end: Atom) -> Sum | None:
        """What is added to a variable on its way to `end`; None where nothing is, or something else reads it."""
        terms: Terms = []
        used: set[int] = set()
        recorded = v in self.recorded
        while v is not end:
            step = self._step(v)
            if step is None:
                return None
            number, more, v = step
            used.add(number)
            terms += more
            recorded = recorded or v in self.recorded
        alone = v not in self.readers and sum(v is out for out in self.outvars) == 1
        return Sum(terms, frozenset() if recorded else frozenset(used), recorded) if terms and alone else None

    def _step(self, v: Var) -> tuple[int, Terms, Var] | None:
        """The only equation that reads a variable, what it adds to it, and its result; None where it does not add."""
        if len(self.readers.get(v, ())) != 1 or any(v is out for out in self.outvars):
            return None
        (number,) = self.readers[v]
        e = self.eqns[number]
        if _is_identity(e):
            return number, [], e.outvars[0]
        pairs = list(zip(traits_of(e).signs, e.invars, strict=False))
        if (1, v) not in pairs or len(pairs) != 2:
            return None
        pairs.remove((1, v))
        ((sign, other),) = pairs
        return number, _terms(sign, other, self.made_by), e.outvars[0]


def _outputs(jaxpr: Jaxpr, whole: bool) -> list[Terms]:
    """What a program returns, each as a sum, or whole."""
    _, _, _, eqns, outvars = _jax.parts(jaxpr)
    if whole:
        return [[(1, v)] for v in outvars]
    made_by = maker(eqns)
    return [_terms(1, v, made_by) if _is_float(v) else [(1, v)] for v in outvars]


def _is_float(v: Atom) -> bool:
    return jnp.issubdtype(v.aval.dtype, jnp.floating)


def _is_identity(eqn: Eqn) -> bool:
    """Whether an equation only says that a number's type is firm."""
    return eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype


def _terms(sign: int, v: Atom, made_by: Callable[[Atom], Eqn | None]) -> Terms:
    """A variable as a sum, taken apart as far as it is one."""
    e = made_by(v)
    if e is None:
        return [(sign, v)]
    if _is_identity(e):
        return _terms(sign, e.invars[0], made_by)
    signs = traits_of(e).signs
    if not signs:
        return [(sign, v)]
    return [term for s, x in zip(signs, e.invars, strict=True) for term in _terms(sign * s, x, made_by)]
