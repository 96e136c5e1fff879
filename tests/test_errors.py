"""Every malformed program is told, in four lines, what is wrong, where, and what to write instead.

The messages are pinned, word for word, in `malformed.txt` (line numbers left out); `python -m tests.helpers.pin` writes
it.
"""

import pickle
import re
from pathlib import Path

import jax
import jax.extend.core
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from jax import lax

import vipl
from tests.helpers.malformed import KEY, MALFORMED
from tests.helpers.pin import message

PINNED = dict(
    re.findall(
        r"^## (\w+)\n(.*?)(?=^## |\Z)", (Path(__file__).parent / "malformed.txt").read_text(), re.DOTALL | re.MULTILINE
    )
)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_program_gets_its_message(name):
    with pytest.raises(vipl.errors.ViplError) as caught:
        MALFORMED[name]()
    assert message(caught.value) == PINNED[name]
    assert [line.split(":")[0].strip() for line in str(caught.value).split("\n")[1:]] == [
        "at",
        "got",
        "expected",
        "fix",
    ]


def test_every_message_is_pinned():
    assert set(PINNED) == set(MALFORMED)
    assert len(PINNED) >= 25
    print(f"\n{len(PINNED)} malformed programs")


def test_a_site_in_custom_root_raises():
    """JAX 0.12 itself refuses the effect there; JAX 0.10 reaches our own message."""

    def program():
        f = lambda x: x - 1.0 + 0 * vipl.sample("x", dist.Normal(0.0, 1.0))  # noqa: E731
        return lax.custom_root(f, 0.0, lambda f, x: x - f(x), lambda g, y: y / g(1.0))

    with pytest.raises(
        (vipl.errors.ControlFlowError, NotImplementedError), match=r"vipl.sample|derivative is taken around a site"
    ):
        vipl.seed(program)(KEY)


def test_a_leftover_site_does_not_compile():
    """The last net: JAX refuses to lower the effect, wherever it may hide."""
    jaxpr = jax.make_jaxpr(lambda: vipl.sample("x", dist.Normal(0.0, 1.0)))()
    with pytest.raises(ValueError, match="Cannot lower jaxpr with effects: {vipl.sample"):
        jax.jit(jax.extend.core.jaxpr_as_fun(jaxpr)).lower()


def test_axis_errors_of_jax_pass_through():
    """Nothing wrong is computed: `out_axes=None` of a drawn value is JAX's own error."""
    with pytest.raises(ValueError, match="out_axes"):
        vipl.seed(lambda: jax.vmap(lambda m: vipl.sample("x", dist.Normal(m, 1.0)), out_axes=None)(jnp.zeros(3)))(KEY)


def test_an_error_reaches_another_process():
    with pytest.raises(vipl.errors.ViplError) as caught:
        MALFORMED["wrong_shape"]()
    there = pickle.loads(pickle.dumps(caught.value))
    assert type(there) is type(caught.value)
    assert str(there) == str(caught.value)
    assert there.got == caught.value.got
