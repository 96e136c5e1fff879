"""A point as a guide: maximum a posteriori."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.gen._choices import Address, flatten, nest
from vipl.guides._guide import ModelGuide
from vipl.guides._joint import OfLatents, check_joint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Point(OfLatents):
    """All mass on T(u).

    Attributes:
      params: by address, `loc`.
    """

    params: PyTree

    def _constraints(self) -> dict[Address, Callable[[], Any]]:
        return {}  # a point has no coordinates

    def _draw(self) -> tuple[dict[str, Any], Array]:
        u = {a[:-1]: x for a, x in flatten(self.params, f"the parameters of {self.name}").items()}
        return nest(self.latents.constrain(u)[0]), jnp.zeros(())

    def _weigh(self, choices: dict[str, Any]) -> Array:
        flat = self._own(choices)
        here = flatten(self._draw()[0], self.name)
        same = jnp.stack([jnp.all(flat[a] == x) for a, x in here.items()])
        return jnp.where(jnp.all(same), 0.0, -jnp.inf)


class Delta(ModelGuide):
    """A point: maximum a posteriori estimation.

    q puts all its mass on z = T(u); its density counts as 1, so that the ELBO is log p(z, data), in the model's own
    parametrization (without the Jacobian of T).

    Parameters: by address, `loc`, the coordinates u.
    Use it for point estimates, of parameters that many data determine; it knows no uncertainty.
    """

    is_point = True

    def _check(self) -> None:
        check_joint(self, self.latents)

    def _function(self) -> Callable[[PyTree], Any]:
        role = f"Delta of {self.model.name}"

        def function(params: PyTree) -> Any:
            return Point(self.latents, role, params).inline((), role)

        return function

    def _init(self, u: dict[Address, Array], scale: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
        return nest({a: {"loc": x} for a, x in u.items()})
