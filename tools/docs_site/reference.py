"""Parts of the reference that are made from the code: Python, command line, HTTP, settings."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

_NAME = re.compile(r"^\| `(vitcx[\w.]+)` \|", re.M)
_PART = re.compile(r"^<!-- generated: (\w+) -->$", re.M)


def with_generated_parts(page: str) -> str:
    """The page with its comments ``<!-- generated: NAME -->`` replaced by that part."""
    return _PART.sub(lambda found: PARTS[found[1]](page), page)


def _rst(*lines: str) -> str:
    return "\n".join(["```{eval-rst}", *lines, "```"])


def python(page: str) -> str:
    """The docstring of every name in the page's tables."""
    lines = []
    for name in _NAME.findall(page):
        home = _home(name)
        kind = "class" if isinstance(pkgutil.resolve_name(home), type) else "function"
        if kind == "class" and issubclass(pkgutil.resolve_name(home), Exception):
            kind = "exception"
        members = ["   :members:"] if kind == "class" else []
        lines += [f".. auto{kind}:: {home}", *members, ""]
    return _rst(*lines)


def _home(name: str) -> str:
    """Where a name of the package is defined: the top level imports it when it is first used."""
    import vitcx

    last = name.removeprefix("vitcx.")
    home = vitcx._HOMES.get(last)
    return f"{home}.{last}" if home else name


def options(page: str) -> str:
    """Every command with its options, from click."""
    from vitcx.cli import COMMANDS

    return "\n\n".join(
        _rst(f".. click:: {module}:command", f"   :prog: vitcx {name}", "   :nested: full")
        for name, (module, _) in COMMANDS.items()
    )


def settings(page: str) -> str:
    """A table of the settings: what each takes, its default, its help."""
    from vitcx.runtime.settings import Settings

    rows = ["| setting | takes | default | meaning |", "|---|---|---|---|"]
    for each in fields(Settings):
        help_text = each.metadata["help"].partition("  [default")[0]
        default = "–" if each.default is None else f"`{each.default}`"
        takes = _takes(each.metadata["rule"])
        rows.append(f"| `{each.name}` | {takes} | {default} | {help_text} |")
    return "\n".join(rows)


def _takes(rule: Any) -> str:
    from vitcx.runtime.settings import Choice, Number, Whole

    if isinstance(rule, Choice):
        return ", ".join(f"`{word}`" for word in rule.words)
    if isinstance(rule, Number | Whole):
        kind = "a whole number" if isinstance(rule, Whole) else "a number"
        return f"{kind} from {rule.least:g} to {rule.most:g}"
    return "`True` or `False`"


def routes(page: str) -> str:
    """Every route of the server, from its OpenAPI document."""
    import vitcx
    from vitcx.serving.app import make_app

    with vitcx.load("demo", engine="onnxruntime") as explainer:
        document = make_app(explainer).openapi()
    lines = []
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            lines += [f"### {method.upper()} {path}", "", route.get("description", ""), ""]
            lines += _body(route.get("requestBody", {}).get("content", {}))
            lines += ["| status | meaning |", "|---|---|"]
            lines += [
                f"| {status} | {answer['description']} |"
                for status, answer in sorted(route["responses"].items())
            ]
            lines.append("")
    return "\n".join(lines)


def _body(content: Mapping[str, Any]) -> Iterator[str]:
    if not content:
        return
    yield f"Body: {', '.join(f'`{kind}`' for kind in content)}."
    yield ""
    schema = next(iter(content.values())).get("schema", {})
    if "properties" in schema:
        yield "| field | type | meaning |"
        yield "|---|---|---|"
        for name, each in schema["properties"].items():
            needed = " (required)" if name in schema.get("required", ()) else ""
            yield f"| `{name}`{needed} | {each.get('type', 'any')} | {_meaning(each)} |"
        yield ""


def _meaning(schema: Mapping[str, Any]) -> str:
    if "description" in schema:
        return str(schema["description"])
    words = schema.get("items", {}).get("enum")
    if words:
        return "any of " + ", ".join(f"`{word}`" for word in words)
    if "minimum" in schema:
        default = f"; default {schema['default']}" if "default" in schema else ""
        return f"from {schema['minimum']} to {schema['maximum']}{default}"
    return ""


PARTS: Mapping[str, Callable[[str], str]] = {
    "python": python,
    "options": options,
    "settings": settings,
    "routes": routes,
}
