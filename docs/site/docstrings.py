"""Google-style docstrings as reStructuredText, before napoleon sees them.

    `code`                      ``code``
    an indented block           a block of its own, as it stands: formulas, tables, messages
    a paragraph of formulas     likewise
    * | _ in prose              escaped: they are symbols here, no markup

Sections (`Args:` and the like) are left to napoleon, which knows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Examples?):$")
WORD = re.compile(r"[A-Za-z]{3,}")
# Words that are part of formulas.
OPERATORS = {*"log exp sum max min det diag mean var sqrt sigmoid softmax softplus tanh cos sin Var Cov Normal".split()}


def escape(text: str) -> str:
    """Prose in reStructuredText: backquotes are code, and nothing else is markup."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(_code(part) if i % 2 else _prose(part) for i, part in enumerate(parts))


def _code(quoted: str) -> str:
    """Inline code needs a space or punctuation around it; a backslash and a space stand for none."""
    return f"\\ `{quoted}`\\ "


def _prose(text: str) -> str:
    # A name's underscore is markup at the end of the name alone.
    return re.sub(r"_(?!\w)", r"\\_", re.sub(r"([\\*|])", r"\\\1", text))


def is_formula(lines: list[str]) -> bool:
    """Whether a paragraph is formulas: relations, and hardly a word."""
    words = [w for line in lines for w in WORD.findall(line) if w not in OPERATORS and "_" not in w]
    relations = sum(bool(re.search(r"[=~≈≤≥]|<=|>=|->", line)) for line in lines)
    return 2 * relations >= len(lines) and len(words) <= 2 * len(lines) and not any("`" in line for line in lines)


def blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """The parts that empty lines separate."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def indent(line: str) -> int:
    """How many spaces a line begins with."""
    return len(line) - len(line.lstrip(" "))


def as_it_stands(lines: list[str]) -> list[str]:
    """A block in which every character is what it is."""
    least = min(map(indent, lines))
    return [".. code-block:: text", "   :class: formula", "", *(f"   {line[least:]}" for line in lines), ""]


def to_rst(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring, in which the first line of a block stands at the margin or is indented."""
    out: list[str] = []
    section = ""
    in_list = False
    for block in blocks(lines):
        if indent(block[0]) == 0:
            section = match.group(1) if (match := SECTION.match(block[0])) else ""
        is_item = bool(re.match(r"(- |\d+\. )", block[0]))
        if section.startswith("Example"):
            out += [*block, ""]
        elif section:
            out += [*_section(block), ""]
        elif in_list and indent(block[0]) == 2:
            out += [*map(escape, block), ""]
        elif block[0].startswith(">>>"):
            out += [*block, ""]
        elif indent(block[0]) > 0 or block[0].startswith("|"):
            out += as_it_stands(block)
        elif not is_item and is_formula(block):
            out += as_it_stands(block)
        else:
            out += [*_paragraph(block), ""]
        in_list = is_item or (in_list and indent(block[0]) > 0)
    return out


def short_types(signature: str | None) -> str | None:
    """A signature in which unions that stand for one name of jaxtyping are that name again."""
    if signature is None:
        return None
    name = r"~?(?:\w+\.)*"
    array = name + r"(\w+)\[" + name + r"Array, ('[^']*')\]"
    like = array + rf" \| {name}\1\[{name}ndarray, \2\](?: \| {name}(?:bool|number|int|float|complex))+(?=[,)\]=|\s]|$)"
    key = rf"{name}Key\[{name}Array, ''\] \| {name}UInt32\[{name}Array, '2'\] \| {name}UInt32\[{name}Array, '4'\]"
    signature = re.sub(key, "~jaxtyping.PRNGKeyArray", signature)
    signature = re.sub(like, r"~jaxtyping.\1[~jaxtyping.ArrayLike, \2]", signature)
    return signature.replace("<factory>", "...")


def _section(block: list[str]) -> list[str]:
    """Rows of a section; `*args:` is a name there, which napoleon escapes."""
    escaped = [line if re.match(r"\s+\*+\w+:", line) else escape(line) for line in block]
    # "K." alone would be the number of a list.
    return [re.sub(r"^(\s+\S+: )(\w+\.$)", r"\1\\\2", line) for line in escaped]


def _paragraph(block: list[str]) -> list[str]:
    """Prose, with a list or an indented block that no empty line separates from it."""
    out: list[str] = []
    for i, line in enumerate(block):
        item = re.match(r"(- |\d+\. )", line)
        if item:
            if out and out[-1]:
                out.append("")
            out.append(item.group() + escape(line[item.end() :]))
        elif indent(line) > 2 and not re.match(r"\s*(- |\d+\. )", block[0]):
            rest = block[i:]
            size = next((n for n, x in enumerate(rest) if indent(x) == 0), len(rest))
            return [*out, "", *as_it_stands(rest[:size]), *(_paragraph(rest[size:]) if size < len(rest) else [])]
        else:
            out.append(escape(line))
    return out
