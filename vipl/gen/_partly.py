"""`partly_observed`: a site with data for some of its elements becomes two sites, data and latent.

Law: for a site y with independent elements y_i, of which O are observed and M are not,

    log p(y_O, y_M, z) of the split program = log p(y, z) of the program,   y = y_O and y_M put together,

and what the program computes of the site's value is computed of y. Each element stands in one of the two sites, with
its own distribution.

Where the site stands in plain code or in lanes of `vmap` alone, the two sites are vectors. In a `scan` an element may
depend on those before it: both sites then stand there, in the two branches of a `cond` on the mask, and keep the axes
of the site; an element of the other site is zero, and has no density (`Site.present` says which these are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vipl import _jax
from vipl._jax import Eqn, Tracer
from vipl._types import Array
from vipl.distributions._elements import Inseparable, separate, take
from vipl.errors import (
    AddressError,
    ChoiceError,
    DistributionError,
    ProgramError,
    shortened,
    show_address,
    show_addresses,
)
from vipl.errors import show_aval as show
from vipl.gen._check_arguments import check_source
from vipl.gen._choices import Address, Choices, flatten, match, nest
from vipl.gen._density import check_distribution
from vipl.gen._each import check_points
from vipl.gen._program import GenerativeFunction, Program
from vipl.gen._source import Source
from vipl.gen._supports import describe
from vipl.gen._without_choice import valued
from vipl.interpret.interpreter import Inputs, Interpreter, Outcome, Visit, run
from vipl.interpret.subprograms import bind_whole
from vipl.ir.frames import user_frame
from vipl.ir.partition import Integers, as_array, concrete_integer, partition
from vipl.ir.primitives import Path, Site, bind_site, lanes_p, sample_p, split_weight
from vipl.ir.sites import SiteInfo, list_sites
from vipl.ir.stage import stage_program


@dataclass(frozen=True)
class Split:
    """What becomes of one site.

    Attributes:
      address: where the site is, and afterwards the observed elements.
      missing: where the others are.
      observed: bool[*loops, *batch], which elements are observed.
    """

    address: Address
    missing: Address
    observed: Integers


@jax.tree_util.register_pytree_node_class
class PartlyObserved(Program):
    """A program with sites that are split; made by `partly_observed`."""

    @property
    def name(self) -> str:
        """The program's name."""
        return f"partly_observed({self.args[-1].name}, ...)"


def partly_observed(
    program: Program, data: Mapping[str, Any], mask: Any = None, *, suffix: str = "_missing"
) -> tuple[Program, Choices]:
    """Splits the sites whose data have holes: what is observed stays data, what is not becomes a latent choice.

    log p(y_O, y_M, z) = log p(y, z),   y_O the observed elements of y, y_M the others.

    A site with holes has to have independent elements given what is before it: a batch of any distribution, `to_event`
    of one, sites in `vmap` and in `scan`, several axes. Inside the program the site has its whole value, data and
    latent elements in their places, so that what comes after it sees both: a predictor with holes, an autoregression.

    The observed elements are at the site's address, the others at the address whose last part has the suffix:
    "y" and "y_missing". Both are vectors, f[k, *event], in the order of the elements of y; where the site stands in a
    `scan` or a branch, both keep the shape of y, and an element that is not of them has no density, and any number.

    Args:
      program: a generative function with its arguments.
      data: observed choices, by address; NaN, or an element that a masked array of NumPy masks, stands for what is not
        observed. Addresses without holes stay what they are.
      mask: bool, True where an element is observed: an array for data at one address, else a dict by address. A mask
        without the last axes of y holds for all along these. Known when the program is staged. None: where no NaN is.
      suffix: of the addresses of missing elements.

    Returns:
      The program and its data, for `infer`, guides, objectives, `assess`, `generate`. Without holes, those given.

    Raises:
      ProgramError: the program is not one with its arguments; mask or data are traced, so that it is not known which
        elements are missing; the site's value is drawn by `marginal` or `normalize`.
      AddressError: an address is unknown, or that of the missing elements is taken.
      ChoiceError: the mask does not fit the data; it calls NaN observed; nothing is observed; part of an event is
        missing, as one number of a vector with a joint density.
      DistributionError: the elements of the site's distribution cannot be told apart.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, vipl
      >>> @vipl.gen
      ... def model(n):
      ...     m = vipl.sample("m", dist.Normal(0.0, 1.0))
      ...     return vipl.sample("y", dist.Normal(m, 1.0).expand([n]))
      >>> program, data = vipl.partly_observed(model(3), {"y": jnp.array([0.3, jnp.nan, 1.1])})
      >>> data, {name: x.shape for name, x in program.simulate(jax.random.key(0)).choices.items()}
      ({'y': Array([0.3, 1.1], dtype=float32)}, {'m': (), 'y': (2,), 'y_missing': (1,)})
    """
    where = f"partly_observed in {user_frame()}"
    check_source(program, "program", "partly_observed", program=True)
    if not isinstance(suffix, str):
        raise ProgramError(
            "the suffix of missing elements is not a text.",
            at=where,
            got=shortened(suffix),
            expected="text that is added to an address",
            fix='leave suffix out; it is "_missing" then',
        )
    data = _with_nan(dict(data) if isinstance(data, Mapping) else data)
    given = flatten(data, f"the data of {where}")
    found = valued(program.staged()[1])
    by_address = {info.site.address: info for info in found}
    masks = _masks(given, mask, where)
    filled = {a: _filled(x, masks[a]) if a in masks else x for a, x in given.items()}
    values = match(nest(filled), found, program.name, complete=False)
    splits = []
    for address, observed in masks.items():
        missing = (*address[:-1], address[-1] + suffix)
        _check_free(missing, by_address, where)
        splits.append(Split(address, missing, Integers.of(_elements(observed, by_address[address]))))
    if not splits:
        return program, dict(data)
    split = PartlyObserved(_PARTLY, (tuple(splits), program), {})
    now = {info.site.address: info.loop_shape + info.site.shape for info in split.staged()[1]}
    for s in splits:
        y, seen = values[s.address], s.observed.array()
        if now[s.address] != y.shape:
            values[s.address] = y[seen]
    return split, nest(given | {s.address: values[s.address] for s in splits})


