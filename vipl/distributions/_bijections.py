"""Bijections of R^n for flows that NumPyro lacks: one by two functions of its parameters, one inverted by bisection.

Law: the derivatives of an inverse are those of the implicit function, of every order.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from numpyro.distributions import constraints, transforms
from numpyro.distributions.flows import BlockNeuralAutoregressiveTransform

from vipl._types import Array, Float, PyTree

_DOUBLINGS = 64
"""How often a bracket is doubled at most."""


class OfFunctions(transforms.Transform):
    """A bijection of R^n by two functions of parameters.

    `forward(params, x)` and `backward(params, y)` take f[n], and give the image or the preimage, f[n], with the log of
    the volume's change, f[].
    """

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, params: PyTree, forward: Callable, backward: Callable):
        """Takes the parameters, and the functions, which are compared as they are: pass the same ones each time."""
        self.params, self.forward, self.backward = params, forward, backward

    def tree_flatten(self) -> tuple[tuple[PyTree], tuple[tuple[str], dict[str, Callable]]]:
        """Pytree interface: the parameters are the only arrays."""
        return (self.params,), (("params",), {"forward": self.forward, "backward": self.backward})

    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The image."""
        return self.call_with_intermediates(x)[0]

    def call_with_intermediates(self, x: Float[Array, "*batch n"]) -> tuple[Array, Array]:
        """The image, and the log of the volume's change."""
        return self._mapped(self.forward, x)

    def _inverse(self, y: Array) -> Array:
        return self._mapped(self.backward, y)[0]

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Array | None = None) -> Array:
        """f[*batch], the log of the volume's change."""
        return self._mapped(self.forward, x)[1] if intermediates is None else intermediates

    def _mapped(self, function: Callable, x: Array) -> tuple[Array, Array]:
        return jnp.vectorize(lambda v: function(self.params, v), signature="(n)->(n),()")(x)


class BlockNeural(BlockNeuralAutoregressiveTransform):
    """NumPyro's block neural autoregressive transform, with an inverse: see `invert_triangular`."""

    def _inverse(self, y: Array) -> Array:
        return jnp.vectorize(lambda v: invert_triangular(lambda x: jnp.asarray(self(x)), v), signature="(n)->(n)")(y)


def invert_triangular(fn: Callable[[Array], Array], y: Float[Array, " n"]) -> Float[Array, " n"]:
    """The x with fn(x) = y, to the last digits; y itself where that is not finite.

    Bisection, one coordinate after the other, in a bracket that is doubled until it holds the root. It costs n times
    some 40 evaluations in float32, and twice as many in float64.

    Args:
      fn: f[n] -> f[n], onto; y_i depends on x_1 ... x_i, and increases in x_i.
      y: f[n].
    """
    finite = jnp.isfinite(y)
    inside = jnp.where(finite, y, 0.0)

    def solve(f: Callable[[Array], Array], start: Array) -> Array:
        return lax.fori_loop(0, start.shape[0], lambda i, x: _bisected(f, x, i), start)

    def solve_linear(g: Callable[[Array], Array], b: Array) -> Array:
        return jnp.linalg.solve(jax.jacobian(g)(b), b)

    x = lax.custom_root(lambda x: fn(x) - inside, jnp.zeros_like(y), solve, solve_linear)
    return jnp.where(finite, x, y)


def _bisected(f: Callable[[Array], Array], x: Array, i: Array) -> Array:
    """A vector with the i-th coordinate at which the i-th value is zero."""
    at = lambda t: f(x.at[i].set(t))[i]  # noqa: E731
    one = jnp.ones((), x.dtype)

    def double(size: Array, sign: int) -> Array:
        goes_on = lambda s: (s[1] < _DOUBLINGS) & (sign * at(sign * s[0]) < 0)  # noqa: E731
        return lax.while_loop(goes_on, lambda s: (2 * s[0], s[1] + 1), (size, 0))[0]

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        above = at(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    halvings = jnp.finfo(x.dtype).nmant + 12
    low, high = lax.fori_loop(0, halvings, halve, (-double(one, -1), double(one, 1)))
    return x.at[i].set((low + high) / 2)
