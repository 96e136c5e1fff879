"""`python -m vipl demo`: two problems from beginning to end, with known answers, printed and drawn."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
      argv: the words after `python -m vipl`; None takes the process's.

    Returns:
      The exit status: 0, or 2 where an optional package is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m vipl", description="probabilistic programs for JAX")
    commands = parser.add_subparsers(metavar="demo")
    demo = commands.add_parser("demo", help="fit two programs, print what was reached, save pictures")
    demo.add_argument("--short", action="store_true", help="fewer steps: about half a minute in all")
    demo.add_argument("--out", type=Path, default=Path("demo-out"), help="where pictures go (default: ./demo-out)")
    demo.set_defaults(run=True)
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0

    from vipl import demo as package

    missing = package.missing_packages()
    if missing:
        print(f"the demo needs {', '.join(missing)}: pip install 'vipl[demo]'", file=sys.stderr)
        return 2
    package.run(short=arguments.short, out=arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
