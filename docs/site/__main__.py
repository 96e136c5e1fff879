"""Builds the site anew; a warning is an error, and so is a link that leads nowhere. Takes options of sphinx-build."""

import shutil
import sys
import time

from sphinx.cmd.build import main

from docs.site.check import problems
from docs.site.pages import BUILD, HERE, assemble

begin = time.perf_counter()
assemble()
html = BUILD / "html"
shutil.rmtree(html, ignore_errors=True)
strict = ["-b", "html", "-W", "--keep-going", "-q", "--fresh-env", *sys.argv[1:]]
failed = main([*strict, "-c", str(HERE), "-d", str(BUILD / "doctrees"), str(BUILD / "source"), str(html)])
if failed:
    sys.exit(failed)
if found := problems(html):
    sys.exit("\n".join(found))
print(f"{html / 'index.html'}: {len(list(html.rglob('*.html')))} pages in {time.perf_counter() - begin:.0f} s")
