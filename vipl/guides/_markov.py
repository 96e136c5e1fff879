"""A guide for discrete chains: each value depends on the one before it, by free tables."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.distributions._integers import categorical
from vipl.errors import DistributionError, show_address
from vipl.estimators import Enumerate, LeaveOneOut, Score
from vipl.gen import Estimator, Program, sample
from vipl.gen._choices import Address, nest
from vipl.gen._sample import check_estimator
from vipl.guides._coordinates import Discrete
from vipl.guides._guide import ModelGuide
from vipl.guides._mean_field import FEW, by_address


class Markov(ModelGuide):
    """Markov chains over discrete choices along the `scan` that they stand in.

    q(z) = q(z_1) Π_t q(z_t | z_{t-1}),   q(z_1 = b) = softmax(initial)_b,   q(z_t = b | z_{t-1} = a) =
    softmax(transition_{t-1, a})_b.

    Each element of a choice, in lanes around or inside the scan or as an axis of its site, is a chain of its own, and
    so is each choice. The exact posterior of a hidden Markov model, and of any model in which the choice is a chain
    given all else, is a member; MeanField, which forgets what a value says of the next, is the case of equal rows.

    Parameters, by address, with the axes of the choice other than the scan's first: `initial` f[..., K], and
    `transition` f[..., T - 1, K, K], logits.
    Cost: T K² numbers a chain, O(T K) a draw, O(T) a density. Use it for regimes, segments and hidden states whose
    neighbours are dependent in the posterior: with `vipl.objectives.elbo_with_chain`, which sums over the chain
    exactly, where the model is one chain given the other choices, and which `infer` uses there; real choices take a
    guide of their own, by `combine`. If all else is known exactly, `vipl.marginal(model, keep, ForwardBackward())`
    sums the chain out of the model and needs no guide for it.

    Unbiased derivatives: choices of at most 256 joint values are enumerated, else they have `Score(LeaveOneOut())`,
    which wants `num_samples` of 2 or more; at the exact posterior `sticking_the_landing` has no noise with either.

    Reference: Ghahramani and Jordan (1997), "Factorial hidden Markov models", section 3.4; Hoffman and Blei (2015),
    "Structured stochastic variational inference".

    Example:
      >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def regimes():
      ...     def step(z, _):
      ...         z = vipl.sample("z", dist.Bernoulli(jnp.where(z == 1, 0.9, 0.2)))
      ...         return z, vipl.sample("y", dist.Normal(z, 1.0))
      ...     jax.lax.scan(step, 0, None, length=5)
      >>> guide = vipl.guides.Markov(regimes(), {"y": jnp.array([0.1, 1.2, 0.7, 1.1, -0.2])})
      >>> jax.tree.map(jnp.shape, guide.init())
      {'z': {'initial': (2,), 'transition': (4, 2, 2)}}
    """

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        *,
        addresses: Any = None,
        discrete: Estimator | None = None,
    ):
        """See `Guide`.

        Args:
          model: over latents and data.
          data: the observed choices.
          addresses: which latent choices; None: all.
          discrete: the estimator of all; None: as said above.

        Raises:
          DistributionError: a latent choice is not one of integers 0, 1, ... in exactly one `scan`; or what `Guide`
            says.
        """
        if discrete is not None:
            check_estimator(discrete, "Markov")
        self.discrete = discrete
        super().__init__(model, data, addresses=addresses)

    @property
    def options(self) -> dict[str, Any]:
        """See `Guide.options`."""
        return super().options | {"discrete": self.discrete}

    def _check(self) -> None:
        at = f"Markov of {self.model.name}"
        if self.latents.real:
            address = show_address(self.latents.real[0].address)
            raise _refused(at, f"{address}, which is real", "integers 0, 1, ... in a scan",
                           'write combine({"chain": Markov(..., addresses=[...]), "real": FullRank(...)})')  # fmt: skip
        if self.latents.in_place:
            raise _refused(at, "a choice in a branch of cond or switch", "choices that every step makes",
                           "use MeanField; or sample outside the branches, and select the value")  # fmt: skip
        for x in self.latents.discrete:
            scans, address = sum(not lane for lane in x.loops), show_address(x.address)
            if scans != 1:
                got = f"{address} in {scans} scans" if scans else f"{address} in no scan"
                fix = 'write combine({"chain": Markov(..., addresses=[...]), "rest": MeanField(..., addresses=[...])})'
                raise _refused(at, got, "choices in exactly one scan, along which the chain goes", fix)

    def _function(self) -> Callable[[PyTree], Any]:
        estimator = self._estimator()

        def function(params: PyTree) -> Any:
            each = by_address(params, "Markov")
            return nest({x.address: _draw(x, each[x.address], estimator) for x in self.latents.discrete})

        return function

    def _estimator(self) -> Estimator:
        if self.discrete is not None:
            return self.discrete
        together = math.prod(x.number ** min(math.prod(x.shape), FEW) for x in self.latents.discrete)
        return Enumerate() if together <= FEW else Score(LeaveOneOut())

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        out: dict[Address, Array] = {}
        for x in self.latents.discrete:
            steps, rest = _axes(x)
            out[*x.address, "initial"] = jnp.zeros((*rest, x.number))
            out[*x.address, "transition"] = jnp.zeros((*rest, steps - 1, x.number, x.number))
        return nest(out)

    def marginals(self, params: PyTree) -> dict[str, Any]:
        """q(z = v) of each element, exactly: f[*shape, K] by address, smallest value first, by one pass along a chain.

        Args:
          params: of the guide.
        """
        self._check_params(params)
        each = by_address(params, "Markov")
        out = {}
        for x in self.latents.discrete:
            of_chain = lambda p: chain_marginals(_tables(p))  # noqa: E731
            (_, rest), p = _axes(x), each[x.address]
            for _ in rest:
                of_chain = jax.vmap(of_chain)
            out[x.address] = jnp.moveaxis(of_chain(p), len(rest), _time(x))
        return nest(out)

    def entropy(self, params: PyTree) -> Float[Array, ""]:
        """f[], -E_q[log q(z)], exactly: Σ_t Σ_a q(z_{t-1} = a) H(q(z_t | z_{t-1} = a)).

        Args:
          params: of the guide.
        """
        self._check_params(params)
        total = jnp.zeros(())
        for x in self.latents.discrete:
            of_chain = _entropy
            for _ in _axes(x)[1]:
                of_chain = jax.vmap(of_chain)
            total += jnp.sum(of_chain(by_address(params, "Markov")[x.address]))
        return total


def _refused(at: str, got: str, expected: str, fix: str) -> DistributionError:
    return DistributionError(
        "a guide of Markov chains is asked for a choice that is no discrete chain.",
        at=at,
        got=got,
        expected=expected,
        fix=fix,
    )


def _time(x: Discrete) -> int:
    """Which axis is that of the scan."""
    return x.loops.index(False)


def _axes(x: Discrete) -> tuple[int, tuple[int, ...]]:
    """T, and the other axes."""
    t = _time(x)
    return x.shape[t], (*x.shape[:t], *x.shape[t + 1 :])


def _tables(params: Mapping[str, Array]) -> Float[Array, "T K K"]:
    """Log q(z_t = b | z_{t-1} = a) at [t, a, b]; the rows of the first are equal."""
    first = jnp.broadcast_to(params["initial"], (1, *params["initial"].shape * 2))
    return jax.nn.log_softmax(jnp.concatenate([first, params["transition"]]), axis=-1)


def _draw(x: Discrete, params: Mapping[str, Array], estimator: Estimator) -> Array:
    """A choice: chains in lanes of the axes before that of the scan, of elements in lanes of the axes after it."""
    outside, inside = _time(x), len(x.shape) - _time(x) - 1

    def tables(p: Mapping[str, Array]) -> Array:
        return functools.reduce(lambda f, _: jax.vmap(f, out_axes=1), range(inside), _tables)(p)

    def element(row_of: Array, before: Array) -> Array:
        row = row_of[before - x.low if x.low else before]
        return sample(x.address, categorical(row, x.low), estimator)

    step = functools.reduce(lambda f, _: jax.vmap(f), range(inside), element)

    def chain(p: Mapping[str, Array]) -> Array:
        first = jnp.full(x.shape[outside + 1 :], x.low, jnp.result_type(int))

        def one(before: Array, rows: Array) -> tuple[Array, Array]:
            now = step(rows, before)
            return now, now

        return lax.scan(one, first, tables(p))[1]

    return functools.reduce(lambda f, _: jax.vmap(f), range(outside), chain)(params)


def chain_marginals(log_tables: Float[Array, "T K K"]) -> Float[Array, "T K"]:
    """The law of each value of a chain, forward."""

    def step(before: Array, log_table: Array) -> tuple[Array, Array]:
        now = before @ jnp.exp(log_table)
        return now, now

    first = jnp.zeros(log_tables.shape[-1], log_tables.dtype).at[0].set(1.0)
    return lax.scan(step, first, log_tables)[1]


def _entropy(params: Mapping[str, Array]) -> Array:
    log_tables = _tables(params)
    laws = chain_marginals(log_tables)
    before = jnp.concatenate([jnp.zeros_like(laws[:1]).at[0, 0].set(1.0), laws[:-1]])
    p = jnp.exp(log_tables)
    return -jnp.sum(before[..., None] * jnp.where(p > 0, p * jnp.where(p > 0, log_tables, 0.0), 0.0))