# --- what is observed -----------------------------------------------------------------------------------------


def _masks(given: dict[Address, Any], mask: Any, where: str) -> dict[Address, np.ndarray]:
    """Of each address with holes, which numbers are observed."""
    told = _told(given, mask, where)
    out = {}
    for address, x in given.items():
        array = as_array(x)
        if array is None or (isinstance(array, Tracer) and told and address not in told):
            continue
        at = f"{show_address(address)} of {where}"
        if isinstance(array, Tracer) and address not in told and jnp.issubdtype(array.dtype, jnp.floating):
            raise _traced(at, f"data {show(array)} that are traced, and no mask")
        is_nan = np.zeros(np.shape(array), bool)
        if not isinstance(array, Tracer) and jnp.issubdtype(jnp.result_type(array), jnp.floating):
            is_nan = np.isnan(np.asarray(array))
        observed = _fitted(told[address], is_nan.shape, at) if address in told else ~is_nan
        if np.any(is_nan & observed):
            raise ChoiceError(
                "a mask calls a datum observed that is NaN.",
                at=at,
                got=f"{int(np.sum(is_nan & observed))} NaN where the mask is True",
                expected="numbers where the mask is True",
                fix="leave mask out, so that NaN is what is missing; or mask & ~jnp.isnan(y)",
            )
        if not observed.any():
            raise ChoiceError(
                "nothing is observed at an address of the data.",
                at=at,
                got=f"{observed.size} missing elements",
                expected="one observed element or more",
                fix=f"leave {show_address(address)} out of the data; it is a latent choice then",
            )
        if not observed.all():
            out[address] = observed
    return out


def _with_nan(x: Any) -> Any:
    """Data, with NaN for what masked arrays mask."""
    if isinstance(x, dict):
        return {name: _with_nan(y) for name, y in x.items()}
    return np.ma.filled(x.astype(float), np.nan) if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x) else x


def _told(given: dict[Address, Any], mask: Any, where: str) -> dict[Address, Any]:
    """The masks by address."""
    if mask is None:
        return {}
    if isinstance(mask, Mapping):
        told = flatten(dict(mask), f"the mask of {where}")
        unknown = [a for a in told if a not in given]
        if unknown:
            raise AddressError(
                "a mask is given for an address that the data do not have.",
                at=f"the mask of {where}",
                got=show_addresses(unknown),
                expected=f"addresses among {show_addresses(given)}",
                fix="name the masks as the data; nested addresses as nested dicts",
            )
        return told
    if len(given) != 1:
        raise AddressError(
            "one mask is given for data at several addresses.",
            at=f"the mask of {where}",
            got=f"an array, and data at {show_addresses(given)}",
            expected="a dict of masks, by address",
            fix=f"write mask={{{show_address(next(iter(given), ('y',)))}: mask}}",
        )
    return {address: mask for address in given}


def _fitted(mask: Any, shape: tuple[int, ...], at: str) -> np.ndarray:
    """A mask of the shape of its data."""
    array = as_array(mask)
    if isinstance(array, Tracer):
        raise _traced(at, f"a mask {show(array)} that is traced")
    observed = None if array is None else np.asarray(array)
    if observed is None or observed.dtype != bool or observed.shape != shape[: observed.ndim]:
        raise ChoiceError(
            "a mask does not fit its data.",
            at=at,
            got=show(mask if observed is None else observed),
            expected=f"bool[{','.join(map(str, shape))}], True where a datum is observed",
            fix="pass ~jnp.isnan(y), or another array of booleans of the shape of y",
        )
    return np.broadcast_to(observed.reshape(*observed.shape, *(1,) * (len(shape) - observed.ndim)), shape)


