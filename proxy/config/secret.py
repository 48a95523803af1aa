"""A value that never shows itself by accident."""

from __future__ import annotations

import hmac
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from proxy.config.problems import Mistake, quote

MASK = "***"


class Secret:
    """A key, password or the like. Everything but `reveal()` gives `***`: repr, str, format, dumps, pickle.

    `shown` replaces the mask where part of the value is harmless (the host of a proxy's address).
    """

    __slots__ = ("_shown", "_value")

    def __init__(self, value: str, shown: str = MASK) -> None:
        self._value = value
        self._shown = shown

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return self._shown

    def __format__(self, spec: str) -> str:
        return format(self._shown, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self), _bytes(other))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> tuple[type[Secret], tuple[str, str]]:
        return (Secret, (self._shown, self._shown))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            read_secret, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string"}


def read_secret(raw: object) -> Secret:
    """Return the raw value, without space around it, as a secret that can travel in an HTTP header.

    Raises: Mistake, without the value.
    """
    if isinstance(raw, Secret):
        return raw
    if raw is None:
        raise Mistake("is empty")
    if not isinstance(raw, str):
        raise Mistake("must be one text")
    value = raw.strip()
    if not value:
        source = getattr(raw, "shown", "")
        raise Mistake(f"is empty: {quote(raw)} gives no value" if "${" in source else "is empty")
    if not value.isascii() or not value.isprintable():
        raise Mistake("holds characters that can not be sent in an HTTP header")
    return Secret(str(value))


def _bytes(secret: Secret) -> bytes:
    return secret.reveal().encode("utf-8", "surrogateescape")
