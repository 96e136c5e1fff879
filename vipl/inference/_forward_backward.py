"""Exact sums over a discrete chain."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from vipl._types import Array, Float
from vipl.distributions._sums import log_total
from vipl.gen import Source, sample
from vipl.gen._choices import Choices, nest
from vipl.inference._algorithms import ExactAlgorithm, categorical, finite_values
from vipl.inference._chain import Chain, chain_of, not_a_chain
from vipl.inference._particles import Particles, positive
from vipl.ir.sites import SiteInfo


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForwardBackward(ExactAlgorithm):
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

    def log_evidence(self, program: Source, known: Choices) -> Float[Array, ""]:
        """Log Z, without any draw."""
        return log_total(_forward(*finite_chain(program, known))[0][-1])

    def particles(self, program: Source, known: Choices) -> Particles:
        """One particle, an exact posterior draw."""
        chain, values = finite_chain(program, known)
        alphas, steps = _forward(chain, values)

        def back(state, inputs):
            alpha, logits = inputs  # of t, and from each of its values to those of t + 1
            state = sample("state", dist.Categorical(logits=alpha + logits[:, state]))
            return state, state

        last = sample("state", dist.Categorical(logits=alphas[-1]))
        _, states = lax.scan(back, last, (alphas[:-1], steps[1:]), reverse=True)
        path = values[jnp.append(states, last)]
        path = path[::-1] if chain.reverse else path
        return Particles(nest({chain.info.site.address: path[None]}), jnp.zeros(1), log_total(alphas[-1]))

    def marginals(self, program: Source, known: Choices, info: SiteInfo) -> dist.CategoricalLogits:
        """Categorical of batch shape [T]: p(z_t | known) is in proportion to α_t β_t."""
        chain, values = finite_chain(program, known)
        alphas, steps = _forward(chain, values)

        def back(beta, logits):
            before = log_total(logits + beta, axis=1)  # over the values of t + 1
            return before, beta

        first, betas = lax.scan(back, jnp.zeros(values.shape[0], alphas.dtype), steps[1:], reverse=True)
        log_probs = alphas + jnp.concatenate([first[None], betas])
        log_probs = log_probs - positive(log_total(alphas[-1]), program.name)
        log_probs = log_probs[::-1] if chain.reverse else log_probs
        return categorical(finite_values(chain.info, "ForwardBackward()"), log_probs, info)


def finite_chain(program: Source, known: Choices) -> tuple[Chain, Array]:
    """A program as a chain, and the values of its states, i[S]."""
    chain = chain_of(program, known, "ForwardBackward()")
    if chain.info.site.shape:
        raise not_a_chain(program.name, "an unknown site that is not one number in each step")
    return chain, jnp.asarray(finite_values(chain.info, "ForwardBackward()"))


def step_log_probs(chain: Chain, values: Array) -> Float[Array, "T S S"]:
    """What each step counts, from each value before to each of its own; the first has one row, repeated."""
    return _forward(chain, values)[1]


def posterior_tables(program: Source, known: Choices) -> tuple[Float[Array, " S"], Float[Array, "T-1 S S"]]:
    """The exact posterior of a chain as a Markov chain: logits of the first value, and of each given the one before.

    With ψ_t(a, b) what is counted of two values that follow each other:

        log q(z_{t+1} = b | z_t = a) = ψ_t(a, b) + m_{t+1}(b) - m_t(a),   m_t(a) = log Σ_b exp(ψ_t(a, b) + m_{t+1}(b)).

    Rows of values that cannot come are zeros.
    """
    chain, values = finite_chain(program, known)
    steps = step_log_probs(chain, values)
    one, pairs = steps[0, 0], steps[1:]
    nothing = jnp.zeros_like(one)
    first, last = (nothing, one) if chain.reverse else (one, nothing)
    pairs = jnp.swapaxes(pairs, 1, 2)[::-1] if chain.reverse else pairs

    def back(after: Array, pair: Array) -> tuple[Array, Array]:
        logits = pair + after
        total = log_total(logits, axis=1)
        return total, jnp.where(total[:, None] > -jnp.inf, logits - total[:, None], 0.0)

    after, transition = lax.scan(back, last, pairs, reverse=True)
    initial = first + after
    return initial - positive(log_total(initial), program.name), transition


def _forward(chain: Chain, values: Array) -> tuple[Array, Array]:
    """Log α, f[T, S], and the log densities of the steps, f[T, S, S] (the first has one row, repeated)."""
    carry, log_w = chain.first
    num = values.shape[0]
    each = jax.vmap(chain.step, in_axes=(None, None, 0))  # over the new value
    carries = jax.tree.map(lambda c: jnp.broadcast_to(c, (num, *jnp.shape(c))), carry)
    start = jnp.full(num, -jnp.inf).at[0].set(log_w)

    def step(state, inputs):
        carries, alpha = state
        after, logits = jax.vmap(each, in_axes=(0, None, None))(carries, inputs, values)  # [u, v, ...]
        new = log_total(alpha[:, None] + logits)
        return (jax.tree.map(lambda c: c[0], after), new), (new, logits)

    _, (alphas, steps) = lax.scan(step, (carries, start), chain.inputs, length=chain.info.loops[0].size)
    return alphas, steps
