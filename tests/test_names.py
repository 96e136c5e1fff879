"""The public names: where they are, where those of before 0.2 went, and what an import brings along."""

import importlib
import re
import subprocess
import sys

import pytest

import vipl
from vipl._moved import MOVED

MODULES = "diagnostics distributions errors estimators guides inference interop objectives testing"
VERBS = (
    "gen sample factor scaled partly_observed deterministic random_key sites detach seed expectation fit infer predict "
    "load marginal normalize"
)
TYPES = "Program GenerativeFunction Source Trace Expectation Fit Posterior"
ESTIMATORS = (
    "Reparam Score LeaveOneOut Enumerate LocalEnumerate MeasureValued CoupledAlternative ARM DisARM ImplicitReparam "
    "RejectionReparam Relax StraightThrough GumbelSoftmax ReinMax Biased"
)


def test_the_names_at_the_top():
    names = f"{MODULES} {VERBS} {TYPES} {ESTIMATORS}".split()
    assert sorted(vipl.__all__) == sorted(names)
    assert sorted(name for name in dir(vipl) if not name.startswith("_")) == sorted(names)
    assert len(names) <= 49


@pytest.mark.parametrize("name", MOVED)
def test_an_old_name_tells_the_new_one(name):
    """Read, imported, or asked for."""
    module, new = MOVED[name].split("(")[0].rsplit(".", 1)
    assert hasattr(importlib.import_module(module), new)
    assert not hasattr(vipl, name)
    assert getattr(vipl, name, None) is None
    text = f"^{re.escape(f'vipl.{name} is {MOVED[name]} since version 0.2')}$"
    with pytest.raises(AttributeError, match=text):
        getattr(vipl, name)
    with pytest.raises(ImportError, match=text):
        exec(f"from vipl import {name}")


def test_a_name_that_never_was():
    assert not hasattr(vipl, "Sampel")
    with pytest.raises(AttributeError, match="module 'vipl' has no attribute 'Sampel'"):
        vipl.Sampel  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError, match="cannot import name 'Sampel' from 'vipl'"):
        exec("from vipl import Sampel")


@pytest.mark.parametrize("code", ["from vipl import demo", "import vipl; assert not hasattr(vipl, 'Sampel')"])
def test_the_first_name_that_is_asked_for(code):
    """In a fresh process, where nothing of the package has been asked for before."""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_star_import_brings_the_names():
    namespace = {}
    exec("from vipl import *", namespace)
    assert set(vipl.__all__) <= set(namespace)


def modules_after(code):
    """What a fresh process has imported."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_vipl_imports_no_package_for_later():
    """Flax, matplotlib and tqdm are imported by what needs them, if JAX, NumPyro and optax have not done it."""
    brought = modules_after("import vipl") - modules_after("import numpyro.distributions, optax, jax")
    assert {"vipl", "vipl.interop.flax"} <= brought
    assert {name.split(".")[0] for name in brought} & {"flax", "matplotlib", "tqdm", "sklearn", "scipy"} == set()
