"""The readable page of the API, made from its description. It loads nothing, from here or from elsewhere."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any, Final

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #222; background: #fff }
h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; overflow-wrap: anywhere }
h2 b { background: #245; color: #fff; border-radius: .3rem; padding: .1rem .5rem; font-size: .8em }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #ddd }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } td, th, h2 { border-color: #444 } a { color: #8bf }
}
"""


def page(document: dict[str, Any]) -> str:
    """HTML, whole."""
    info = document["info"]
    schemas = document["components"]["schemas"]
    operations = [
        (method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    links = "".join(
        f'<li><a href="#{escape(operation["operationId"])}"><code>{method.upper()} {escape(path)}</code></a></li>'
        for method, path, operation in operations
    )
    body = "".join(_operation(*each) for each in operations)
    kinds = "".join(_schema(name, schema) for name, schema in schemas.items())
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}</h1>'
        f"<p>{_text(info['description'])} The same for machines: "
        f"<a href='/api/v1/openapi.json'>openapi.json</a>.</p><ul>{links}</ul>{body}<h1>Schemas</h1>{kinds}"
        "</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<h2 id="{escape(operation["operationId"])}"><b>{method.upper()}</b> <code>{escape(path)}</code></h2>',
        f"<p>{_text(operation['summary'])}</p>",
    ]
    if parameters := operation.get("parameters"):
        parts.append(
            _table(
                ("Parameter", "In", "Type", ""),
                [
                    (
                        f"<code>{escape(each['name'])}</code>",
                        each["in"],
                        _kind(each["schema"]),
                        _text(each["description"]),
                    )
                    for each in parameters
                ],
            )
        )
    if taken := operation.get("requestBody"):
        rows = [(f"<code>{escape(media)}</code>", _kind(each["schema"])) for media, each in taken["content"].items()]
        parts.append(_table(("Body", "Type"), rows))
    answers = [
        (status, _text(each["description"]), *(_kind(form["schema"]) for form in each.get("content", {}).values()))
        for status, each in sorted(operation["responses"].items())
    ]
    parts.append(_table(("Status", "", "Body"), answers))
    return "".join(parts)


def _schema(name: str, schema: dict[str, Any]) -> str:
    heading = f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2>'
    if note := schema.get("description"):
        heading += f"<p>{_text(note)}</p>"
    needed = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>",
            _kind(kind),
            "yes" if field in needed else "",
            _text(kind.get("description", "")),
        )
        for field, kind in schema["properties"].items()
    ]
    return heading + _table(("Field", "Type", "Needed", ""), rows)


def _kind(schema: dict[str, Any]) -> str:
    """A schema in short: a link where it has a name of its own."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema and "type" not in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of ({_kind(schema['items'])})"
    kind = schema.get("type", "")
    parts = [" or ".join(kind) if isinstance(kind, list) else kind, schema.get("format", "")]
    parts += [f"{label} {schema[key]}" for key, label in _BOUNDS.items() if key in schema]
    parts += [f"<code>{escape(json.dumps(schema[key]))}</code>" for key in ("const", "enum") if key in schema]
    parts += [f"<code>{escape(schema['pattern'])}</code>"] if "pattern" in schema else []
    return ", ".join(filter(None, parts)) or "anything"


_BOUNDS: Final = {
    "minimum": "from", "maximum": "to", "minLength": "least characters:", "maxLength": "most characters:",
}  # fmt: skip


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _text(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
