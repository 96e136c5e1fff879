"""Groups of draws as an ArviZ DataTree.

The parts of a nested address are joined by ".", which also stands for a "/": xarray's names hold none. Within a group
no two variables have one name, and none has the name of a dimension: xarray would take it for a coordinate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vipl.errors import AddressError, ChoiceError, show_address, show_addresses
from vipl.gen._choices import Address, Choices, flatten

_OF_ARVIZ = ("chain", "draw", "sample")
"""The names of dimensions of every draw."""

_OF_DATA = ("observed_data", "constant_data")
"""The groups whose arrays have no axes of chains and draws."""


def tree_of(
    groups: Mapping[str, Choices],
    constant: Mapping[str, Any],
    at: str,
    *,
    coords: Mapping[str, Any],
    dims: Mapping[str, Any],
) -> Any:
    """An ArviZ DataTree.

    Args:
      groups: choices by address, in all but those of data with a leading axis of draws.
      constant: constant data by name.
      at: the call, for messages.
      coords: as ArviZ has them.
      dims: as ArviZ has them.

    Raises:
      AddressError: two addresses have one name, or an address that of a dimension beside it.
      ChoiceError: a variable has fewer axes than names are given, or a coordinate has another length.
    """
    import arviz_base

    trees = {name: variables(flatten(choices, name)) for name, choices in groups.items()}
    trees = {
        g: {k: np.asarray(x) if g in _OF_DATA else np.asarray(x)[None] for k, x in t.items()} for g, t in trees.items()
    }
    trees = {name: tree for name, tree in trees.items() if tree}
    if constant:
        trees["constant_data"] = {k: np.asarray(x) for k, x in constant.items()}
    for group, tree in trees.items():
        _check_told_apart(group, tree, dims, at)
        _check_lengths(group, tree, dims, coords, at)
    return arviz_base.from_dict(trees, coords=dict(coords), dims=dict(dims))


def variables(flat: Mapping[Address, Any]) -> dict[str, Any]:
    """By the names that xarray takes."""
    named: dict[str, Any] = {}
    for address, value in flat.items():
        name = variable(address)
        if name in named:
            raise AddressError(
                "two addresses have one name in ArviZ.",
                at=f"{show_address(address)}",
                got=f"the name {name!r} for {show_addresses([a for a in flat if variable(a) == name])}",
                expected="addresses that differ when their parts are joined by '.'",
                fix=f"rename {show_address(address)}",
            )
        named[name] = value
    return named


def dims_by_name(dims: Mapping[str, Any], constant: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions of each variable by the name that xarray takes; a word is one dimension, as in xarray."""
    named = {variable((x,)) if isinstance(x, str) and x not in constant else x: given for x, given in dims.items()}
    return {name: [given] if isinstance(given, str) else given for name, given in named.items()}


def check_named(dims: Mapping[str, Any], known: list[str], at: str) -> None:
    """Raises where dimensions are named of something that is not known."""
    unknown = [name for name in dims if name not in known]
    if unknown:
        raise AddressError(
            "dimensions are named for an address that the model does not have.",
            at=at,
            got=", ".join(map(repr, unknown)),
            expected=f"names among {', '.join(map(repr, known))}",
            fix='name them by address, as in dims={"z": ["school"]}; nested addresses are joined by "."',
        )


def check_dims(dims: Mapping[str, Any], at: str) -> None:
    """Raises where a dimension has a name that ArviZ has for its own."""
    taken = [(name, dim) for name, given in dims.items() for dim in given or () if dim in _OF_ARVIZ]
    if taken:
        (name, dim), *_ = taken
        raise AddressError(
            "a dimension has a name that ArviZ takes for its own.",
            at=at,
            got=f"{dim!r} of {name!r}",
            expected="other names than 'chain', 'draw' and 'sample'",
            fix=f"rename it, as in dims={{{name!r}: ['row']}}",
        )


def variable(address: Address) -> str:
    """The name of an address, as xarray takes it."""
    return ".".join(address).replace("/", ".")


def _axes_before(group: str) -> int:
    return 0 if group in _OF_DATA else 2


def _names_of_axes(group: str, name: str, x: np.ndarray, dims: Mapping[str, Any]) -> list[Any]:
    """The dimensions of a variable beyond chains and draws; None where ArviZ gives the name."""
    return [*(dims.get(name) or ()), *[None] * x.ndim][: x.ndim - _axes_before(group)]


def _check_told_apart(group: str, tree: Mapping[str, np.ndarray], dims: Mapping[str, Any], at: str) -> None:
    """Raises where a variable has the name of a dimension beside it."""
    axes = {"chain", "draw"} if _axes_before(group) else set()
    for name, x in tree.items():
        given = _names_of_axes(group, name, x, dims)
        own = {f"{name}_dim_{k}" if dim is None else dim for k, dim in enumerate(given)}
        axes |= own - {name} if group == "constant_data" else own  # x along x is a coordinate, as it is meant
    for name in axes.intersection(tree):
        raise AddressError(
            "an address has the name of a dimension in ArviZ, which would take its values for a coordinate.",
            at=at,
            got=f"{name!r} in {group}, beside the dimensions {', '.join(map(repr, sorted(axes, key=str)))}",
            expected="addresses that are no names of dimensions",
            fix=f"rename the site {name!r}, or the dimension, by dims=",
        )


def _check_lengths(
    group: str, tree: Mapping[str, np.ndarray], dims: Mapping[str, Any], coords: Mapping[str, Any], at: str
) -> None:
    """Raises where names of dimensions are more than axes, or coordinates are not as many as elements."""
    for name, x in tree.items():
        shape, given = x.shape[_axes_before(group) :], list(dims.get(name) or ())
        if len(given) > len(shape) and group != "log_likelihood":  # an event has one density: ArviZ leaves its axes out
            raise ChoiceError(
                "more dimensions are named than a variable has.",
                at=at,
                got=f"{given!r} for {name!r} of shape {shape} in {group}",
                expected=f"at most {len(shape)}: one for each axis beyond chains and draws",
                fix=f"write dims={{{name!r}: {given[: len(shape)]!r}}}",
            )
        if group == "log_likelihood":  # an event has one density, and ArviZ names the axes that are left
            given = given[: len(shape)]
        named = [f"{name}_dim_{k}" if dim is None else dim for k, dim in enumerate([*given, *[None] * len(shape)])]
        for dim, length in zip(named, shape, strict=False):
            labels = coords.get(dim)
            if isinstance(labels, (list, range, np.ndarray, jax.Array)) and len(labels) != length:
                raise ChoiceError(
                    "coordinates are not as many as the elements along their dimension.",
                    at=at,
                    got=f"{len(labels)} coordinates for {dim!r}",
                    expected=f"{length}, the length of {name!r} along {dim!r} in {group}",
                    fix=f"pass coords={{{dim!r}: ...}} with {length} labels",
                )
