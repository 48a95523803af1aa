"""A secret shows itself to nobody who does not ask by name."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from pydantic import BaseModel

from proxy.config.problems import Mistake
from proxy.config.scalars import Text
from proxy.config.secret import Secret, read_secret

CANARY = "sk-canary"


class Holder(BaseModel):
    key: Secret
    keys: dict[str, Secret] = {}


HOLDER = Holder(key=Secret(CANARY), keys={"a": Secret(CANARY)})


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(lambda: repr(Secret(CANARY)), id="repr"),
        pytest.param(lambda: str(Secret(CANARY)), id="str"),
        pytest.param(lambda: f"{Secret(CANARY)}", id="format"),
        pytest.param(lambda: f"{Secret(CANARY):>20}", id="format with a width"),
        pytest.param(lambda: json.dumps(Secret(CANARY), default=str), id="json"),
        pytest.param(lambda: pickle.dumps(Secret(CANARY)).decode("latin-1"), id="pickle"),
        pytest.param(lambda: pickle.loads(pickle.dumps(Secret(CANARY))).reveal(), id="pickled and back"),
        pytest.param(lambda: repr(HOLDER), id="a model's repr"),
        pytest.param(lambda: str(HOLDER.model_dump()), id="a model's dump"),
        pytest.param(HOLDER.model_dump_json, id="a model's JSON"),
    ],
)
def test_a_secret_is_masked(shown: object) -> None:
    assert callable(shown)
    text = shown()
    assert CANARY not in text
    assert "***" in text


def test_it_is_revealed_on_demand_and_compared_by_value() -> None:
    assert Secret(CANARY).reveal() == CANARY
    assert Secret(CANARY) == Secret(CANARY) != Secret("other")
    assert len({Secret(CANARY), Secret(CANARY)}) == 1
    assert copy.deepcopy(Secret(CANARY)).reveal() == CANARY


def test_space_around_a_key_is_dropped_since_secret_stores_like_to_add_a_newline() -> None:
    assert read_secret(Text(f"{CANARY}\n")).reveal() == CANARY


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "is empty"),
        (Text(""), "is empty"),
        (Text("", "${KEY}"), "is empty: '${KEY}' gives no value"),
        (Text(f"{CANARY}\nX-Injected: 1"), "holds characters that can not be sent in an HTTP header"),
        (Text(f"{CANARY}é"), "holds characters that can not be sent in an HTTP header"),
        ([Text(CANARY)], "must be one text"),
    ],
)
def test_what_can_not_be_a_key_is_refused_without_being_shown(raw: object, message: str) -> None:
    with pytest.raises(Mistake) as caught:
        read_secret(raw)
    assert str(caught.value) == message
