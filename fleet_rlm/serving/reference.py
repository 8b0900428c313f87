"""The page at `/docs`: every route and its fields; it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """\
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font: 0.9em ui-monospace, monospace }
section { border-top: 1px solid #8886; padding: 0.5rem 0 }
table { border-collapse: collapse } td { padding: 0.1rem 1rem 0.1rem 0; vertical-align: top }
.verb { display: inline-block; min-width: 3.5rem; font-weight: 600 }
"""

SOCKET = """\
<section id="ws"><h2><span class="verb">WS</span><code>/ws/chat</code></h2>
<p>Send <code>{"type": "message", "content": "..."}</code>,
<code>{"type": "command", "command": "...", "args": {}}</code> or
<code>{"type": "cancel"}</code>. You get <code>{"type": "event", "data": {...}}</code>,
<code>{"type": "command_result", "command": "...", "result": {...}}</code> and
<code>{"type": "error", "message": "..."}</code>.</p></section>
"""


def render_reference(description: Mapping[str, Any]) -> str:
    """An HTML page for an OpenAPI description."""
    info = description["info"]
    title = escape(f"{info['title']} {info['version']}")
    schemas = description.get("components", {}).get("schemas", {})
    routes = "".join(
        _route(verb.upper(), path, operation, schemas)
        for path, verbs in description["paths"].items()
        for verb, operation in verbs.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><style>'
        f"{_STYLE}</style></head><body><h1>{title}</h1><p>{escape(info.get('description', ''))}</p>"
        '<p>For machines: <a href="openapi.json">openapi.json</a></p>'
        f"{routes}{SOCKET}</body></html>"
    )


def _route(verb: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    about = escape(operation.get("description") or operation.get("summary", ""))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    rows = "".join(_rows(body.get("schema", {}), schemas))
    table = f"<table>{rows}</table>" if rows else ""
    place = f'<h2><span class="verb">{verb}</span><code>{escape(path)}</code></h2>'
    return f"<section>{place}<p>{about}</p>{table}</section>"


def _rows(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    found = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
    needed = found.get("required", ())
    for name, field in found.get("properties", {}).items():
        default = "required" if name in needed else f"default {field.get('default')!r}"
        about = " ".join(str(field.get("description", "")).split())
        yield (
            f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field))}</td>"
            f"<td>{escape(default)}</td><td>{escape(about)}</td></tr>"
        )


def _type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    return str(field.get("type") or field.get("$ref", "").rpartition("/")[2] or "any")
