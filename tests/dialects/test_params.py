"""Configured changes to a body: only the named keys change, every other byte stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.params import Params, apply_params

BODY = b'{ "model":"m",\n  "max_completion_tokens" : 5 , "seed":1,"user" :"\\u00e9"}\n'


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        pytest.param(Params(), BODY, id="nothing to do"),
        pytest.param(Params(drop=frozenset({"logit_bias"})), BODY, id="a key that is not there"),
        pytest.param(
            Params(drop=frozenset({"seed"})),
            b'{ "model":"m",\n  "max_completion_tokens" : 5,"user" :"\\u00e9"}\n',
            id="drop in the middle",
        ),
        pytest.param(
            Params(drop=frozenset({"model"})),
            b'{ "max_completion_tokens" : 5 , "seed":1,"user" :"\\u00e9"}\n',
            id="drop the first",
        ),
        pytest.param(
            Params(drop=frozenset({"user", "seed"})),
            b'{ "model":"m",\n  "max_completion_tokens" : 5}\n',
            id="drop the last two",
        ),
        pytest.param(
            Params(drop=frozenset({"model", "max_completion_tokens", "seed", "user"})),
            b"{ }\n",
            id="drop all",
        ),
        pytest.param(
            Params(rename={"max_completion_tokens": "max_tokens"}),
            b'{ "model":"m",\n  "max_tokens" : 5 , "seed":1,"user" :"\\u00e9"}\n',
            id="rename",
        ),
        pytest.param(
            Params(rename={"max_completion_tokens": "seed"}),
            b'{ "model":"m" , "seed":1,"user" :"\\u00e9"}\n',
            id="rename onto a key that is there",
        ),
        pytest.param(
            Params(drop=frozenset({"seed"}), rename={"max_completion_tokens": "seed"}),
            b'{ "model":"m",\n  "seed" : 5,"user" :"\\u00e9"}\n',
            id="rename onto a key that is dropped",
        ),
        pytest.param(
            Params(set={"seed": None, "x": {"a": []}}),
            b'{ "model":"m",\n  "max_completion_tokens" : 5 , "seed":null,"user" :"\\u00e9","x":{"a":[]}}\n',
            id="set one that is there and one that is not",
        ),
        pytest.param(
            Params(drop=frozenset({"seed"}), rename={"user": "seed"}, set={"seed": 7}),
            b'{ "model":"m",\n  "max_completion_tokens" : 5,"seed":7}\n',
            id="all three on one key",
        ),
    ],
)
def test_the_named_keys_change(params: Params, expected: bytes) -> None:
    assert apply_params(BODY, params) == expected


@pytest.mark.parametrize("body", [b"{}", b"{ \n}"])
def test_an_empty_object_can_be_filled(body: bytes) -> None:
    assert json.loads(apply_params(body, Params(set={"a": 1, "b": "é"}))) == {"a": 1, "b": "é"}


def test_of_a_double_that_is_set_one_remains() -> None:
    assert apply_params(b'{"n":1,"n":2}', Params(set={"n": 3})) == b'{"n":3}'


KEYS = st.sampled_from(["a", "b", "c", "d", "é"])


@given(
    st.dictionaries(KEYS, st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=2)),
    st.frozensets(KEYS),
    st.dictionaries(KEYS, KEYS, max_size=2),
    st.dictionaries(KEYS, st.integers(0, 9), max_size=2),
    st.sampled_from([None, 1]),
)
def test_the_result_is_what_plain_dictionaries_give(
    document: dict[str, Any],
    drop: frozenset[str],
    rename: dict[str, str],
    fixed: dict[str, int],
    indent: int | None,
) -> None:
    expected: dict[str, Any] = {}
    for key, value in document.items():
        new = rename.get(key, key)
        if key not in drop and not (new != key and new in document and new not in drop):
            expected[new] = value
    expected |= fixed
    changed = apply_params(json.dumps(document, indent=indent).encode(), Params(drop, rename, fixed))
    assert json.loads(changed) == expected
