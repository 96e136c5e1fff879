"""The evidence lower bound with the expectation over a discrete chain taken exactly."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl._types import Array, Float
from vipl.errors import ProgramError, show_address
from vipl.estimators import Score
from vipl.gen import Program
from vipl.gen._check_arguments import checked
from vipl.gen._choices import Address, Choices, check_address, flatten, merge, nest
from vipl.inference._algorithms import finite_values
from vipl.inference._chain import Chain
from vipl.inference._forward_backward import finite_chain, step_log_probs


@checked
def elbo_with_chain(model: Program, guide: Program, data: Choices, address: str | Address) -> Float[Array, ""]:
    """Evidence lower bound, the expectation over one discrete chain exact.

    L = E_q(x)[ Σ_t Σ_ab q(z_{t-1} = a, z_t = b) (log p_t(a, b, x) - log q_t(b | a)) - log q(x) ],

    where log p_t is all that step t of the model counts: its states, data and other choices x. It is the value of
    `elbo` without the noise of the chain; the other choices x are drawn, as there.

    The guide is one `lax.scan` whose steps draw z alone, as `guides.Markov` is, after the sites of the other choices;
    in `guides.combine` a Markov guide comes last by itself. The model is a chain in z given the rest, as
    `ForwardBackward` wants it: sites, and then one `lax.scan` with one site of z in each step, whose value alone is
    carried on.

    Unbiased for L and its gradient, whatever the estimator of z; without any noise where z is all.
    Cost: K² runs of a step of the model for each of the T steps, in one `scan`.

    Args:
      model: a generative function with its arguments, over latents and data.
      guide: a generative function with its arguments, over the latents.
      data: the observed choices.
      address: of the chain, a string, or a tuple of strings for a nested address.

    Raises:
      ProgramError: model or guide is no such chain, or these have other values or another number of steps.
      EstimatorError: the values of z are not known to be finitely many.

    Reference: Ghahramani and Jordan (1997), section 3.4; Rabiner (1989), section III, for the pairs.
    """
    z = check_address(address, "elbo_with_chain")
    if z not in {info.site.address for info in guide.unknown({})}:
        raise _not_chains(guide.name, f"no choice at {show_address(z)}", "the address of a chain of the guide")
    guide = guide.with_estimators(nest({z: Score()}))  # a draw of z counts for nothing
    drawn = flatten(guide.simulate().choices, guide.name)
    others = nest({a: x for a, x in drawn.items() if a != z})
    q, q_values = finite_chain(guide, others)
    p, p_values = finite_chain(model, merge(others, data))
    _check_same(model, guide, p, q)
    log_q, log_p = step_log_probs(q, q_values), step_log_probs(p, p_values)
    first, pairs = _pairs(log_q)
    bound = _expected(first, pairs, log_p, p.reverse != q.reverse) - _expected(first, pairs, log_q, False)
    return bound + p.first[1] - q.first[1]


def _pairs(log_q: Float[Array, "T K K"]) -> tuple[Float[Array, "T K"], Float[Array, "T-1 K K"]]:
    """The law of each value, and of each two that follow each other, in the order of the guide's steps."""

    def step(before: Array, log_step: Array) -> tuple[Array, tuple[Array, Array]]:
        pair = before[:, None] * jnp.exp(log_step)
        now = jnp.sum(pair, 0)
        return now, (now, pair)

    begin = jnp.exp(log_q[0, 0])
    _, (laws, pairs) = lax.scan(step, begin, log_q[1:])
    return jnp.concatenate([begin[None], laws]), pairs


def _expected(laws: Array, pairs: Array, log_steps: Array, is_other_way: bool) -> Array:  # noqa: FBT001
    """Σ_t E[log_steps_t(z_{t-1}, z_t)]; what has probability zero does not count."""
    if is_other_way:
        laws, pairs = laws[::-1], jnp.swapaxes(pairs, 1, 2)[::-1]

    def mean(weights: Array, x: Array) -> Array:
        return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, x, 0.0), 0.0))

    return mean(laws[0], log_steps[0, 0]) + mean(pairs, log_steps[1:])


def _check_same(model: Program, guide: Program, p: Chain, q: Chain) -> None:
    """Raises where the two are not over one choice of the same values and steps."""
    if q.inputs[1]:
        raise _not_chains(
            guide.name, "other choices in the steps of the guide", f"{show_address(q.info.site.address)} alone"
        )
    if p.info.site.address != q.info.site.address:
        got = f"{show_address(p.info.site.address)} is what is left in {model.name}"
        raise _not_chains(guide.name, got, f"{show_address(q.info.site.address)} there, too")
    if p.info.loop_shape != q.info.loop_shape:
        raise _not_chains(guide.name, f"{q.info.loop_shape[0]} steps", f"{p.info.loop_shape[0]}, as {model.name} has")
    here, there = (finite_values(chain.info, "elbo_with_chain").astype(int) for chain in (p, q))
    if not np.array_equal(here, there):
        raise _not_chains(guide.name, f"values {there.tolist()}", f"{here.tolist()}, as {model.name} has")


def _not_chains(name: str, got: str, expected: str) -> ProgramError:
    return ProgramError(
        "model and guide are not two chains over one choice.",
        at=f"elbo_with_chain of {name}",
        got=got,
        expected=expected,
        fix="make the guide by vipl.guides.Markov(model, data, addresses=...)(params); or use elbo",
    )
