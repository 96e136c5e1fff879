"""Double precision for all tests, quick compilation; the seed can be moved by VIPL_TEST_SEED."""

import gc
import importlib.metadata
import os

# Test programs are compiled once and run for a fraction of a second: unoptimized code is the quicker choice.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
FLAGS.append(
    "--xla_cpu_parallel_codegen_split_count=1"
)  # one module for each program: its parts cost more than they save
if importlib.metadata.version("jax").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # compiles in half the time; an unknown flag from 0.12 on
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

# Tracing makes many objects that live on; looking for garbage among them each few thousand is a seventh of all time.
gc.set_threshold(100_000, 20, 100)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)

from tests.helpers import shares  # noqa: E402
from vipl.cache.programs import forget  # noqa: E402

SEED = int(os.environ.get("VIPL_TEST_SEED", "20240620"))


@pytest.fixture
def key(request):
    """One key for each test, moved by VIPL_TEST_SEED."""
    return jax.random.fold_in(jax.random.key(SEED), sum(map(ord, request.node.name)))


@pytest.fixture
def typed_face(monkeypatch):
    """Public functions and methods look at their signatures, in each call of a test."""
    from tests.helpers.typed import typed_functions

    for place, name, fn in typed_functions():
        monkeypatch.setattr(place, name, fn)


def pytest_addoption(parser):
    parser.addoption("--share", choices=shares.SHARES, help="the tests alone that the whole check runs on that JAX")


def pytest_collection_modifyitems(config, items):
    share = config.getoption("--share")
    if share is None:
        return

    def is_kept(item):
        marked = [name for name in shares.SHARES if item.get_closest_marker(name)]
        return share in marked if marked else shares.is_in(share, item.nodeid)

    config.hook.pytest_deselected(items=[item for item in items if not is_kept(item)])
    items[:] = filter(is_kept, items)


def pytest_report_header(config):
    return f"jax {jax.__version__}, VIPL_TEST_SEED={SEED}"


_FINISHED = []


@pytest.fixture(autouse=True)
def forget_compiled_programs():
    """Compiled programs would fill the memory."""
    yield
    _FINISHED.append(1)
    if len(_FINISHED) % 90 == 0:
        jax.clear_caches()
        forget()
        gc.collect()
