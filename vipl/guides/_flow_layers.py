"""The transformations that a flow is made of, by architecture: parameters to begin with, and what they stand for."""

from __future__ import annotations

import abc
import functools
import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.example_libraries import stax
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.distributions.transforms import Transform
from numpyro.nn import AutoregressiveNN, BlockNeuralAutoregressiveNN

from vipl._checks import is_integer, whole_number
from vipl._types import Array, Float, PRNGKeyArray, PyTree
from vipl.distributions._bijections import BlockNeural, OfFunctions
from vipl.errors import ProgramError


class Layers(abc.ABC):
    """One architecture for n coordinates.

    Attributes:
      num_layers: how many layers a flow has that says nothing else.
    """

    num_layers: ClassVar[int] = 2

    def __init__(self, size: int, hidden: Any, num_bins: Any):
        """`hidden` and `num_bins` as `Flow` takes them."""
        self.size, self.hidden, self.num_bins = size, hidden, num_bins

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> PyTree:
        """The parameters of one layer, by which a fit may begin."""

    @abc.abstractmethod
    def transform(self, params: PyTree) -> Transform:
        """One layer."""

    def check(self, at: str) -> None:
        """Raises where the layers do not suit the architecture."""
        self._check_hidden(at, 1, "")
        if self.num_bins is not None:
            raise ProgramError(
                "bins are given to a flow that has no splines.",
                at=at,
                got=f"num_bins={self.num_bins!r}",
                expected='num_bins with architecture="coupling" alone',
                fix='leave num_bins out, or write architecture="coupling"',
            )

    def _check_hidden(self, at: str, least: int, what: str) -> None:
        hidden = self.hidden
        is_tuple = isinstance(hidden, (tuple, list)) and all(is_integer(h) and int(h) >= least for h in hidden)
        if hidden is None or (is_tuple and len(hidden) > 0):
            return
        raise ProgramError(
            "the hidden layers of a flow are too small, or no layers.",
            at=at,
            got=f"hidden={hidden!r}",
            expected=f"a tuple of integers, each at least {least}{what}",
            fix=f"write hidden=({max(32, self.size) if least == self.size else 8},)",
        )


class Autoregressive(Layers):
    """Shift and scale by a masked network: NumPyro's."""

    def check(self, at: str) -> None:
        """See `Layers.check`."""
        self._check_hidden(at, self.size, ", the number of coordinates")
        super().check(at)

    @functools.cached_property
    def _network(self) -> tuple[Callable, Callable]:
        """`init` and `apply`."""
        n = self.size
        with jax.ensure_compile_time_eval():  # its masks are arrays, and stay
            return AutoregressiveNN(n, list(self.hidden or (max(32, n),)), param_dims=[1, 1], nonlinearity=stax.Elu)

    def init(self, key: PRNGKeyArray) -> PyTree:
        """See `Layers.init`."""
        return jax.tree.map(lambda x: 0.1 * x, self._network[0](key, (self.size,))[1])

    def transform(self, params: PyTree) -> Transform:
        """See `Layers.transform`."""
        return InverseAutoregressiveTransform(functools.partial(self._network[1], params))


class BlockNeuralLayers(Layers):
    """A network that is triangular and increasing, beside the identity: NumPyro's, g f(v) + (1 - g) v with a gate g."""

    @functools.cached_property
    def _network(self) -> tuple[Callable, Callable]:
        """`init` and `apply`."""
        with jax.ensure_compile_time_eval():  # its masks are arrays, and stay
            return BlockNeuralAutoregressiveNN(self.size, list(self.hidden or (8, 8)), residual="gated")

    def init(self, key: PRNGKeyArray) -> PyTree:
        """See `Layers.init`."""
        *network, gate = self._network[0](key, (self.size,))[1]
        return [*network, jnp.zeros_like(gate)]  # half of it the identity

    def transform(self, params: PyTree) -> Transform:
        """See `Layers.transform`."""
        return BlockNeural(functools.partial(self._network[1], params))


