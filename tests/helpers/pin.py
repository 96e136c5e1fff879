"""`python -m tests.helpers.pin`: writes the messages of all malformed programs to `malformed.txt`.

What changed is then read in the diff: a pinned message is a message that someone has read. Those that `docs/errors.md`
quotes are replaced there too.
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


def pinned_messages() -> dict[str, str]:
    """What is pinned: name -> message."""
    parts = re.split(r"^## (\w+)\n", PINNED.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def main() -> None:
    """Writes the list, and the page that quotes it."""
    messages = {name: message_of(name) for name in MALFORMED}
    page = PAGE.read_text()
    for name, before in pinned_messages().items():
        page = page.replace(f"```text\n{before}```", f"```text\n{messages.get(name, before)}```")
    PAGE.write_text(page)
    PINNED.write_text("".join(f"## {name}\n{text}" for name, text in messages.items()))


if __name__ == "__main__":
    main()
