"""`python -m tests.helpers.pin`: writes the messages of all malformed programs to `malformed.txt` and `docs/errors.md`.

What changed is then read in the diff: a pinned message is a message that someone has read.
"""

from __future__ import annotations

import re
from pathlib import Path

import tests.conftest  # noqa: F401  (double precision, as in the tests)
import vipl
from tests.helpers.malformed import MALFORMED

ROOT = Path(__file__).parent.parent.parent
PINNED = ROOT / "tests" / "malformed.txt"
PAGE = ROOT / "docs" / "errors.md"


def message(error: Exception) -> str:
    """A message as it is pinned: class and four lines, without line numbers."""
    return re.sub(r"\.py:\d+\)", ".py:*)", f"{type(error).__name__}: {error}\n")


def message_of(name: str) -> str:
    """What a malformed program is told."""
    try:
        MALFORMED[name]()
    except vipl.errors.ViplError as error:
        return message(error)
    raise AssertionError(f"{name} raises nothing")


def main() -> None:
    """Writes both files."""
    messages = {name: message_of(name) for name in MALFORMED}
    PINNED.write_text("".join(f"## {name}\n{text}" for name, text in messages.items()))
    head = PAGE.read_text().split("\n### ")[0]
    PAGE.write_text(head + "".join(f"\n### {name}\n\n```text\n{text}```\n" for name, text in messages.items()))


if __name__ == "__main__":
    main()