class Coupling(Layers):
    """Splines, then a shift and a scale, of one half of the numbers, by a network of the other half: flowjax's."""

    num_layers: ClassVar[int] = 4
    edge: ClassVar[float] = 4.0
    """Where the splines end."""

    def check(self, at: str) -> None:
        """See `Layers.check`."""
        self._check_hidden(at, 1, ", all the same")
        if self.hidden is not None and len(set(self.hidden)) > 1:
            raise ProgramError(
                "the hidden layers of a coupling have different sizes.",
                at=at,
                got=f"hidden={self.hidden!r}",
                expected="layers of one size, as flowjax makes them",
                fix=f"write hidden={(max(self.hidden),) * len(self.hidden)!r}",
            )
        if self.num_bins is not None:
            whole_number(self.num_bins, "num_bins", at, least=2)
        try:
            importlib.import_module("flowjax.bijections")
        except ImportError as error:
            raise ProgramError(
                "a coupling needs flowjax, which cannot be imported.",
                at=at,
                got=f"{type(error).__name__}: {error}",
                expected="flowjax 19 or newer beside vipl",
                fix="""pip install 'vipl[flows]'; or write architecture="autoregressive", which needs nothing more""",
            ) from None

    @functools.cached_property
    def _bijection(self) -> Any:
        """Flowjax's module, with numbers of no importance."""
        bijections, hidden = importlib.import_module("flowjax.bijections"), self.hidden or (max(32, self.size),)
        with jax.ensure_compile_time_eval(), jax.disable_jit():  # flowjax checks numbers, which must not be staged
            return bijections.Coupling(
                jax.random.key(0),
                transformer=bijections.Chain([self._spline(), bijections.Affine()]),
                untransformed_dim=self.size // 2,
                dim=self.size,
                nn_width=hidden[0],
                nn_depth=len(hidden),
                nn_activation=jax.nn.silu,
            )

    def _spline(self) -> Any:
        """The identity, with slope 1 at both ends: the density of a flow is continuous."""
        bijections, equinox = importlib.import_module("flowjax.bijections"), importlib.import_module("equinox")
        paramax = importlib.import_module("paramax")
        inner = (self.num_bins or 8) - 1
        spline = bijections.RationalQuadraticSpline(knots=inner, interval=self.edge)
        least = 1e-3

        def of_numbers(x: Float[Array, "*batch inner"]) -> Float[Array, "*batch inner+2"]:
            inside = jax.nn.softplus(x) + least
            ends = jnp.ones((*x.shape[:-1], 1), x.dtype)
            return jnp.concatenate([ends, inside, ends], -1)

        slopes = paramax.Parameterize(of_numbers, jnp.full(inner, jnp.log(jnp.expm1(1 - least))))
        return equinox.tree_at(lambda s: s.derivatives, spline, slopes, is_leaf=lambda x: x is spline.derivatives)

    @functools.cached_property
    def _functions(self) -> tuple[Callable, Callable]:
        """The map and its inverse, of the network's numbers and a vector."""
        equinox, module = importlib.import_module("equinox"), self._bijection
        numbers, rest = equinox.partition(module.conditioner, equinox.is_inexact_array)
        structure, names = jax.tree.structure(numbers), list(_by_path(numbers))

        def whole(params: dict[str, Array]) -> Any:
            network = equinox.combine(jax.tree.unflatten(structure, [params[name] for name in names]), rest)
            return equinox.tree_at(lambda m: m.conditioner, module, network)

        def forward(params: dict[str, Array], x: Float[Array, " n"]) -> tuple[Array, Array]:
            return whole(params).transform_and_log_det(x)

        def backward(params: dict[str, Array], y: Float[Array, " n"]) -> tuple[Array, Array]:
            x, log_det = whole(params).inverse_and_log_det(y)
            return x, -log_det

        return forward, backward

    def init(self, key: PRNGKeyArray) -> dict[str, Array]:
        """See `Layers.init`."""
        equinox, like = importlib.import_module("equinox"), self._bijection.conditioner
        sizes = (like.in_size, like.out_size, like.width_size, like.depth)
        found = _by_path(equinox.filter(equinox.nn.MLP(*sizes, key=key), equinox.is_inexact_array))
        *_, weight, bias = found  # of the last layer
        return found | {name: 0.1 * found[name] for name in (weight, bias)}

    def transform(self, params: dict[str, Array]) -> Transform:
        """See `Layers.transform`."""
        return OfFunctions(params, *self._functions)


def _by_path(numbers: PyTree) -> dict[str, Array]:
    """The arrays of a module by where they stand."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(numbers)
    return {jax.tree_util.keystr(path).lstrip("."): x for path, x in leaves}


ARCHITECTURES: dict[str, type[Layers]] = {
    "autoregressive": Autoregressive,
    "block_neural": BlockNeuralLayers,
    "coupling": Coupling,
}
