"""The JSON Schema of the configuration file: what the loader takes, for editors to check and complete.

The settings' own schema describes them after loading. A file may say the same in more ways: a route as
one target, a list or a mapping, a section without anything in it, any scalar as `${VAR}` and between
quotes. Draft 7, which every editor understands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from proxy.config.model import (
    CapabilitySettings,
    ClientKey,
    ParamSettings,
    RouteSettings,
    ServerSettings,
    Settings,
    UpstreamSettings,
)
from proxy.config.policy import BreakerSettings, PolicySettings, RoutePolicySettings, UpstreamPolicy
from proxy.config.providers import providers

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
VARIABLE = r"\$\{"
NUMBER = r"[0-9]{1,9}(\.[0-9]{1,6})?"
FLAGS = ("true", "false", "yes", "no", "on", "off", "1", "0")
UPSTREAM_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
TEXT: Schema = {"type": ["string", "number"]}  # YAML's 4 is a fine model name
NULL: Schema = {"type": "null"}

MODELS: tuple[type[BaseModel], ...] = (
    ServerSettings,
    ClientKey,
    UpstreamSettings,
    ParamSettings,
    CapabilitySettings,
    UpstreamPolicy,
    RoutePolicySettings,
    PolicySettings,
    BreakerSettings,
    RouteSettings,
)
# Their values are inherited where they are not set, so that no default can be told.
INHERITING = (UpstreamPolicy, RoutePolicySettings)


def file_schema() -> Schema:
    """Return the schema of a configuration file."""
    root = Settings.model_json_schema()
    found: Schema = {model.__name__: _mapping(root["$defs"][model.__name__], model) for model in MODELS}
    _write_shorthands(found)
    top = _mapping(root, Settings)
    top["properties"]["upstreams"] = _described(
        root["properties"]["upstreams"],
        _optional(
            _map_of(_any_of([_ref("UpstreamSettings"), NULL]), propertyNames={"pattern": UPSTREAM_NAME})
        ),
    )
    top["properties"]["routes"] = _described(root["properties"]["routes"], _map_of(_ref("Route")))
    return {
        "$schema": DRAFT,
        "title": "Sidestep configuration",
        **top,
        "description": "What Sidestep listens on, where it sends requests, and by which rules.",
        "required": ["routes"],
        "definitions": dict(sorted(found.items())),
    }


def _write_shorthands(found: Schema) -> None:
    """Add the forms that only a file has, and take out what a file need not say."""
    context = _value({"type": ["integer", "null"], "minimum": 1}, None)
    weight = _value({"type": "number", "exclusiveMinimum": 0}, 1)
    found["Target"] = {
        "description": "UPSTREAM (the same model name there), UPSTREAM/MODEL, or {target: ..., weight: 1}.",
        "anyOf": [
            {"type": "string", "minLength": 1},
            {
                "type": "object",
                "properties": {
                    "target": {"type": "string", "description": "UPSTREAM or UPSTREAM/MODEL."},
                    "weight": {**weight, "description": "Share of the tier's load."},
                    "context": {**context, "description": "Largest prompt in tokens."},
                },
                "required": ["target"],
                "additionalProperties": False,
            },
        ],
    }
    found["Targets"] = {
        "description": "Targets, best first. A list in the list is a tier: equals that share the load.",
        "anyOf": [
            _ref("Target"),
            {
                "type": "array",
                "minItems": 1,
                "items": _any_of([_ref("Target"), {"type": "array", "minItems": 1, "items": _ref("Target")}]),
            },
        ],
    }
    found["Route"] = {
        "description": "A target, a list of targets and tiers, or the long form {targets: [...], ...}.",
        "anyOf": [
            {"type": "string", "minLength": 1},
            found["Targets"]["anyOf"][1],
            _ref("RouteSettings"),
        ],
    }
    found["RouteSettings"]["properties"]["targets"] = _ref("Targets")
    upstream = found["UpstreamSettings"]
    del upstream["required"]  # a known provider brings its own base_url
    upstream["properties"]["provider"] |= {
        "anyOf": [{"enum": sorted(providers())}, {"type": "string", "pattern": VARIABLE}, NULL]
    }
    found["ClientKey"]["required"] = ["key"]  # its name may be made for it
    keys = found["ServerSettings"]["properties"]["client_keys"]
    keys["anyOf"] = [{"type": "array", "items": _any_of([TEXT, _ref("ClientKey")])}, NULL]


def _mapping(made: Schema, model: type[BaseModel]) -> Schema:
    """Return a model as a mapping of a file, with its defaults as a file would say them."""
    written = {} if model in INHERITING else _defaults(model)
    properties: Schema = {}
    for name, part in made["properties"].items():
        value = _value(part, written.get(name))
        properties[name] = _described(part, _optional(value) if _is_section(part) else value)
    shape: Schema = {key: made[key] for key in ("description", "required") if key in made}
    return shape | {"type": "object", "properties": properties, "additionalProperties": False}


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Return the defaults that are worth showing: those of single values."""
    fields = model.model_construct().model_dump(mode="json", warnings=False)
    return {name: value for name, value in fields.items() if not isinstance(value, dict | list)}