def _traced(at: str, got: str) -> ProgramError:
    return ProgramError(
        "it is not known which data are missing.",
        at=at,
        got=got,
        expected="a mask of NumPy or JAX that is known when the program is staged",
        fix="call partly_observed outside jit, or pass mask= as an array that jit does not trace",
    )


def _filled(y: Any, observed: np.ndarray) -> Any:
    """Data with some observed datum in the places of the missing ones; nothing depends on what it is."""
    array = as_array(y)
    array = array if isinstance(array, Tracer) else np.asarray(array)
    first = array[tuple(int(i[0]) for i in np.nonzero(observed))]
    return jnp.where(observed, array, first) if isinstance(array, Tracer) else np.where(observed, array, first)


def _check_free(missing: Address, by_address: Mapping[Address, SiteInfo], where: str) -> None:
    n = len(missing)
    clash = [a for a in by_address if a[:n] == missing or missing[: len(a)] == a]
    if clash:
        raise AddressError(
            "the address of the missing elements is taken.",
            at=f"{show_address(missing)} of {where}",
            got=f"a site {by_address[clash[0]].site.at()}",
            expected="an address that the program does not have",
            fix='pass another suffix, as partly_observed(program, data, suffix="_unseen")',
        )


def _elements(observed: np.ndarray, info: SiteInfo) -> np.ndarray:
    """Which elements of a site are observed; raises where only a part of one is."""
    site = info.site
    if site.distribution is None:
        raise ProgramError(
            "a value of `marginal` or `normalize` has holes.",
            at=site.at(),
            got=f"{int(np.sum(~observed))} missing of {observed.size} numbers",
            expected="a site whose source is a distribution of NumPyro",
            fix="apply partly_observed to the program that it is made of, and take marginal or normalize of that",
        )
    d = site.distribution.combine([jnp.zeros(a.shape, a.dtype) for a in info.distribution_avals])
    base, shape = separate(d)
    event = observed.reshape(*info.loop_shape, *shape, -1)
    whole = event.all(-1)
    if np.any(whole != event.any(-1)):
        raise ChoiceError(
            "a part of an event is missing.",
            at=site.at(),
            got=f"{int(np.sum(whole != event.any(-1)))} events of {type(base).__name__} observed in part",
            expected=f"each event [{','.join(map(str, base.event_shape))}] observed as a whole, or missing as a whole",
            fix="write the event as sites of its own, each number given those before it; or leave out the whole event",
        )
    return np.asarray(whole)


# --- the program ------------------------------------------------------------------------------------------------


def _partly(splits: tuple[Split, ...], source: Source) -> Any:
    staged = stage_program(lambda: source.inline((), source.name), (), {})
    by_address = {s.address: s for s in splits}
    found = [info for info in list_sites(staged.jaxpr, whole=True) if info.site.address in by_address]
    places = {info.path: _Place(by_address[info.site.address], info) for info in found}
    masks = {path: place.split.observed.array() for path, place in places.items()}
    splitter = _Splitter(places)
    interpreter = Interpreter(splitter.handle, lambda *_: {}, "partly_observed", bind_whole, splitter.lanes)
    return staged.result(run(staged.jaxpr, [], interpreter, masks).value)


_PARTLY = GenerativeFunction(_partly)


class _Place(NamedTuple):
    split: Split
    info: SiteInfo


class _Splitter(NamedTuple):
    """The interpreter that splits sites.

    Attributes:
      places: by path.
    """

    places: Mapping[Path, _Place]

    def handle(self, visit: Visit, operands: Sequence[Any], observed: Any) -> Outcome:
        """A site that stands in no lanes, or in lanes that could not be taken as a whole."""
        if visit.path not in self.places:
            return Outcome(bind_site(operands, visit.site), {}, {})
        place = self.places[visit.path]
        if isinstance(observed, np.ndarray):
            value = _joined(place, observed, lambda address, index: _bind(visit.site, operands, address, index))
        else:
            value = _either(place, operands, observed, ())
        return Outcome(value, {}, {})

    def lanes(self, eqn: Eqn, values: list[Any], given: Inputs, path: Path) -> Outcome | None:
        """A site in lanes of `vmap` and nothing else: its elements over all lanes are split at once."""
        inside = [(p, x) for p, x in given.items() if p[: len(path)] == path]
        if len(inside) != 1 or not isinstance(inside[0][1], np.ndarray):
            return None
        here, observed = inside[0]
        each = [_Operand(x, (0,) if m else ()) for x, m in zip(values, eqn.params["lane"].mapped, strict=True)]
        found = _site_in_lanes(eqn.params["jaxpr"], each, 1)
        if found is None:
            return None
        site, each = found
        num_lanes = observed.ndim - len(separate(_distribution(site, [x.value for x in each]))[1])

        def bind(address: Address, index: tuple[Any, ...]) -> Array:
            lanes, rest = index[:num_lanes], index[num_lanes:]
            own = [x.value[tuple(lanes[a] for a in x.axes)] if x.axes else x.value for x in each]
            axes = [0 if x.axes else None for x in each]
            mapped = jax.vmap(lambda xs, i: _bind(site, xs, address, i), in_axes=(axes, 0), axis_size=len(lanes[0]))
            return mapped(own, tuple(map(jnp.asarray, rest)))

        return Outcome([_joined(self.places[here], observed, bind)], {}, {})


