"""Values: dataclasses that nobody changes.

The type checker refuses to change them. At run time they are ordinary dataclasses with slots, because
`frozen=True` sets each field by `object.__setattr__`: 0.28 us a field on CPython 3.11, against 0.05,
which over the thirty values and hundred fields of one request is a fifth of what it may cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make *cls* a value: fields from its annotations, slots, compared and hashed by its fields."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
