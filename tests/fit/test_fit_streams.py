"""`vipl.fit` with batches that are read one by one, and with checkpoints."""

import itertools
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import vipl
from tests.fit.test_fits import BOTH, FROZEN, SGDS, START, TWO, measured, powers, same, square, stateful
from vipl.fit import fit

ROOT = Path(__file__).parent.parent.parent
KEY = jax.random.key(37)
OPTIONS = {"key": KEY, "progress": False}


@vipl.expectation(has_aux=True)
def seen(params, batch):
    """Says which batch it gets."""
    x = vipl.sample("x", dist.Normal(params, 1.0))
    return -jnp.mean((x - batch["x"]) ** 2), batch["x"][0]


def batches(start=0, size=2):
    """Batches by their number, without end."""
    for n in itertools.count(start):
        yield {"x": np.full(size, float(n))}


class Loader:
    """As torch's: an iterable that is gone through again and again."""

    def __init__(self, sizes):
        self.sizes, self.passes = sizes, 0

    def __len__(self):
        return len(self.sizes)

    def __iter__(self):
        self.passes += 1
        return ({"x": np.full(size, float(n))} for n, size in enumerate(self.sizes))


# --- streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(9,), (1, 8), (4, 5)])
@pytest.mark.parametrize(
    "make", [batches, lambda: batches, lambda: Loader([2, 2, 2])], ids=["iterator", "fn", "loader"]
)
def test_parts_of_a_fit_to_a_stream_are_the_fit_bit_for_bit(make, parts):
    there = None
    for n in parts:
        there = fit(seen, 0.3, optax.adam(0.1), data=make(), num_steps=n, resume=there, **OPTIONS)
    whole = fit(seen, 0.3, optax.adam(0.1), data=make(), num_steps=9, **OPTIONS)
    same(there, whole)
    np.testing.assert_array_equal(whole.metrics, np.arange(9) % 3 if isinstance(make(), Loader) else np.arange(9))


def test_a_step_of_a_stream_is_a_step_with_its_batch():
    options = {"num_steps": 1, **OPTIONS}
    streamed = fit(seen, 0.3, optax.adam(0.1), data=batches(5), **options)
    same(streamed, fit(seen, 0.3, optax.adam(0.1), data=next(batches(5)), **options))


def test_a_loader_with_a_ragged_last_batch():
    loader = Loader([4, 4, 1])
    found = fit(seen, 0.3, optax.adam(0.1), data=loader, num_steps=7, **OPTIONS)
    np.testing.assert_array_equal(found.metrics, [0, 1, 2, 0, 1, 2, 0])
    assert loader.passes == 3


def test_no_more_than_a_few_batches_are_read_ahead():
    read = []

    def counted():
        for n, batch in enumerate(batches()):
            read.append(n)
            yield batch

    most = []
    found = fit(
        seen,
        0.3,
        optax.adam(0.1),
        data=counted(),
        num_steps=6,
        callback=lambda f: most.append(len(read) - int(f.stopped)),
        callback_every=1,
        **OPTIONS,
    )
    assert int(found.stopped) == 6
    assert 1 <= max(most) <= 3


def test_a_stream_of_containers_that_numpy_makes_arrays_of():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.full(2, 3.0)

    found = fit(seen, 0.3, optax.adam(0.1), data=iter([{"x": Tensor()}] * 4), num_steps=4, **OPTIONS)
    np.testing.assert_array_equal(found.metrics, 3.0)


def test_a_stream_that_ends_ends_the_fit():
    text = (
        r"vipl.fit ended after 4 of 9 steps of seen: the data have no more batches. The fit so far is returned: its "
        r"`values` are NaN after these."
    )
    with pytest.warns(RuntimeWarning, match=text) as caught:
        found = fit(seen, 0.3, optax.adam(0.1), data=itertools.islice(batches(), 4), num_steps=9, **OPTIONS)
    assert caught[0].filename == __file__
    assert int(found.stopped) == 4
    assert np.isnan(found.values[4:]).all()
    more = fit(seen, 0.3, optax.adam(0.1), data=batches(), num_steps=5, resume=found, **OPTIONS)
    same(more, fit(seen, 0.3, optax.adam(0.1), data=batches(), num_steps=9, **OPTIONS))


def test_what_a_stream_raises_holds_the_fit():
    def broken():
        yield from itertools.islice(batches(), 3)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full") as error:
        fit(seen, 0.3, optax.adam(0.1), data=broken(), num_steps=9, **OPTIONS)
    raised: Any = error.value
    assert int(raised.fit.stopped) == 3


def test_a_number_of_a_stream_that_is_not_finite_is_found():
    @vipl.expectation
    def root(params, batch):
        return vipl.sample("z", dist.Normal(params, jnp.sqrt(2.5 - batch["x"][0])))

    with pytest.warns(RuntimeWarning, match=r'stopped at step 3 of 9 .* is "z" in root'):
        fit(root, 0.3, optax.adam(0.1), data=batches(), num_steps=9, **OPTIONS)


def test_starts_share_the_batches_of_a_stream():
    found = fit(seen, 0.3, optax.adam(0.1), data=batches(), num_steps=4, num_restarts=3, **OPTIONS)
    assert found.restarts is not None
    np.testing.assert_array_equal(found.restarts.metrics, [[0, 1, 2, 3]] * 3)


