"""The equation loop: an interpreter of programs is one function that says what to do at a site.

    handle(visit, operands, given) -> Outcome(value, totals, emits)

`run` evaluates a jaxpr and calls `handle` at every site. The control flow around sites is rebuilt once,
here, and is the same for all interpreters:

- `given[path]` is what a site is handed (a choice, its noise, the number of an alternative). Inside `scan`
  and under lanes it is a slice of an array whose leading axes are the loops around the site, outermost first.
- `totals` are scalars that are added up over sites, steps and lanes (log densities).
- `emits[path]` is what a site hands out. It is stacked by `scan` and lanes, and is zero where a `cond` took
  another branch.

Invariant: with `handle` = "draw from the source with the key of the path" this is plain evaluation of the program,
and every equation without a site is evaluated as JAX itself does.

A *path* is the position of a site in a program: the numbers of the equations (and branches) that lead to it.
Unlike an address it is unique, also where a program is simulated twice.

An equation that holds a site and has no rule here raises; none is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vipl import _jax
from vipl._jax import Eqn, Jaxpr, Primitive, ShapedArray, Var
from vipl._types import Array, ArrayLike, PyTree
from vipl.errors import ControlFlowError
from vipl.ir import devices
from vipl.ir.batching import has_site, sites_of
from vipl.ir.composite import Composite, composite_p
from vipl.ir.dataflow import Visit as EqnVisit
from vipl.ir.dataflow import evaluate, plain, read, walk
from vipl.ir.primitives import Lane, Path, Site, lanes_p, sample_p
from vipl.ir.purity import check_unordered
from vipl.ir.sites import SiteInfo, list_sites
from vipl.ir.stage import stage
from vipl.passes import scan_fission as fission

Inputs = Mapping[Path, Any]
"""What sites are handed: a pytree for each path."""


class Outcome(NamedTuple):
    """What a handler returns for one site, or a region of a program for all of its sites.

    Attributes:
      value: the site's value, with its log density where the site `weighs`; the region's outputs.
      totals: name -> scalar, added up.
      emits: path -> pytree, collected.
    """

    value: Any
    totals: dict[str, Array]
    emits: dict[Path, PyTree]


class Visit(NamedTuple):
    """Where a handler is: the site and its path."""

    site: Site
    path: Path


class Interpreter(NamedTuple):
    """A way to read programs.

    Attributes:
      handle: `(visit, operands, given) -> Outcome`.
      in_while: `(list_sites, given, count) -> given` makes what the sites of one pass through a `while` loop are
        handed; None where an unknown number of draws has no meaning.
      name: what the interpreter does, for messages.
      compose: `(composite, operands, given, path) -> Outcome` takes a composite as a whole; `given` and `emits` have
        one entry for each of its values, at `(*path, number)`. None: only the sites of its `draw` are seen.
      lanes: `(equation, operands, given, path) -> Outcome | None` takes the lanes of a `vmap` as a whole, or says by
        None that they are to be interpreted one by one. None: they always are.
      every_branch: whether sites of all branches of a `cond` are visited and hand out what they do, although the value
        and the totals are those of the branch that is taken.
    """

    handle: Callable[[Visit, Sequence[Array], Any], Outcome]
    in_while: Callable[[list[SiteInfo], Inputs, Array], Inputs] | None
    name: str
    compose: Callable[[Composite, list[Array], list[Any], Path], Outcome] | None = None
    lanes: Callable[[Eqn, list[Array], Inputs, Path], Outcome | None] | None = None
    every_branch: bool = False


# --- the loop ---------------------------------------------------------------------------------------------


def run(
    jaxpr: Jaxpr,
    args: Sequence[Array],
    interpreter: Interpreter,
    given: Inputs,
    path: Path = (),
) -> Outcome:
    """Evaluates a program with an interpreter at its sites."""
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    env = dict(zip([*constvars, *invars], [*consts, *args], strict=True))
    out = run_equations(eqns, env, interpreter, given, path)
    return out._replace(value=read(out.value, outvars))


def run_equations(
    eqns: Sequence[Eqn],
    env: dict[Var, Array],
    interpreter: Interpreter,
    given: Inputs,
    path: Path = (),
    around: Callable[[EqnVisit, Inputs], EqnVisit] | None = None,
) -> Outcome:
    """Evaluates the first equations of a program; the value of the outcome is the environment after them.

    Args:
      eqns: the equations.
      env: the values of variables before them.
      interpreter: says what happens at sites.
      given: what sites are handed.
      path: the position of the program.
      around: `(visit, emits) -> visit`, puts something around what is done at an equation.
    """
    totals: dict[str, Array] = {}
    emits: dict[Path, PyTree] = {}

    def visit(i: int, eqn: Eqn, values: list[Array]) -> Sequence[Array]:
        if not has_site(eqn):
            return _jax.rebind(eqn, values)
        with _jax.eqn_context(eqn):
            out = _rule(eqn)(eqn, values, interpreter, given, (*path, i))
        for name, x in out.totals.items():
            totals[name] = totals[name] + x if name in totals else x
        emits.update(out.emits)
        return out.value

    return Outcome(evaluate(eqns, env, visit if around is None else around(visit, emits)), totals, emits)


def _below(given: Inputs, path: Path) -> Inputs:
    return {p: x for p, x in given.items() if p[: len(path)] == path}


def _sum_axis(out: Outcome) -> Outcome:
    """Adds up the totals of steps or lanes; emits stay stacked."""
    return out._replace(totals={name: jnp.sum(x, axis=0) for name, x in out.totals.items()})


def _sample_rule(eqn: Eqn, values: list[Array], interpreter: Interpreter, given: Inputs, path: Path) -> Outcome:
    out = interpreter.handle(Visit(eqn.params["site"], path), values, given.get(path))
    values = out.value if eqn.params["site"].weighs else [out.value]
    return out._replace(value=[devices.vary(x) for x in values])


def _composite_rule(eqn: Eqn, values: list[Array], interpreter: Interpreter, given: Inputs, path: Path) -> Outcome:
    composite: Composite = eqn.params["composite"]
    if interpreter.compose is not None:
        return interpreter.compose(
            composite, values, [given.get((*path, k)) for k in range(len(composite.sites))], path
        )
    out = run(composite.draw, values[: composite.num_draw], interpreter, given, path)
    return out._replace(value=out.value[:-1])


def _jit_rule(eqn: Eqn, values: list[Array], interpreter: Interpreter, given: Inputs, path: Path) -> Outcome:
    return run(eqn.params["jaxpr"], values, interpreter, given, path)


def _remat_rule(eqn: Eqn, values: list[Array], interpreter: Interpreter, given: Inputs, path: Path) -> Outcome:
    def body(values, given):
        return run(eqn.params["jaxpr"], values, interpreter, given, path)

    return jax.checkpoint(body, **_jax.remat_options(eqn.params))(values, _below(given, path))


def _lanes_rule(eqn: Eqn, values: list[Array], interpreter: Interpreter, given: Inputs, path: Path) -> Outcome:
    lane: Lane = eqn.params["lane"]
    if interpreter.lanes is not None:
        whole = interpreter.lanes(eqn, values, given, path)
        if whole is not None:
            return whole
    check_unordered(eqn.params["jaxpr"], f"{lane.size} lanes of a vmap")
    axes = [0 if m else None for m in lane.mapped]
    mapped = jax.vmap(
        lambda values, given: run(eqn.params["jaxpr"], values, interpreter, given, path),
        in_axes=(axes, 0),
        axis_size=lane.size,
        **lane.names,
    )
    return _sum_axis(mapped(values, _below(given, path)))


def _scan_rule(eqn: Eqn, values: list[Array], interpreter: Interpreter, given: Inputs, path: Path) -> Outcome:
    scan = _jax.scan_parts(eqn.params)
    consts, init, xs = scan.operands(values)
    steps = (xs, _below(given, path))

    def body(carry, step):
        x, step_given = step
        outs, totals, emits = run(scan.jaxpr, [*consts, *carry, *x], interpreter, step_given, path)
        return outs[: scan.num_carry], (outs[scan.num_carry :], totals, emits)

    staged, shape = stage(body, jax.tree.map(_aval, init), jax.tree.map(lambda x: _aval(x, 1), steps))
    carry, (ys, totals, emits) = shape
    # What a site hands out as one number (a log weight) is like a total: nothing in the loop needs it.
    is_total = [False] * len(jax.tree.leaves(ys)) + [True] * len(totals) + [x.size == 1 for x in jax.tree.leaves(emits)]
    flat = fission.scan(staged, init, jax.tree.leaves(steps), is_total, scan.options)
    carry, (ys, totals, emits) = jax.tree.unflatten(jax.tree.structure(shape), flat)
    return _sum_axis(Outcome([*carry, *ys], totals, emits))


def _aval(x: ArrayLike, loops: int = 0) -> ShapedArray:
    """The abstract value of `x` inside loops."""
    aval = _jax.typeof(x)
    for _ in range(loops):
        aval = _jax.without_axis(aval, 0)
    return aval.update(weak_type=False)


def _cond_rule(eqn: Eqn, values: list[Array], interpreter: Interpreter, given: Inputs, path: Path) -> Outcome:
    """Interprets each branch, pads what the others hand out with zeros, and selects as JAX does."""
    if "branches_platforms" in eqn.params:
        raise _unsupported(eqn, "the platform that the program is compiled for would decide its addresses")
    index, *operands = values
    given = _below(given, path)
    staged, structures = [], []
    for b, branch in enumerate(eqn.params["branches"]):
        jaxpr, structure = stage(
            lambda operands, given, b=b, branch=branch: run(branch, operands, interpreter, given, (*path, b)),
            operands,
            given,
        )
        staged.append(jaxpr)
        structures.append(structure)
    totals = {name: x for s in structures for name, x in s.totals.items()}
    emits = {p: x for s in structures for p, x in s.emits.items()}

    def padded(jaxpr, structure):
        def branch(operands, given):
            flat = walk(jaxpr, jax.tree.leaves((operands, given)), plain)
            out = jax.tree.unflatten(jax.tree.structure(structure), flat)
            zeros = jax.tree.map(devices.zeros, (totals, emits))
            return Outcome(out.value, zeros[0] | out.totals, zeros[1] | out.emits)

        return branch

    branches = [padded(j, s) for j, s in zip(staged, structures, strict=True)]
    out = lax.switch(index, branches, operands, given)
    if interpreter.every_branch:
        each = [branch(operands, given).emits for branch in branches]
        out.emits.update({p: each[p[len(path)]][p] for p in emits})
    return out


def _while_rule(eqn: Eqn, values: list[Array], interpreter: Interpreter, given: Inputs, path: Path) -> Outcome:
    """Counts the passes, so that each has its own keys; only for interpreters that can give them."""
    make_given = interpreter.in_while
    if make_given is None:
        raise _unsupported(
            eqn,
            f"the number of draws is not known before the loop ends, and {interpreter.name} needs it",
            fix="give lax.fori_loop bounds that are Python integers, or use lax.scan with a mask",
        )
    p = eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    cond_consts, body_consts, init = values[:n], values[n : n + m], values[n + m :]
    given = _below(given, path)

    def part(number, jaxpr, consts, count, carry):
        inner = list_sites(jaxpr, (*path, number))
        site_inputs = make_given(inner, given, count)
        return run(jaxpr, [*consts, *carry], interpreter, site_inputs, (*path, number)).value

    def goes_on(state):
        return part(0, p["cond_jaxpr"], cond_consts, *state)[0]

    def body(state):
        count, carry = state
        return count + 1, part(1, p["body_jaxpr"], body_consts, count, carry)

    _, out = lax.while_loop(goes_on, body, (jnp.uint32(0), list(init)))
    return Outcome(out, {}, {})


Rule = Callable[[Eqn, list[Array], Interpreter, Inputs, Path], Outcome]

_RULES: dict[Primitive, Rule] = {
    sample_p: _sample_rule,
    composite_p: _composite_rule,
    lanes_p: _lanes_rule,
    _jax.jit_p: _jit_rule,
    _jax.remat_p: _remat_rule,
    _jax.scan_p: _scan_rule,
    _jax.cond_p: _cond_rule,
    _jax.while_p: _while_rule,
}


def _rule(eqn: Eqn) -> Rule:
    rule = _RULES.get(eqn.primitive)
    if rule is None:
        raise _unsupported(eqn, "sites in it would be lost, repeated, or drawn with a rule that is not seen")
    return rule


_INSTEAD = {
    "custom_vmap_call": "map it with jax.vmap outside the function, and keep sites out of it",
    "custom_jvp_call": "move the site out of the function with the custom derivative rule",
    "custom_vjp_call": "move the site out of the function with the custom derivative rule",
    "reduce": "draw before the reduction, with jax.vmap, and reduce the drawn values",
    "reduce_window": "draw before the reduction, with jax.vmap, and reduce the drawn values",
    "custom_linear_solve": "draw before the solve, and pass the drawn values to it",
    "shard_map": "draw outside shard_map, and pass the drawn values to it",
    "pmap": "use jax.vmap",
}


def _unsupported(eqn: Eqn, why: str, fix: str | None = None) -> ControlFlowError:
    site = next(sites_of(eqn), None)
    name = eqn.primitive.name
    return ControlFlowError(
        f"a site stands inside `{name}`, where it is not supported: {why}.",
        at=site.at() if site else "a site that is out of sight",
        got=f"`sample` inside `{name}`",
        expected="sites in plain code, jit, vmap, scan, map, fori_loop, cond, switch or checkpoint",
        fix=fix or _INSTEAD.get(name, f"draw outside `{name}`, and pass the drawn value to it"),
    )
