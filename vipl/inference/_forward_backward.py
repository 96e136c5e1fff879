"""Exact sums over a discrete chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from vipl import _compat
from vipl._errors import ProgramError
from vipl.core._holds import eqn_holds_site
from vipl.core._interpret import Interpreter, Outcome, plain, read, run, run_equations, walk
from vipl.gen import Source, sample
from vipl.gen._choices import nest
from vipl.gen._density import is_factor, site_log_prob
from vipl.inference._algorithms import Algorithm, First, finite_values, require_exact
from vipl.inference._particles import Particles
from vipl.inference._smc import entering, parts_of, shared_values


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardBackward(Algorithm):
    """Sums out the states of a chain: exact, in O(T S²) runs of a step, where `Enumeration` takes S^T.

    The program has one `lax.scan` that holds sites, at its top level. In each step one site is unknown, with S values,
    and the carry that leaves the step depends on earlier steps through that value alone (a counter may go along).
    Before the scan nothing is unknown.

        α_t(v) = Σ_u α_{t-1}(u) p(v, known_t | u),   Z = Σ_v α_T(v).   Both sides are Z itself.

    `particles` draws one path from the exact posterior, backwards.

    Raises:
      ProgramError: the program does not have that shape.
      EstimatorError: the unknown site has no finite support that is known when the program is staged.

    Reference: Rabiner (1989), section III; Scott (2002), section 2.1, for the path.
    """

    def log_evidence(self, program: Source, known: dict[str, Any]) -> Any:
        """Log Z, without any draw."""
        return jax.nn.logsumexp(_forward(_chain(program, known))[0][-1])

    def particles(self, program: Source, known: dict[str, Any]) -> Particles:
        """One particle, an exact posterior draw."""
        chain = _chain(program, known)
        alphas, steps = _forward(chain)

        def back(state, inputs):
            alpha, logits = inputs  # of t, and from each of its values to those of t + 1
            state = sample("state", dist.Categorical(logits=alpha + logits[:, state]))
            return state, state

        last = sample("state", dist.Categorical(logits=alphas[-1]))
        _, states = lax.scan(back, last, (alphas[:-1], steps[1:]), reverse=True)
        path = chain.values[jnp.append(states, last)]
        path = path[::-1] if chain.reverse else path
        return Particles(nest({chain.address: path[None]}), jnp.zeros(1), jax.nn.logsumexp(alphas[-1]))

    def conditional(self, program: Source, known: dict[str, Any], first: First) -> Any:
        """Log Z."""
        del first
        return self.log_evidence(program, known)


@dataclass(frozen=True)
class _Chain:
    """A program as a chain.

    Attributes:
      values: i[S], the values of the unknown site.
      address: its address.
      first: the carry before the first step, and the log weight of what came before it.
      step: (carry, x, given, value) -> (carry, log density of the step at that value).
      inputs: xs and known values, over the steps in the order of execution.
      reverse: whether that is the reverse of the order of the choices.
    """

    values: Any
    address: tuple[str, ...]
    first: tuple[Any, Any]
    step: Any
    inputs: Any
    reverse: bool


def _forward(chain: _Chain) -> tuple[Any, Any]:
    """Log α, f[T, S], and the log densities of the steps, f[T, S, S] (the first has one row, repeated)."""
    carry, log_w = chain.first
    num = chain.values.shape[0]
    each = jax.vmap(chain.step, in_axes=(None, None, 0))  # over the new value
    carries = jax.tree.map(lambda c: jnp.broadcast_to(c, (num, *jnp.shape(c))), carry)
    start = jnp.full(num, -jnp.inf).at[0].set(log_w)

    def step(state, inputs):
        carries, alpha = state
        after, logits = jax.vmap(each, in_axes=(0, None, None))(carries, inputs, chain.values)  # [u, v, ...]
        new = jax.nn.logsumexp(alpha[:, None] + logits, axis=0)
        return (jax.tree.map(lambda c: c[0], after), new), (new, logits)

    _, (alphas, steps) = lax.scan(step, (carries, start), chain.inputs)
    return alphas, steps


def _chain(program: Source, known: dict[str, Any]) -> _Chain:
    require_exact(program, "ForwardBackward()")
    parts = parts_of(program, known)
    unknown = parts.in_steps
    if len(unknown) != 1 or len(parts.unknown) != 1:
        raise _not_a_chain(parts.name, f"{len(unknown)} unknown sites in a step, {len(parts.unknown)} in all")
    place = unknown[0]
    if len(place.loops) != 1 or place.site.shape:
        raise _not_a_chain(parts.name, "an unknown site that is not one number in each step")
    values = jnp.asarray(finite_values(place, "ForwardBackward()"))
    constvars, consts, _, eqns, _ = _compat.parts(parts.jaxpr)
    env = dict(zip(constvars, consts, strict=True))
    before, scan = eqns[: parts.at], eqns[parts.at]
    body, num_consts, num_carry, options = _compat.scan_parts(scan.params)
    _check_markov(body, place.path[1:], num_consts, num_carry, parts.name)
    shared = shared_values(before, env, parts)
    fixed = entering(shared, scan.invars[:num_consts], parts.name)
    xs = entering(shared, scan.invars[num_consts + num_carry :], parts.name)
    given = {path: {"known": x} for path, x in parts.known.items()}
    start = run_equations(before, env, _interpreter, given)
    carry = read(start.value, scan.invars[num_consts:][:num_carry])
    step_given = {path: x for path, x in given.items() if path[0] == parts.at}

    def step(carry, inputs, value):
        x, step_given = inputs
        handed = step_given | {place.path: {"known": value.astype(place.site.dtype)}}
        out = run(body, [*fixed, *carry, *x], _interpreter, handed, (parts.at,))
        return out.value[:num_carry], out.totals.get("log_w", jnp.zeros(()))

    reverse = options.get("reverse", False)
    inputs = jax.tree.map(lambda x: x[::-1], (xs, step_given)) if reverse else (xs, step_given)
    log_w = start.totals.get("log_w", jnp.zeros(()))
    return _Chain(values, place.site.address, (carry, log_w), step, inputs, reverse)


def _check_markov(body: Any, at: Any, num_consts: int, num_carry: int, name: str) -> None:
    """Raises where the carry that leaves a step depends on the one that enters by more than the unknown value.

    A part of the carry that depends on itself and known things alone, such as a counter, is the same for all values.
    """
    _, _, invars, eqns, outvars = _compat.parts(body)
    carry = invars[num_consts : num_consts + num_carry]
    reached: dict[Any, set[int]] = {v: {i} for i, v in enumerate(carry)}
    state = num_carry  # the unknown value counts as one more source
    for i, eqn in enumerate(eqns):
        sources: set[int] = set().union(
            *(reached.get(v, set()) for v in eqn.invars if not isinstance(v, _compat.Literal)), set()
        )
        if (i,) == at:
            sources = {state}
        elif eqn_holds_site(eqn) and at[0] == i:
            raise _not_a_chain(name, "an unknown site inside another construct in the step")
        for v in eqn.outvars:
            reached[v] = sources
    leaving = [set() if isinstance(v, _compat.Literal) else reached.get(v, set()) for v in outvars[:num_carry]]
    # what may differ from value to value, from the state on
    differs = {i for i, sources in enumerate(leaving) if state in sources}
    while True:
        more = {i for i, sources in enumerate(leaving) if sources & differs} | differs
        if more == differs:
            break
        differs = more
    if any(leaving[i] & differs for i in differs):
        raise _not_a_chain(name, "a carry that depends on earlier steps by more than the unknown value of this one")


def _not_a_chain(name: str, got: str) -> ProgramError:
    return ProgramError(
        "a program is not a discrete chain.",
        at=name,
        got=got,
        expected="one lax.scan with one unknown site of finitely many values in each step, which alone is carried on",
        mend="carry the state, and nothing computed from earlier states; or use SMC(...), or Enumeration()",
    )


def _weigh(visit: Any, operands: Any, given: Any) -> Outcome:
    site = visit.site
    if is_factor(site):
        return Outcome(
            jnp.zeros(site.shape), {"log_w": site_log_prob(site, operands, jnp.zeros((0,)), check=False)}, {}
        )
    value = given["known"]
    return Outcome(value, {"log_w": site_log_prob(site, operands, value, check=True)}, {})


def _weigh_whole(composite: Any, operands: Any, given: Any, path: Any) -> Outcome:
    del path
    values = [g["known"] for g in given]
    (log_w,) = walk(composite.weigh, [*operands[composite.num_draw :], *values], plain)
    return Outcome(values, {"log_w": log_w}, {})


_interpreter = Interpreter(_weigh, None, "forward-backward", _weigh_whole)