@pytest.mark.parametrize(
    "data", [range(4), [1.0, 2.0], np.arange(3.0), np.arange(3.0).data], ids=lambda x: type(x).__name__
)
def test_what_was_an_array_is_one(data):
    @vipl.expectation
    def total(params, data):
        return -((params - sum(jnp.sum(x) for x in jax.tree.leaves(data))) ** 2)

    found = fit(total, 0.0, optax.sgd(0.5), data=data, num_steps=1, **OPTIONS)
    assert found.params == sum(data)


# --- checkpoints --------------------------------------------------------------------------------------------

FITS = {
    "plain": {
        "objective": square,
        "params": 0.37,
        "optimizer": optax.adam(0.1),
        "data": jnp.arange(11.0),
        "batch_size": 3,
    },
    "frozen": {"objective": powers, "params": FROZEN, "optimizer": optax.sgd(0.1), "maximize": False, "average": 0.5},
    "starts": {"objective": measured, "params": jax.random.normal, "optimizer": optax.adam(0.1), "num_restarts": 3},
    "turns": {"objective": BOTH, "params": TWO, "optimizer": SGDS, "turns": {"a": 2, "b": 1}},
    "state": {"objective": stateful, "params": 0.37, "optimizer": optax.lbfgs(), "data": jnp.ones(3), "state": START},
    "loader": {"objective": seen, "params": 0.3, "optimizer": optax.adam(0.1), "data": Loader([2, 2, 1])},
    "function": {"objective": seen, "params": 0.3, "optimizer": optax.adam(0.1), "data": batches},
}


@pytest.mark.parametrize("case", FITS)
def test_a_fit_goes_on_from_its_folder(case, tmp_path):
    """Ended by its callback, called again as it was, then again for more steps, then again as it was."""
    options = FITS[case] | OPTIONS
    folder = {"checkpoint": tmp_path / "folder"}
    ended = fit(**options | folder, num_steps=12, callback=lambda f: f.stopped >= 5, callback_every=1)
    assert int(ended.stopped) == 5
    taken = []
    watched = {"callback": lambda f: taken.append(int(f.stopped)), "callback_every": 1, **folder}
    same(fit(**options | watched, num_steps=12), fit(**options, num_steps=12))
    longer = fit(**options | watched, num_steps=20)
    same(longer, fit(**options, num_steps=20))
    same(longer, fit(**options | watched, num_steps=20))
    assert taken == list(range(6, 21))


def test_a_fit_that_is_continued_has_its_own_folder(tmp_path):
    options = FITS["plain"] | OPTIONS
    half = fit(**options, num_steps=7)
    for _ in range(2):
        found = fit(**options, num_steps=5, resume=half, checkpoint=str(tmp_path))
        same(found, fit(**options, num_steps=12))


def test_checkpoints_are_written_by_time(tmp_path):
    options = FITS["loader"] | OPTIONS
    written = []

    def look(f):
        written.append(len(list(tmp_path.iterdir())))

    fit(**options, num_steps=5, checkpoint=tmp_path, checkpoint_every=1e6, callback=look, callback_every=1)
    assert written == [0] * 5
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    fit(**options, num_steps=9, checkpoint=tmp_path, checkpoint_every=0, callback=look, callback_every=1)
    assert written[5:] == [2] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8", "9"]


def test_an_interrupt_writes_a_checkpoint(tmp_path):
    options = FITS["loader"] | OPTIONS

    def interrupt(f):
        if f.stopped == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(RuntimeWarning, match="interrupted after 3 of 9 steps"):
        fit(**options, num_steps=9, checkpoint=tmp_path, callback=interrupt, callback_every=1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_orbax_is_imported_where_it_is_used():
    code = "import sys, vipl; sys.exit(any(name.split('.')[0] == 'orbax' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.oldest
def test_a_process_that_is_killed_at_any_moment_goes_on(tmp_path):
    """Killed again and again, until one comes to its end; the numbers are those of a fit that was not killed."""
    folder, file = tmp_path / "folder", tmp_path / "numbers.npz"
    command = [sys.executable, "-m", "tests.helpers.killed"]
    rng, killed = random.Random(3), 0
    for attempt in range(40):
        process = subprocess.Popen([*command, folder, file], cwd=ROOT)
        latest = max([0, *(int(p.name) for p in folder.glob("*") if p.name.isdigit())])
        while attempt < 4 and process.poll() is None:
            if any(p.name.isdigit() and int(p.name) > latest for p in folder.glob("*")):
                time.sleep(rng.uniform(0.0, 0.3))
                process.kill()
                break
            time.sleep(0.01)
        killed += process.wait() == -signal.SIGKILL
        if file.exists():
            break
    assert killed >= 2
    alone = tmp_path / "alone.npz"
    subprocess.run([*command, tmp_path / "other", alone], cwd=ROOT, check=True)
    with np.load(file) as found, np.load(alone) as wanted:
        assert found.files == wanted.files
        for name in wanted.files:
            np.testing.assert_array_equal(found[name], wanted[name])
