"""Choices: nested dicts of arrays, one level for each part of an address."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vipl import _jax
from vipl._types import Array, PyTree
from vipl.analysis.supports import OfSite, origin
from vipl.errors import AddressError, ChoiceError, show_address, show_addresses, show_aval
from vipl.ir.batching import sites_of_value
from vipl.ir.partition import as_array, canonical
from vipl.ir.primitives import Site
from vipl.ir.sites import SiteInfo

Address = tuple[str, ...]

Addresses = str | Collection[str | Address]
"""One address that is a string, or several."""

Choices = dict[str, PyTree]
"""Nested dicts of arrays, one level for each part of an address."""


def check_address(address: object, at: str) -> Address:
    """An address as a tuple of strings; raises where it is not one."""
    parts: tuple[Any, ...] = address if isinstance(address, tuple) else (address,)
    if not parts or not all(isinstance(p, str) and p for p in parts):
        raise AddressError(
            "an address is not a string.",
            at=at,
            got=repr(address) if isinstance(address, (str, tuple, int, float)) else type(address).__name__,
            expected="a non-empty string, or a tuple of them",
            fix='write sample("name", distribution)',
        )
    return parts


def nest(flat: Mapping[Address, object]) -> Choices:
    """Nested dicts from addresses."""
    out: Choices = {}
    for address, value in flat.items():
        level = out
        for part in address[:-1]:
            level = level.setdefault(part, {})
        level[address[-1]] = value
    return out


def merge(*parts: Choices) -> Choices:
    """Choices of several parts of one program in one nested dict; raises where two have one address."""
    flat: dict[Address, Any] = {}
    for part in parts:
        more = flatten(part, "the choices")
        both = [a for a in more if a in flat]
        if both:
            drawn = _drawn(flat[both[0]]) or _drawn(more[both[0]])
            raise AddressError(
                "an address has two values: one that is given, and one that is drawn or given again.",
                at=drawn.at if drawn else "the choices",
                got=f"{show_addresses(both)} twice",
                expected="data at other addresses than the guide, proposal, or value that is assessed",
                fix=f"leave {show_address(both[0])} out of one of them",
            )
        flat |= more
    return nest(flat)


def flatten(choices: object, what: str) -> dict[Address, Any]:
    """Addresses from nested dicts; a leaf is whatever is not a dict."""
    if not isinstance(choices, dict):
        raise ChoiceError(
            "choices are not a dict.",
            at=what,
            got=show_aval(choices),
            expected='nested dicts of arrays, such as {"x": 1.0, "layer": {"w": w}}',
            fix='write a dict from address to value, such as {"y": y}; or pass trace.choices',
        )
    out: dict[Address, Any] = {}
    for name, value in choices.items():
        if not isinstance(name, str):
            raise AddressError(
                "an address in the choices is not a string.",
                at=what,
                got=repr(name),
                expected="strings as keys; nested addresses as nested dicts",
                fix=f"write {_nested_hint(name)}",
            )
        if isinstance(value, dict):
            out |= {(name, *rest): x for rest, x in flatten(value, what).items()}
        else:
            out[(name,)] = _canonical(value, f"{show_address((name,))} of {what}")
    return out


def _canonical(value: object, at: str) -> object:
    try:
        return canonical(value)
    except ChoiceError as error:
        raise error.located(at) from None


def _drawn(value: object) -> OfSite | None:
    known = origin(value)
    return known if isinstance(known, OfSite) else None


def _nested_hint(name: object) -> str:
    if isinstance(name, tuple) and all(isinstance(p, str) for p in name):
        return "{" + ": {".join(f'"{p}"' for p in name) + ": value" + "}" * len(name)
    return f'"{name}" instead'


def match(choices: Choices, found: Sequence[SiteInfo], program: str, *, complete: bool) -> dict[Address, Array]:
    """The choices of a program by address, checked against its sites.

    Raises:
      AddressError: an address is unknown, or (with `complete`) missing.
      ChoiceError: a value has the wrong shape or kind of dtype.
    """
    given = flatten(choices, f"the choices for {program}")
    by_address: dict[Address, SiteInfo] = {}
    for info in found:
        by_address.setdefault(info.site.address, info)
    for address, value in given.items():
        if address not in by_address:
            raise _unknown(address, value, given, by_address, program)
    missing = [a for a in by_address if a not in given]
    if complete and missing:
        raise AddressError(
            "a site has no value.",
            at=by_address[missing[0]].site.at(),
            got=f"choices at {show_addresses(given)}",
            expected=f"{program}'s addresses {show_addresses(by_address)}",
            fix=f"add a value for {show_address(missing[0])}, or use generate, which draws what is missing",
        )
    return {a: _checked(value, by_address[a]) for a, value in given.items()}


def _unknown(
    address: Address, value: object, given: Collection[Address], by_address: Collection[Address], program: str
) -> AddressError:
    drawn = _drawn(value)
    nearest = _nearest(address, [a for a in by_address if a not in given])
    return AddressError(
        f"{'the guide samples' if drawn else 'the choices hold'} an address that {program} does not have.",
        at=drawn.at if drawn else f"the choices for {program}",
        got=f"choices at {show_addresses(given)}",
        expected=f"{program}'s addresses {show_addresses(by_address)}",
        fix=(f"rename it to {show_address(nearest)}, or " if nearest else "")
        + f"leave {show_address(address)} out of the choices",
    )


def _nearest(address: Address, known: Iterable[Address]) -> Address | None:
    import difflib

    names = {"/".join(a).lower(): a for a in known}
    close = difflib.get_close_matches("/".join(address).lower(), names, n=1, cutoff=0.5)
    return names[close[0]] if close else None


def _checked(value: object, info: SiteInfo) -> Array:
    site = info.site
    shape = info.loop_shape + site.shape
    expected = f"{np.dtype(site.dtype)}[{','.join(map(str, shape))}]"
    array = as_array(value)
    if array is None:
        raise ChoiceError(
            "a given value is not an array.",
            at=site.at(),
            got=show_aval(value),
            expected=expected,
            fix="convert it: numpy.asarray(value, float)"
            if _holds_numbers(value)
            else "pass a number, an array, or a list or a data frame of numbers",
        )
    array = array if isinstance(array, jax.Array) else jnp.asarray(array)
    if array.shape != shape:
        loops = "".join(f"[{loop.size} {loop.kind}s]" for loop in info.loops)
        raise ChoiceError(
            "a given value has the wrong shape.",
            at=site.at(),
            got=show_aval(array),
            expected=f"{expected}{', of which the leading axes are ' + loops if loops else ''}",
            fix="give one event per site; more data want jax.vmap around the site, or .expand in the distribution",
        )
    if _fits(array.dtype, site.dtype) and _in_range(array, site.dtype):
        return array if array.dtype == site.dtype else array.astype(site.dtype)
    whole = _whole(array, site.dtype)
    if whole is None:
        error = _of_wrong_kind(array, site, expected)
        if _drawn(value) and jnp.issubdtype(array.dtype, jnp.floating):
            error = error.advised(
                "take a distribution over integers; a relaxation is named at this site, too, as in "
                f'sample("{site.address[-1]}", ..., vipl.StraightThrough())'
            )
        raise error
    return whole


def _holds_numbers(value: object) -> bool:
    """Whether an array of objects is one of numbers."""
    try:
        if not isinstance(value, np.ndarray) or value.dtype != object:
            return False
        return bool(np.isfinite(value.astype(float)).all())
    except (TypeError, ValueError):
        return False


def _of_wrong_kind(array: Array, site: Site, expected: str) -> ChoiceError:
    """The error for a value whose dtype is not that of its site."""
    shown, fix = show_aval(array), f"convert it: value.astype({np.dtype(site.dtype).name!r})"
    if not isinstance(array, _jax.Tracer):
        numbers = np.asarray(array)
        if np.isrealobj(numbers) and (missing := int(np.isnan(numbers).sum())):
            shown += f" with {missing} NaN"
            fix = "if these are not observed, write program, data = vipl.partly_observed(program, data), and pass both"
        elif np.isrealobj(numbers) and (others := numbers[~np.isfinite(numbers) | (numbers != np.round(numbers))]).size:
            shown += f" {others[0]}" if not numbers.ndim else f", among them {others[0]}"
            fix = "round them, if that is meant: jnp.round(value); or take a distribution over real numbers"
        elif np.isrealobj(numbers) and numbers.size and (most := np.abs(numbers).max()) > jnp.iinfo(site.dtype).max:
            shown += f" {numbers}" if not numbers.ndim else f", among them {most}"
            more = (
                ""
                if jax.dtypes.canonicalize_dtype(np.int64) == np.int64
                else 'call jax.config.update("jax_enable_x64", True) first; or '
            )
            fix = f"{more}take a distribution over real numbers"
        elif not numbers.ndim:
            shown += f" {numbers}"
    return ChoiceError(
        "a given value has the wrong kind of dtype.",
        at=site.at(),
        got=shown,
        expected=expected,
        fix=fix,
    )


def _whole(array: Array, dtype: np.dtype) -> Array | None:
    """Floats as integers, where they are integers; None where they are not, or were drawn.

    What floats of data are is seen only when a compiled program runs: one that is no integer then becomes the least
    integer, which lies in no support, so that the density is zero, as it is at the float itself.
    """
    if not jnp.issubdtype(dtype, jnp.integer) or not jnp.issubdtype(array.dtype, jnp.floating):
        return None
    most = 2.0 ** (jnp.iinfo(dtype).bits - 1)
    if not isinstance(array, _jax.Tracer):
        values = np.asarray(array, np.float64)
        whole = np.where(np.abs(values) < most, values, 0.0).astype(dtype)  # NaN is not less
        return jnp.asarray(whole) if np.array_equal(whole, values) else None
    if any(sites_of_value(array)):
        return None
    whole = (array == jnp.round(array)) & (jnp.abs(array) < most)
    return jnp.where(whole, array.astype(dtype), jnp.iinfo(dtype).min)


def _in_range(array: Array, dtype: np.dtype) -> bool:
    """Whether integers stay what they are as integers of another dtype; of traced ones this is not known."""
    integers = jnp.issubdtype(array.dtype, jnp.integer) and jnp.issubdtype(dtype, jnp.integer)
    if not integers or isinstance(array, _jax.Tracer) or jnp.can_cast(array.dtype, dtype) or not array.size:
        return True
    numbers, kind = np.asarray(array), jnp.iinfo(dtype)
    return bool(kind.min <= numbers.min() and numbers.max() <= kind.max)


def _fits(given: np.dtype, wanted: np.dtype) -> bool:
    order = [jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating]
    rank = [next(i for i, k in enumerate(order) if jnp.issubdtype(d, k)) for d in (given, wanted)]
    return rank[0] <= rank[1]
