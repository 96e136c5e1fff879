"""What a built site must hold: links lead somewhere, and a page loads nothing from another site."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links, anchors and loaded files of a page.

    Attributes:
      links: what it leads to.
      loaded: scripts, styles and pictures.
      anchors: the names that a link can lead to.
    """

    def __init__(self, text: str):
        """Reads the page."""
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what an element leads to, and what it loads."""
        values = dict(attrs)
        self.anchors |= {values[name] or "" for name in ("id", "name") if name in values}
        if tag == "a" and (link := values.get("href")):
            self.links.append(link)
        loads = values.get("src") or (values.get("href") if tag == "link" and _is_loaded(values.get("rel")) else None)
        if loads:
            self.loaded.append(loads)


def _is_loaded(rel: str | None) -> bool:
    return bool({"stylesheet", "preload", "icon", "preconnect"} & set((rel or "").split()))


def problems(site: Path) -> list[str]:
    """One line for each link of a site that leads nowhere in it, and each file that a page loads from elsewhere."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    found.append(f"{where}: loads {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{where}: {link} leads to no file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{where}: {link} leads to no anchor")
    return found
