"""Scalars read by what is expected: durations, sizes, ratios, counts, flags, choices.

Each reader takes the raw value of the file (a `Text`, or None for null) or a Python value that is
already right, and raises Mistake with the one message that the mistake deserves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from proxy.config.problems import Mistake, nearest, quote

_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,6})?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h))+", re.ASCII)
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h)", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(B|kB|KB|MB|GB|KiB|MiB|GiB)", re.ASCII)
_BARE_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}", re.ASCII)
_DECIMAL = re.compile(rf"[+-]?{_NUMBER}", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_LONGEST_S = 7 * 24 * 3600.0
_FLAGS = {"true": True, "yes": True, "on": True, "1": True}
_FLAGS |= {"false": False, "no": False, "off": False, "0": False}


class Text(str):
    """A scalar as it was written. `shown` is what an error may show of it: its text before `${VAR}`."""

    __slots__ = ("plain", "shown")

    plain: bool
    shown: str

    def __new__(cls, value: str, shown: str | None = None, *, plain: bool = False) -> Text:
        text = super().__new__(cls, value)
        text.shown = value if shown is None else shown
        text.plain = plain
        return text


@dataclass(frozen=True, slots=True)
class Reads:
    """Annotates a field with the function that reads it, how it is written back, and its JSON Schema."""

    read: Callable[[object], Any]
    schema: dict[str, Any]
    write: Callable[[Any], Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        ser = None
        if self.write:
            ser = core_schema.plain_serializer_function_ser_schema(self.write, when_used="json")
        return core_schema.no_info_plain_validator_function(self.read, serialization=ser)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


def is_absent(raw: object) -> bool:
    """Tell whether nothing was written, or a variable without a value."""
    return raw is None or raw == ""


def duration(*, least: float = 0.0, words: tuple[str, ...] = (), null: bool = False) -> Reads:
    """Read `250ms`, `30s`, `1m30s`, `1h` as seconds, at least *least*.

    Of *words*, "p95" stays itself; the others ("off", "auto") become None, as null does where allowed.
    """

    def read(raw: object) -> float | str | None:
        if is_absent(raw) and (null or words):
            if null:
                return None
            raise Mistake(f"needs a duration such as 30s, or {' or '.join(words)}")
        if isinstance(raw, str) and raw in words:
            return str(raw) if raw == "p95" else None
        seconds = raw if isinstance(raw, float | int) else read_duration(raw, words)
        if not least <= seconds <= _LONGEST_S:
            bound = f"at least {write_duration(least)}" if seconds < least else "at most 7 days"
            raise Mistake(f"must be {bound}")
        return float(seconds)

    spelled: dict[str, Any] = {"type": "string", "pattern": rf"^{_DURATION.pattern}$|\$\{{"}
    options: list[dict[str, Any]] = [spelled]
    options += [{"const": word} for word in words]
    options += [{"type": "null"}] if null else []

    def write(value: float | str | None) -> str | None:
        if value is None:
            return None if null else next((word for word in words if word != "p95"), None)
        return value if isinstance(value, str) else write_duration(value)

    return Reads(read, spelled if len(options) == 1 else {"anyOf": options}, write)


def read_duration(raw: object, words: tuple[str, ...] = ()) -> float:
    """Return the seconds that *raw* spells."""
    also = "".join(f", or {word}" for word in words)
    if not isinstance(raw, str) or not raw:
        raise Mistake(f"needs a duration such as 30s{also}")
    if _BARE_NUMBER.fullmatch(raw):
        if "${" in getattr(raw, "shown", raw):
            raise Mistake(f"{quote(raw)} has no unit: a duration is written 250ms, 30s, 5m or 1h")
        raise Mistake(f"{quote(raw)} has no unit: write {raw}s for seconds or {raw}ms for milliseconds")
    if not _DURATION.fullmatch(raw):
        raise Mistake(f"{quote(raw)} is not a duration: write 250ms, 30s, 5m or 1h{also}")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(raw))


def write_duration(seconds: float) -> str:
    """Return the duration as a configuration file would have it."""
    if seconds and seconds % 3600 == 0:
        return f"{seconds / 3600:.0f}h"
    if seconds >= 1 or seconds == 0:
        return f"{seconds:g}s" if seconds < 1e6 else f"{seconds:.0f}s"
    return f"{seconds * 1000:g}ms"


def size() -> Reads:
    """Read `64MiB`, `100kB` as bytes, at least one."""
    return Reads(_read_size, {"type": "string", "pattern": rf"^{_SIZE.pattern}$|\$\{{"}, _write_size)


def _read_size(raw: object) -> int:
    if isinstance(raw, int) and raw > 0:
        return raw
    if not isinstance(raw, str) or not raw:
        raise Mistake("needs a size such as 64MiB")
    if _BARE_NUMBER.fullmatch(raw):
        raise Mistake(f"{quote(raw)} has no unit: a size is written 512B, 64KiB, 64MiB or 1GiB")
    found = _SIZE.fullmatch(raw)
    if not found:
        raise Mistake(f"{quote(raw)} is not a size: write 512B, 64KiB, 64MiB or 1GiB")
    amount = int(float(found[1]) * _BYTES[found[2]])
    if amount < 1:
        raise Mistake("must be at least 1B")
    return amount


def _write_size(amount: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if amount % _BYTES[unit] == 0:
            return f"{amount // _BYTES[unit]}{unit}"
    return f"{amount}B"


def ratio(*, zero: bool = False) -> Reads:
    """Read `0.5` or `50%` as a share from 0 to 1; 0 itself only where it makes sense."""

    def read(raw: object) -> float:
        if isinstance(raw, str):
            digits, percent = (raw[:-1].rstrip(), True) if raw.endswith("%") else (raw, False)
            if not _DECIMAL.fullmatch(digits):
                raise Mistake(f"{quote(raw)} is not a share: write 0.5 or 50%")
            share = float(digits) / (100 if percent else 1)
            if share > 1 and not percent:
                raise Mistake(f"{quote(raw)} is more than 1: write a share such as 0.5 or 50%")
        elif isinstance(raw, int | float):
            share = float(raw)
        else:
            raise Mistake("needs a share such as 0.5 or 50%")
        if not 0 <= share <= 1 or (share == 0 and not zero):
            raise Mistake(f"must be {'at least 0%' if zero else 'more than 0%'} and at most 100%")
        return share

    return Reads(read, {"type": ["number", "string"]}, lambda share: f"{share * 100:g}%")


def count(*, least: int, most: int = 10**9, word: str | None = None, null: bool = False) -> Reads:
    """Read a whole number within bounds, or the one *word* that stands for a choice of ours."""

    def read(raw: object) -> int | str | None:
        if null and is_absent(raw):
            return None
        if word is not None and raw == word:
            return word
        if isinstance(raw, str) and _INTEGER.fullmatch(raw):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool):
            given = f"{quote(raw)} is not" if isinstance(raw, str) else "needs"
            raise Mistake(f"{given} a whole number" + (f" or {word}" if word else ""))
        if raw < least:
            raise Mistake(f"must be at least {least}")
        if raw > most:
            raise Mistake(f"must be at most {most}")
        return raw

    schema: dict[str, Any] = {"type": ["integer", "null"] if null else "integer", "minimum": least}
    return Reads(read, {"anyOf": [schema, {"const": word}]} if word else schema)


def flag(*, null: bool = False) -> Reads:
    """Read true or false (yes, no, on, off)."""

    def read(raw: object) -> bool | None:
        if null and is_absent(raw):
            return None
        if isinstance(raw, bool):
            return raw
        value = _FLAGS.get(raw.lower()) if isinstance(raw, str) else None
        if value is None:
            given = f"{quote(raw)} is neither" if isinstance(raw, str) else "needs"
            raise Mistake(f"{given} true {'nor' if isinstance(raw, str) else 'or'} false")
        return value

    return Reads(read, {"type": ["boolean", "null"] if null else "boolean"})


def choice(*options: str) -> Reads:
    """Read one of a few words."""

    def read(raw: object) -> str:
        if isinstance(raw, str) and raw in options:
            return str(raw)
        listed = f"{', '.join(options[:-1])} or {options[-1]}" if len(options) > 1 else options[0]
        given = f"{quote(raw)} is not known: " if isinstance(raw, str) else ""
        meant = nearest(raw, options) if isinstance(raw, str) else None
        raise Mistake(f"{given}did you mean '{meant}'?" if meant else f"{given}write {listed}")

    return Reads(read, {"enum": list(options)})


def positive() -> Reads:
    """Read a number above zero, such as a weight."""

    def read(raw: object) -> float:
        if isinstance(raw, str):
            if not _DECIMAL.fullmatch(raw):
                raise Mistake(f"{quote(raw)} is not a number")
            raw = float(raw)
        if not isinstance(raw, int | float):
            raise Mistake("needs a number")
        if not 0 < raw <= 1e9:
            raise Mistake("must be more than 0")
        return float(raw)

    return Reads(read, {"type": "number", "exclusiveMinimum": 0})


def words(*, null: bool = False) -> Reads:
    """Read a text of at least one character on one line."""

    def read(raw: object) -> str | None:
        if null and is_absent(raw):
            return None
        if not isinstance(raw, str):
            raise Mistake("needs a text")
        if not raw.strip() or not raw.isprintable():
            raise Mistake("is empty" if not raw.strip() else "holds control characters")
        return str(raw)

    return Reads(read, {"type": ["string", "null"] if null else "string"})
