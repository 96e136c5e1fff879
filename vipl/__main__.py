"""`python -m vipl demo`: two problems from beginning to end, with known answers, printed and drawn.

`python -m vipl zoo`: published methods as short programs, each with a number that is known.
"""

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
      The exit status: 0; 1 where the zoo misses a number; 2 where an optional package or a method is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m vipl", description="probabilistic programs for JAX")
    commands = parser.add_subparsers(metavar="{demo,zoo}")
    demo = commands.add_parser("demo", help="fit two programs, print what was reached, save pictures")
    demo.add_argument("--short", action="store_true", help="fewer steps: about half a minute in all")
    demo.add_argument("--out", type=Path, default=Path("demo-out"), help="where pictures go (default: ./demo-out)")
    demo.set_defaults(run=_demo)
    zoo = commands.add_parser("zoo", help="list published methods, or run them beside what is known")
    zoo.add_argument("names", nargs="*", metavar="NAME", help="methods to run; none: list all")
    zoo.add_argument("--all", action="store_true", help="run all methods, and print one table")
    zoo.add_argument("--out", type=Path, default=Path("zoo-out"), help="where pictures go (default: ./zoo-out)")
    zoo.set_defaults(run=_zoo)
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    return arguments.run(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from vipl import demo

    if _lacks(demo.missing_packages(), "demo"):
        return 2
    demo.run(short=arguments.short, out=arguments.out)
    return 0


def _zoo(arguments: argparse.Namespace) -> int:
    from vipl import zoo
    from vipl.demo import missing_packages

    if unknown := [name for name in arguments.names if name not in zoo.names()]:
        print(f"the zoo has no {', '.join(unknown)}; python -m vipl zoo lists what it has", file=sys.stderr)
        return 2
    if not arguments.names and not arguments.all:
        zoo.show_list()
        return 0
    if _lacks(missing_packages(), "zoo"):
        return 2
    return zoo.run(zoo.names() if arguments.all else arguments.names, arguments.out)


def _lacks(missing: Sequence[str], what: str) -> bool:
    if missing:
        print(f"the {what} needs {', '.join(missing)}: pip install 'vipl[demo]'", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
