"""Our docstrings as Sphinx's field lists.

We write ``name : what it is``, because types are annotations. numpydoc would take the words for a
type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.M)
_ITEM = re.compile(r"^([\w`*][\w`*, ]*?) : ")
_FIELDS = {
    "Parameters": "param",
    "Attributes": "ivar",
    "Raises": "raises",
    "Returns": "returns",
    "Yields": "yields",
}


def as_fields(text: str) -> str:
    """A docstring with its sections as fields.

    >>> print(as_fields("Do.\\n\\nParameters\\n----------\\nx, y : where.\\n    In pixels.\\n"))
    Do.
    <BLANKLINE>
    :param x: where. In pixels.
    :param y: where. In pixels.
    """
    heads = [*_SECTION.finditer(text)]
    parts = [text[: heads[0].start()] if heads else text]
    for number, head in enumerate(heads):
        end = heads[number + 1].start() if number + 1 < len(heads) else len(text)
        parts.append("\n".join(_fields(head[1], text[head.end() : end])))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts).rstrip("\n")


def _fields(title: str, body: str) -> Iterator[str]:
    field = _FIELDS.get(title)
    if field is None:
        yield f"**{title}**\n\n{body}"
    elif field in ("returns", "yields"):
        yield f":{field}: {' '.join(body.split())}"
    else:
        for names, words in _items(body):
            for name in names:
                yield f":{field} {name}: {' '.join(words.split())}"


def _items(body: str) -> Iterator[tuple[list[str], str]]:
    """Names and words of each item: words follow the colon, or stand indented below the names."""
    for item in re.split(r"\n(?=\S)", body.strip("\n")):
        found = _ITEM.match(item)
        names, words = (found[1], item[found.end() :]) if found else (item.partition("\n")[::2])
        yield [name.strip(" `*") for name in names.split(",")], words
