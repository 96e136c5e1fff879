"""The order of the rows in an epoch: a bijection, computed for a batch alone, that looks random."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vipl
from vipl.fit import fit
from vipl.fit._check import check_batches
from vipl.fit._order import MOST_ROWS, order_of, rows_at, shape_of

ORDER = importlib.import_module("vipl.fit._order")
STEPS = importlib.import_module("vipl.fit._steps")
KEY = jax.random.key(37)


def rows_of(n, epochs, count=None, first=0):
    """i[epochs, count], the rows at some positions; at all by default."""

    def one(epoch):
        return rows_at(order_of(KEY, epoch, n), jnp.uint32(first), n if count is None else count, n)

    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(epochs, jnp.uint32)))


def of_few_rounds(rounds):
    """A broken twin."""
    return "shape_of", lambda n: shape_of(n)._replace(rounds=rounds)


NOT_WALKED = "_walked", lambda shape, numbers, ends: jnp.where(numbers < shape.n, numbers, 0)
"""Another: row 0 stands for what is no row."""


# --- a bijection --------------------------------------------------------------------------------------------


def is_permutation(rows):
    return np.array_equal(np.sort(rows, -1), np.broadcast_to(np.arange(rows.shape[-1]), rows.shape))


@pytest.mark.parametrize("n", [1, 2, 3, 11, 64, 997])
def test_each_row_comes_once(n):
    assert is_permutation(rows_of(n, range(40)))


def test_each_row_of_many_comes_once():
    assert is_permutation(rows_of(1_000_003, [5]))


def test_no_row_comes_twice_in_a_sample_of_very_many():
    n = 9_999_991
    assert shape_of(n).outside == 5
    found = np.concatenate([rows_of(n, [2], 40_000, first)[0] for first in (0, 4_321_017, n - 40_000)])
    assert len(np.unique(found)) == 120_000
    assert found.min() >= 0
    assert found.max() < n


def test_the_walk_past_numbers_that_are_no_rows_is_needed(monkeypatch):
    """The law above is broken without it."""
    n = next(n for n in range(900, 9000) if shape_of(n).outside > 6)
    assert is_permutation(rows_of(n, [0]))
    monkeypatch.setattr(ORDER, *NOT_WALKED)
    assert not is_permutation(rows_of(n, [0]))


@pytest.mark.parametrize("n", [7, next(n for n in range(30, 900) if shape_of(n).outside > 2)])
def test_rows_are_those_of_a_cipher_that_is_walked_step_by_step(n):
    """The same by Python's integers, where a walk is a loop."""
    shape = shape_of(n)
    each = np.asarray(jax.jit(jax.vmap(lambda epoch: order_of(KEY, epoch, n).keys))(jnp.arange(20, dtype=jnp.uint32)))

    def hashed(x, size):
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x * size >> 32

    def permuted(keys, x):
        left, right = divmod(x, shape.b)
        for i, key in enumerate(keys):
            if i % 2 == 0:
                left = (left + hashed((right + key) % 2**32, shape.a)) % shape.a
            else:
                right = (right + hashed((left + key) % 2**32, shape.b)) % shape.b
        return left * shape.b + right

    def row(keys, position):
        x = permuted(keys, position)
        while x >= n:
            x = permuted(keys, x)
        return x

    wanted = [[row(keys, position) for position in range(n)] for keys in each.tolist()]
    np.testing.assert_array_equal(rows_of(n, range(20)), wanted)


def test_pairs_are_few_more_than_rows_and_nearly_square():
    some = np.random.default_rng(1).integers(3, MOST_ROWS, 200)
    for n in (*range(1, 300), *(int(n) for n in some), MOST_ROWS):
        shape = shape_of(n)
        assert shape.a * shape.b >= n
        assert shape.a * shape.b % 2 == 0
        assert shape.outside <= 64
        assert max(shape.a, shape.b) <= 2**16
        assert shape.rounds % 2 == 0
        assert n < 3 or max(shape.a, shape.b) <= 4.1 * min(shape.a, shape.b)
        assert 2 <= shape.rounds <= 36


def test_more_rows_than_can_be_numbered_are_refused():
    data = {"x": jax.ShapeDtypeStruct((MOST_ROWS + 1,), np.dtype("int8"))}
    check_batches({"x": jax.ShapeDtypeStruct((MOST_ROWS,), np.dtype("int8"))}, 100)
    with pytest.raises(vipl.errors.ProgramError) as error:
        check_batches(data, 100)
    assert str(error.value) == (
        "the data have more rows than batches can be drawn of.\n  at:        vipl.fit\n"
        "  got:       int8[2147483648] at data['x']\n  expected:  at most 2147483647 rows\n"
        "  fix:       pass an iterable of batches as data, and leave batch_size out"
    )