def _is_section(part: Schema) -> bool:
    """Tell whether nothing may stand there: a section that has a default."""
    return "default" in part and ("$ref" in part or part.get("type") in ("object", "array"))


def _described(part: Schema, schema: Schema) -> Schema:
    return {"description": part["description"], **schema} if "description" in part else schema


def _optional(schema: Schema) -> Schema:
    """Return the schema of what may also be empty."""
    return (
        {"anyOf": [schema, NULL]} if "anyOf" not in schema else {**schema, "anyOf": [*schema["anyOf"], NULL]}
    )


def _value(part: Schema, default: object) -> Schema:
    shown = {"default": default} if default is not None else {}
    return {**_any_of(_forms(part)), **shown}


def _forms(part: Schema) -> list[Schema]:
    """Return all ways in which a file may write a value."""
    if "anyOf" in part:
        return [form for option in part["anyOf"] for form in _forms(option)]
    if "$ref" in part:
        return [_ref(part["$ref"].rpartition("/")[2])]
    if "enum" in part or "const" in part:
        words = part.get("enum") or [part["const"]]
        return [{"enum": words}, {"type": "string", "pattern": VARIABLE}]
    kinds = part.get("type", [])
    if kinds == ["number", "string"]:
        return [{"type": "number", "minimum": 0, "maximum": 1}, _text(rf"\+?{NUMBER} ?%?")]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return [form for kind in kinds for form in FORMS[kind](part)]


def _any_of(forms: list[Schema]) -> Schema:
    """Return one schema for several forms, each of them once."""
    once = [form for place, form in enumerate(forms) if form not in forms[:place]]
    return once[0] if len(once) == 1 else {"anyOf": once}


def _text(pattern: str) -> Schema:
    """Return a text of that form, or one with a variable in it."""
    return {"type": "string", "pattern": f"^({pattern})$|{VARIABLE}"}


def _limits(part: Schema) -> Schema:
    return {key: part[key] for key in ("minimum", "exclusiveMinimum") if key in part}


def _strings(part: Schema) -> list[Schema]:
    return [{"type": "string", "pattern": part["pattern"]}] if "pattern" in part else [TEXT]


def _flags(_part: Schema) -> list[Schema]:
    spelled = "|".join("".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in word) for word in FLAGS)
    return [{"type": "boolean"}, {"enum": [0, 1]}, _text(spelled)]


def _objects(part: Schema) -> list[Schema]:
    inner = part.get("additionalProperties")
    return [_map_of(_any_of(_forms(inner)) if isinstance(inner, dict) else {})]


FORMS: dict[str, Callable[[Schema], list[Schema]]] = {
    "null": lambda _: [NULL],
    "string": _strings,
    "boolean": _flags,
    "integer": lambda part: [{"type": "integer", **_limits(part)}, _text("[+-]?[0-9]{1,15}")],
    "number": lambda part: [{"type": "number", **_limits(part)}, _text(rf"[+-]?{NUMBER}")],
    "array": lambda part: [{"type": "array", "items": _any_of(_forms(part["items"]))}],
    "object": _objects,
}


def _map_of(values: Schema, **more: object) -> Schema:
    return {"type": "object", "additionalProperties": values, **more}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}
