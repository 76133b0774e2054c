"""Write docs/json-schema.json, the JSON schema of what each command prints, from the row classes; --check compares."""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path

from tuner.admin.doctor import Check
from tuner.results.json_rows import BestJson, CompareJson, ImportanceJson, ShownJson, StudyJson, TrialJson
from tuner.worker.rerun import Comparison

TARGET = Path(__file__).parent.parent / "docs" / "json-schema.json"
ROWS: dict[str, type] = {
    "studies": StudyJson,
    "trials": TrialJson,
    "best": BestJson,
    "compare": CompareJson,
    "importance": ImportanceJson,
    "reproduce": Comparison,
    "confirm": BestJson,
    "doctor": Check,
}
"""The commands that print a list of rows; `tuner show` prints one."""
PLAIN: dict[object, dict[str, object]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    object: {},
    typing.Any: {},
}


def schema_of(hint: typing.Any, defined: dict[str, object]) -> dict[str, object]:
    """Return the schema of a type; classes of rows are added to `defined` and referred to."""
    if hint in PLAIN:
        return PLAIN[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.NotRequired, typing.Required):
        return schema_of(arguments[0], defined)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(one, defined) for one in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], defined)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], defined)}
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        if hint.__name__ not in defined:
            defined[hint.__name__] = {}  # for a row that contains itself
            defined[hint.__name__] = row_schema(hint, defined)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if isinstance(hint, type) and issubclass(hint, str):
        return {"enum": [one.value for one in hint]}  # type: ignore[attr-defined]
    sys.exit(f"there is no JSON schema for {hint}: add it to scripts/json_schema.py")


def row_schema(row: typing.Any, defined: dict[str, object]) -> dict[str, object]:
    """Return the schema of a class of rows. New versions may add fields, so others are allowed."""
    hints = typing.get_type_hints(row, include_extras=True)
    required = sorted(getattr(row, "__required_keys__", hints))
    optional = {name for name, hint in hints.items() if typing.get_origin(hint) is typing.NotRequired}
    about = (row.__doc__ or "").strip().partition("\n")[0]
    return {
        "type": "object",
        "description": about,
        "properties": {name: schema_of(hint, defined) for name, hint in hints.items()},
        "required": [name for name in required if name not in optional],
    }


def document() -> dict[str, object]:
    """Return the whole schema: an object with a property for each command."""
    defined: dict[str, object] = {}
    commands: dict[str, object] = {
        name: {"type": "array", "items": schema_of(row, defined)} for name, row in ROWS.items()
    }
    commands["show"] = schema_of(ShownJson, defined)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "JSON of the queries of tuner",
        "description": "What a command prints with `--format json` is valid against the property of its name.",
        "type": "object",
        "properties": commands,
        "$defs": dict(sorted(defined.items())),
    }


if __name__ == "__main__":
    text = json.dumps(document(), indent=2) + "\n"
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        sys.exit(f"{TARGET} is out of date: run `python scripts/json_schema.py`")