# --- that looks random --------------------------------------------------------------------------------------


def z_of(counts):
    """Pearson's chi square of equally likely cells, in standard deviations above its mean (Wilson and Hilferty)."""
    expected, df = counts.mean(), counts.size - 1
    chi2 = np.sum((counts - expected) ** 2) / expected
    return ((chi2 / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))


def of_all_permutations(n):
    """How often each of the n! orders comes."""
    codes = rows_of(n, range(60_000)) @ (n ** np.arange(n))
    found = np.unique(codes, return_counts=True)[1]
    return np.append(found, np.zeros(math.factorial(n) - len(found)))


def of_rows_at_a_position(n):
    return np.bincount(rows_of(n, range(200_000), 1, n // 2)[:, 0], minlength=n)


def of_differences(n):
    """How often the rows at two positions of the same right number differ by how much."""
    order = rows_of(n, range(100_000), shape_of(n).b + 1)
    return np.bincount((order[:, -1] - order[:, 0]) % n, minlength=n)[1:]


def of_pairs(n):
    rows = rows_of(n, range(200_000), 3)
    return np.bincount(rows[:, 0] * n + rows[:, 2], minlength=n * n).reshape(n, n)[~np.eye(n, dtype=bool)]


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("counts", "n", "broken"),
    [
        (of_all_permutations, 5, of_few_rounds(10)),
        (of_rows_at_a_position, 23, NOT_WALKED),
        (of_pairs, 23, of_few_rounds(4)),
        (of_differences, 1000, of_few_rounds(4)),
    ],
)
def test_orders_are_equally_likely(counts, n, broken, monkeypatch):
    """Over keys; a broken twin is seen."""
    assert abs(z_of(counts(n))) <= 5
    monkeypatch.setattr(ORDER, *broken)
    assert z_of(counts(n)) > 5


def serial_scores(first, second):
    """z-scores of two orders of many rows: of neighbours, of descents, of fixed points, and of one with the other."""
    n = len(first)

    def correlated(x, y):
        return np.corrcoef(x, y)[0, 1] * math.sqrt(n)

    descents = (np.sum(np.diff(first) < 0) - (n - 1) / 2) / math.sqrt((n + 1) / 12)
    fixed = np.sum(first == np.arange(n)) - 1.0
    return [correlated(first[:-1], first[1:]), descents, fixed, correlated(first, second), correlated(first, range(n))]


def test_an_order_has_no_trend(monkeypatch):
    """Of one key; a cipher of two rounds is seen."""
    assert np.max(np.abs(serial_scores(*rows_of(100_003, [0, 1])))) <= 5
    monkeypatch.setattr(ORDER, *of_few_rounds(2))
    assert np.max(np.abs(serial_scores(*rows_of(100_003, [0, 1])))) > 5


# --- in a fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [None, 3])
def test_epochs_of_a_fit_are_orders_of_their_own(restarts):
    """Of 7 rows in batches of 2, six come in each epoch, each once; those of a start are those of its key alone."""

    @vipl.expectation(has_aux=True)
    def seen(params, batch):
        return 0.0 * params, batch

    options = {"data": jnp.arange(7), "batch_size": 2, "num_steps": 12, "key": KEY, "progress": False}
    found = fit(seen, 0.0, optax.sgd(0.1), num_restarts=restarts, **options)
    assert (found.restarts is None) == (restarts is None)
    metrics = found.metrics[None] if found.restarts is None else found.restarts.metrics
    each = np.asarray(metrics).reshape(-1, 4, 6)
    assert all(len(set(epoch)) == 6 for start in each for epoch in start)
    assert len({tuple(epoch) for start in each for epoch in start}) == 4 * (restarts or 1)
    if restarts is None:
        np.testing.assert_array_equal(each[0], rows_of(7, range(4), 6))


def test_steps_that_are_undone_on_a_device_whose_numbers_vary():
    """The second time a number is not finite one step earlier; the state before that step is kept."""
    calls = []

    def take(key, state, args, stop):
        calls.append(stop)
        fails = stop == 9
        return STEPS.State(f"after {8 if fails else stop}", None, 8 if fails else stop, 2 if fails else 0), None

    before, after = STEPS.State("after 3", None, 3, 0), STEPS.State("nan", None, 9, 1)
    found = STEPS.steps_before(take, KEY, before, (), after)
    assert calls == [9, 8]
    assert (found.params, found.taken, found.cause) == ("after 8", 8, 2)
    found = STEPS.steps_before(take, KEY, before, (), after._replace(taken=3))
    assert (found.params, found.taken, found.cause, len(calls)) == ("after 3", 3, 1, 2)
