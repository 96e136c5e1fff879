"""What is done between the calls of the compiled steps: the user's callback, and checkpoints."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any

from vipl._checks import whole_number

_SECONDS = 1.0
"""About how often a callback is called by default."""


class Watch:
    """Calls back.

    Attributes:
      callback: fit -> whether to end; None where there is none.
      steps: after how many steps it is called; None where it goes by time.
      seconds: after how many seconds it is called.
    """

    def __init__(self, callback: Callable[[Any], object] | None, every: object):
        """Nothing is due yet."""
        self.callback, self.steps, self.seconds = callback, None, _SECONDS
        if isinstance(every, datetime.timedelta):
            self.seconds = every.total_seconds()
        elif every is not None:
            self.steps = whole_number(every, "callback_every", "vipl.fit")
        self.last = time.monotonic()

    def limit(self, taken: int, stop: int) -> int:
        """How far steps may be taken before the callback is due."""
        if self.callback is None or self.steps is None:
            return stop
        return min(stop, (taken // self.steps + 1) * self.steps)

    def ends(self, taken: int, make_fit: Callable[[], Any]) -> bool:
        """Calls back if it is due, and says whether the fit is to end."""
        if self.callback is None:
            return False
        now = time.monotonic()
        if taken % self.steps if self.steps is not None else now - self.last < self.seconds:
            return False
        self.last = now
        return bool(self.callback(make_fit()))
