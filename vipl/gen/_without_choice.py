"""`deterministic` and `random_key`: sites that a trace has no choice for.

Both have an address, leading axes of loops and a place in branches as every site has. Neither has a density.

Laws:
    deterministic   the program without the record has the same draws, densities and return value
    random_key      the key of an address is the same whatever the estimators, and another in each lane, step and sample
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from vipl.errors import AddressError, ChoiceError, show_address, show_addresses, show_aval
from vipl.gen._choices import check_address, flatten
from vipl.gen._density import is_factor
from vipl.interpret.subprograms import rewrite
from vipl.ir.frames import user_frame
from vipl.ir.partition import as_array, partition
from vipl.ir.primitives import Site, bind_site
from vipl.ir.sites import SiteInfo, list_sites
from vipl.ir.stage import Staged, stage
from vipl.ir.staging_rules import check_context

T = TypeVar("T")


@jax.tree_util.register_pytree_node_class
class Record:
    """The source of `deterministic`: nothing is drawn."""

    has_rsample = True
    batch_shape = ()

    def __init__(self, value: Any):
        """Keeps the value, [...]."""
        self.value = value

    def tree_flatten(self) -> Any:
        """Pytree interface."""
        return (self.value,), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Record:
        """Pytree interface."""
        return cls(*children)

    def sample(self, _: Any) -> Any:
        """Nothing to draw."""
        return jnp.zeros((0,))


@jax.tree_util.register_pytree_node_class
class KeySource:
    """The source of `random_key`: draws random bits, which are the data of a PRNG key.

    Attributes:
      shape: of the data of JAX's default generator.
    """

    has_rsample = True
    batch_shape = ()

    def __init__(self, shape: tuple[int, ...]):
        """Keeps the shape."""
        self.shape = shape

    def tree_flatten(self) -> Any:
        """Pytree interface."""
        return (), self.shape

    @classmethod
    def tree_unflatten(cls, shape: Any, _: Any) -> KeySource:
        """Pytree interface."""
        return cls(shape)

    def sample(self, key: Any) -> Any:
        """u32[*shape]."""
        return jax.random.bits(key, self.shape, "uint32")


_RECORD = jax.tree.structure(Record(0.0))


def is_record(site: Site) -> bool:
    """Whether a site is made by `deterministic`."""
    return site.distribution is not None and site.distribution.treedef == _RECORD


def is_random_key(site: Site) -> bool:
    """Whether a site is made by `random_key`."""
    return site.distribution is not None and (site.distribution.treedef.node_data() or (None,))[0] is KeySource


def records(found: Sequence[SiteInfo]) -> list[SiteInfo]:
    """The places of `deterministic`."""
    return [p for p in found if is_record(p.site)]


def valued(found: Sequence[SiteInfo]) -> list[SiteInfo]:
    """The places that have choices."""
    return [p for p in found if not (is_factor(p.site) or is_record(p.site) or is_random_key(p.site))]


def deterministic(address: str | tuple[str, ...], value: T) -> T:
    """Records a value that a program computes, under an address.

    The value is in `trace.deterministics`, with a leading axis for each `scan` and `vmap` around the call, as a choice
    has; where a `cond` took another branch it is zeros. It is no choice: it has no density, and `assess` computes it
    from the choices. Draws, densities and derivatives are those of the program without the record.

    May be called anywhere in a program where `sample` may; in an objective or under `seed`, outside every generative
    function, nothing is recorded. What `marginal` or `normalize` is applied to records nothing either: a record may
    depend on choices that are integrated out.

    Args:
      address: the record's name; a tuple nests, as in `("layer", "w")`.
      value: one array or number.

    Returns:
      The value as it was given.

    Raises:
      AddressError: the address is not a string; or (raised when the program runs) a site has it.
      ChoiceError: the value is not an array.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def schools():
      ...     z = vipl.sample("z", dist.Normal(0.0, 1.0).expand([3]))
      ...     return vipl.deterministic("theta", 5.0 + 2.0 * z)
      >>> trace = schools().simulate(jax.random.key(0))
      >>> list(trace.choices), trace.deterministics["theta"].shape
      (['z'], (3,))
    """
    where = user_frame()
    address = check_address(address, where)
    at = f"{show_address(address)} in {where}"
    check_context(at)
    array = as_array(value)
    if array is None or jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
        raise ChoiceError(
            "a value that is recorded is not an array.",
            at=at,
            got=show_aval(value),
            expected="one number or one array",
            fix="record each array of a pytree under an address of its own",
        )
    skeleton, leaves = partition(Record(jnp.asarray(array)))
    bind_site(leaves, Site(address, skeleton, None, 1, (0,), jnp.result_type(float), None, where))
    return value


def random_key(address: str | tuple[str, ...]) -> Any:
    """A PRNG key that follows the address, for noise that is no choice: dropout, augmentation of data, a random start.

    key = wrap(bits),  bits ~ Uniform of the noise of the address, as the noise of every site is drawn.

    Each lane of a `vmap`, each step of a `scan` and each of `num_samples` has its own. The runs of one sample at other
    values, which some estimators make, see the same key. It is no choice and has no density: the trace does not hold
    it, and `log_prob` is that of the choices given the key.

    A density that depends on the key is an estimate of the density with the key integrated out,

        assess      E[exp log_prob] = p(x) = E_key[p(x | key)]
        simulate    E[exp -log_prob | x] = 1 / p(x),   where p(x | key) > 0 for all keys,

    so that a bound by such a program is a lower bound. `is_exact()` of the program is False, and algorithms that need
    exact densities refuse it. `assess` needs a key of its own, `assess(choices, key=key)`, in ordinary Python.

    Unbiased for E[f(key)] and its derivatives in an expectation, under every estimator of the other sites.

    Args:
      address: the key's name; a tuple nests.

    Returns:
      One typed key. Split it for several uses.

    Raises:
      AddressError: the address is not a string; or (raised when the program runs) a site has it.

    Example:
      >>> import jax, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def model(x):
      ...     kept = jax.random.bernoulli(vipl.random_key("dropout"), 0.9, x.shape)
      ...     vipl.sample("y", dist.Normal((x * kept).sum(), 1.0))
      >>> model(jax.numpy.ones(3)).assess({"y": 2.0}, key=jax.random.key(0)).choices
      {'y': Array(2., dtype=float32, weak_type=True)}
    """
    where = user_frame()
    address = check_address(address, where)
    check_context(f"{show_address(address)} in {where}")
    data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    skeleton, _ = partition(KeySource(data.shape))
    site = Site(address, skeleton, None, 0, data.shape, data.dtype, None, where, is_exact=False)
    return jax.random.wrap_key_data(bind_site([], site))


def check_no_choice(choices: dict[str, Any], found: Sequence[SiteInfo], program: str) -> None:
    """Raises where a value is given for what has none: a record, or a random key."""
    given = flatten(choices, f"the choices for {program}")
    for info in found:
        site, address = info.site, info.site.address
        if address not in given or not (is_record(site) or is_random_key(site)):
            continue
        recorded = is_record(site)
        raise AddressError(
            "the choices hold an address whose value is computed."
            if recorded
            else "the choices hold the address of a random key.",
            at=site.at(),
            got=f"choices at {show_addresses(given)}",
            expected=f"{program}'s addresses {show_addresses(dict.fromkeys(p.site.address for p in valued(found)))}",
            fix=f"leave {show_address(address)} out of the choices; "
            + ("trace.deterministics has its value" if recorded else "it is made of the key of the run"),
        )


def without_records(staged: Staged, found: list[SiteInfo]) -> tuple[Staged, list[SiteInfo]]:
    """The same program without its records, and its places."""
    if not records(found):
        return staged, found

    def bind(operands, site):
        return jnp.zeros(site.shape, site.dtype) if is_record(site) else bind_site(operands, site)

    def program():
        return rewrite(staged.jaxpr, [], lambda address: address, lambda *same: same, bind)

    jaxpr, _ = stage(program)
    return staged._replace(jaxpr=jaxpr), list_sites(jaxpr, whole=True)
