"""What `python -m vipl demo` runs; each file is a program as a user would write it."""

from vipl.demo._run import missing_packages as missing_packages
from vipl.demo._run import run as run