class _Operand(NamedTuple):
    """An operand of a site in lanes: an array, and which lanes its leading axes are."""

    value: Any
    axes: tuple[int, ...]


def _site_in_lanes(jaxpr: Any, operands: list[_Operand], depth: int) -> tuple[Site, list[_Operand]] | None:
    """The site that lanes consist of, and its operands; None where they hold more than one."""
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    if len(eqns) != 1 or list(eqns[0].outvars) != list(outvars) or eqns[0].primitive not in (sample_p, lanes_p):
        return None
    (eqn,) = eqns
    env = dict(zip([*constvars, *invars], [*(_Operand(x, ()) for x in consts), *operands], strict=True))
    own = [_Operand(v.val, ()) if isinstance(v, _jax.Literal) else env[v] for v in eqn.invars]
    if eqn.primitive is sample_p:
        return eqn.params["site"], own
    own = [
        x._replace(axes=(*x.axes, depth)) if mapped else x
        for x, mapped in zip(own, eqn.params["lane"].mapped, strict=True)
    ]
    return _site_in_lanes(eqn.params["jaxpr"], own, depth + 1)


def _joined(place: _Place, observed: np.ndarray, bind: Any) -> Array:
    """Two vectors of elements, each a site, put together.

    Args:
      place: the site.
      observed: bool[*loops, *batch].
      bind: (address, index of elements) -> their values, [k, *event].
    """
    parts, positions = [], []
    for address, wanted in ((place.split.address, observed), (place.split.missing, ~observed)):
        index = np.nonzero(wanted)
        parts.append(bind(address, index))
        positions.append(np.flatnonzero(wanted))
    order = np.argsort(np.concatenate(positions))
    return jnp.concatenate(parts)[order].reshape(place.info.loop_shape + place.info.site.shape)


def _either(place: _Place, operands: Sequence[Any], observed: Array, index: tuple[Any, ...]) -> Array:
    """Each element as one of two sites, by a mask that is known by value only, such as that of a step of a scan."""
    if observed.ndim:
        each = jax.vmap(lambda here, i: _either(place, operands, here, (*index, i)))
        return each(observed, jnp.arange(observed.shape[0]))
    mask, known = place.split.observed.array(), not place.info.in_branch

    def branch(address: Address, wanted: np.ndarray) -> Any:
        site = replace(place.info.site, present=Integers.of(wanted) if known else None)
        return lambda: _bind(site, operands, address, index)

    return lax.cond(observed, branch(place.split.address, mask), branch(place.split.missing, ~mask))


def _distribution(site: Site, operands: Sequence[Any]) -> Any:
    return site.distribution.combine(operands[: site.num_distribution])


def _bind(site: Site, operands: Sequence[Any], address: Address, index: tuple[Any, ...]) -> Any:
    """Binds some elements of a site.

    Args:
      site: the site.
      operands: its operands.
      address: of the elements.
      index: of the elements, for each axis of its batch; of a site without a batch none.
    """
    site = replace(site, address=address)
    if not index:
        return bind_site(operands, site)
    d = _distribution(site, operands)
    operands, weight = split_weight(site, operands)
    try:
        d = take(d, index)
    except Inseparable as error:
        raise DistributionError(
            "the elements of a site that is observed in part cannot be told apart.",
            at=site.at(),
            got=f"{type(separate(d)[0]).__name__}, whose `{error}` may belong to elements or to all",
            expected="a distribution whose arrays have the axes of its batch",
            fix="put one element's site under jax.vmap",
        ) from None
    skeleton, leaves = partition(d, keep=concrete_integer)
    value = check_distribution(d, skeleton, leaves, site.at())
    extra, weights = operands[site.num_distribution :], [] if weight is None else [weight]
    site = replace(
        site, distribution=skeleton, num_distribution=len(leaves), shape=tuple(value.shape), support=describe(d)
    )
    if site.estimator is not None:
        check_points(site, tuple(_jax.typeof(x) for x in [*leaves, *extra]))
    return bind_site([*leaves, *extra, *weights], site)
