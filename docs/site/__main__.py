"""Builds the site; every warning is an error. `python -m docs.site [OPTIONS of sphinx-build]`."""

import sys
import time

from sphinx.cmd.build import main

from docs.site.pages import BUILD, HERE, assemble

begin = time.perf_counter()
assemble()
paths = ["-c", str(HERE), "-d", str(BUILD / "doctrees"), str(BUILD / "source"), str(BUILD / "html")]
failed = main(["-b", "html", "-W", "--keep-going", "-q", *sys.argv[1:], *paths])
if not failed:
    print(f"{BUILD / 'html' / 'index.html'}, {time.perf_counter() - begin:.0f} s")
sys.exit(failed)
