"""The JSON form of a comparison: its schema, and a validator for the part of JSON Schema that it uses.

JSON has no NaN and no infinities. They are written as the strings "nan", "inf" and "-inf", and only where the
schema allows a number.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

COMPARISON_ID = "shoestring/comparison/1"

_NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]}
_NUMBER_OR_NULL = {"anyOf": [{"type": ["number", "null"]}, {"enum": ["nan", "inf", "-inf"]}]}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_VERDICT = {"type": ["boolean", "null"]}


def _record(**properties: Any) -> dict[str, Any]:
    """An object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


ROW = _record(
    metric=_TEXT,
    kind={"enum": ["memory", "storage", "compute", "time", "energy", "quality", "other"]},
    unit=_TEXT,
    better={"enum": ["lower", "higher"]},
    baseline=_NUMBER_OR_NULL,
    method=_NUMBER,
    ratio=_NUMBER_OR_NULL,
    spread={"type": ["array", "null"], "items": _NUMBER, "minItems": 2, "maxItems": 2},
    paper_ratio=_NUMBER_OR_NULL,
    bar=_NUMBER_OR_NULL,
    bar_on={"enum": ["ratio", "difference", "value"]},
    against=_TEXT,
    holds=_VERDICT,
)

ENVIRONMENT = _record(
    date=_TEXT,
    system=_TEXT,
    processor=_TEXT,
    cores=_COUNT,
    threads=_COUNT,
    memory_bytes=_COUNT,
    gpu={"type": ["string", "null"]},
    python=_TEXT,
    packages={"type": "object", "additionalProperties": _TEXT},
)

COMPARISON: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A comparison of shoestring",
    **_record(
        schema={"enum": [COMPARISON_ID]},
        system=_TEXT,
        method=_TEXT,
        baseline=_TEXT,
        work=_TEXT,
        rows={"type": "array", "items": ROW, "minItems": 1},
        effort={"enum": ["smoke", "quick", "full"]},
        seed={"type": "integer"},
        environment=ENVIRONMENT,
        notes={"type": "array", "items": _TEXT},
        seconds=_NUMBER_OR_NULL,
        holds=_VERDICT,
    ),
}

_TYPES: dict[str, Any] = {
    "object": Mapping,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def validate(document: Any, schema: Mapping[str, Any], place: str = "") -> None:
    """Check a parsed JSON document.

    Understands type, enum, anyOf, properties, required, additionalProperties, items, minItems, maxItems and
    minimum. Raises: ValueError naming the place, what stands there and what should.
    """
    where = place or "the document"
    if "anyOf" in schema:
        if not any(_fits(document, option) for option in schema["anyOf"]):
            raise ValueError(f"{where} is {_brief(document)}; it must be {_describe(schema)}")
        return
    if "enum" in schema and document not in schema["enum"]:
        raise ValueError(f"{where} is {_brief(document)}; it must be {_describe(schema)}")
    if "type" in schema and not _has_type(document, schema["type"]):
        raise ValueError(f"{where} is {_brief(document)}; it must be {_describe(schema)}")
    if "minimum" in schema and document < schema["minimum"]:
        raise ValueError(f"{where} is {document}; it must be at least {schema['minimum']}")
    if isinstance(document, Mapping):
        _validate_object(document, schema, place)
    elif isinstance(document, list):
        _validate_array(document, schema, place)


def _validate_object(document: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> None:
    where = place or "the document"
    if missing := [name for name in schema.get("required", ()) if name not in document]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, value in document.items():
        inner = f"{place}.{name}" if place else name
        if name in properties:
            validate(value, properties[name], inner)
        elif rest is False:
            raise ValueError(f"{where} has an unknown field {name!r}; known are {', '.join(properties)}")
        elif isinstance(rest, Mapping):
            validate(value, rest, inner)


def _validate_array(document: list[Any], schema: Mapping[str, Any], place: str) -> None:
    low, high = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not low <= len(document) <= high:
        wanted = f"{low}" if low == high else f"at least {low}"
        raise ValueError(f"{place or 'the document'} has {len(document)} items; it must have {wanted}")
    for number, item in enumerate(document):
        validate(item, schema.get("items", {}), f"{place}[{number}]")


def _fits(document: Any, schema: Mapping[str, Any]) -> bool:
    try:
        validate(document, schema)
    except ValueError:
        return False
    return True


def _has_type(document: Any, names: str | list[str]) -> bool:
    names = [names] if isinstance(names, str) else names
    if isinstance(document, bool):
        return "boolean" in names
    if isinstance(document, float) and not math.isfinite(document):
        return False
    return any(isinstance(document, _TYPES[name]) for name in names)


def _describe(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_describe(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(value) for value in schema["enum"])
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return " or ".join(names)


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, float) else json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def encode_numbers(value: Any) -> Any:
    """Replace the floats that JSON lacks by their names, all through a document."""
    if isinstance(value, Mapping):
        return {name: encode_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [encode_numbers(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


# The fields whose schema allows a number: only there is "inf" a number and not a word.
_NUMERIC = frozenset({"baseline", "method", "ratio", "spread", "paper_ratio", "bar", "seconds"})


def decode_numbers(comparison: dict[str, Any]) -> dict[str, Any]:
    """Undo `encode_numbers` on a validated comparison document; a new dictionary is returned."""
    rows = [{name: _decode(name, value) for name, value in row.items()} for row in comparison["rows"]]
    return comparison | {"rows": rows, "seconds": _decode("seconds", comparison["seconds"])}


def _decode(name: str, value: Any) -> Any:
    if name not in _NUMERIC:
        return value
    if isinstance(value, list):
        return [_decode(name, item) for item in value]
    return float(value) if isinstance(value, str) else value


def dumps(document: Any) -> str:
    """Strict JSON, indented, in the order of the fields."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def loads(text: str) -> Any:
    """Strict JSON. Raises: ValueError for anything else, bare NaN and Infinity too."""

    def refuse(name: str) -> None:
        raise ValueError(f'{name} is not JSON; write "nan", "inf" or "-inf"')

    return json.loads(text, parse_constant=refuse)
