"""`python -m tests.helpers.outputs PAGE ...`: runs a page's code, and writes what it prints into the page.

Each ```python block that prints something is followed by a ```text block, which is replaced, or added. Read the diff.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import tests.conftest  # noqa: F401  (double precision, as in the tests)

BLOCKS = re.compile(r"^```python\n(.*?)^```$(\n\n```text\n.*?^```$)?", re.DOTALL | re.MULTILINE)


def with_outputs(page: str) -> str:
    """The text of a page, each block's output behind it."""
    namespace = {"__name__": "docs"}

    def run(block: re.Match) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block[1], namespace)
        if not printed.getvalue():
            return block[0]
        return f"```python\n{block[1]}```\n\n```text\n{printed.getvalue().rstrip()}\n```"

    return BLOCKS.sub(run, page)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_outputs(path.read_text()))
