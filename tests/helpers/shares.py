"""Which tests the whole check runs on which JAX.

Each test, and each case of a test that has several, runs on one of the two: nine of ten on the oldest, where they
compile in half the time, and the tenth on the newest.
"""

import zlib

SHARES = ("oldest", "newest")


def is_in(share, test):
    """Whether a test, by its node id, is in that share: by a checksum, so that no parameter goes with one alone."""
    return SHARES[zlib.crc32(test.encode()) % 10 == 3] == share
