"""`${VAR}` and its forms."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.interpolate import InterpolationError, interpolate
from proxy.config.shield import hide_variables, show_variables

ENV = {"NAME": "value", "EMPTY": "", "TRICKY": "${NAME} $$ : [x]"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("${NAME}", "value"),
        ("a-${NAME}-b-${NAME}", "a-value-b-value"),
        ("${EMPTY}", ""),
        ("${EMPTY:-default}", "default"),
        ("${UNSET:-default}", "default"),
        ("${UNSET:-}", ""),
        ("${UNSET:-${NAME}}", "value"),
        ("${UNSET:-a:-b}", "a:-b"),
        ("${NAME:-default}", "value"),
        ("${NAME:?must be set}", "value"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("100$", "100$"),
        ("pa$word", "pa$word"),
        ("${TRICKY}", "${NAME} $$ : [x]"),
    ],
)
def test_variables_are_replaced(text: str, result: str) -> None:
    assert interpolate(text, ENV) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${UNSET}", "environment variable UNSET is not set"),
        ("x${UNSET:?the key of the shop}", "UNSET is not set: the key of the shop"),
        ("${EMPTY:?}", "EMPTY is not set: it is required"),
        ("${NAME", "'${' without its '}'"),
        ("${}", "'${' needs the name of a variable: ${NAME}"),
        ("${1NAME}", "'${' needs the name of a variable: ${NAME}"),
        ("${NAME-default}", "write ${NAME}, ${NAME:-default} or ${NAME:?message}"),
        ("${NAME x}", "write ${NAME}, ${NAME:-default} or ${NAME:?message}"),
        ("$NAME", "write ${NAME}, or $$NAME for a literal dollar sign"),
        ("${U:-" * 20 + "}" * 20, "variables are nested too deeply"),
    ],
)
def test_what_is_missing_or_not_understood_is_said(text: str, message: str) -> None:
    with pytest.raises(InterpolationError) as caught:
        interpolate(text, ENV)
    assert str(caught.value) == message


@given(st.text(alphabet="${}:-?AB x"))
def test_any_text_gives_a_text_or_a_message(text: str) -> None:
    with contextlib.suppress(InterpolationError):
        assert isinstance(interpolate(text, {"A": "1"}), str)


@given(st.text())
def test_a_text_whose_dollars_are_doubled_stays_itself(text: str) -> None:
    assert interpolate(text.replace("$", "$$"), {}) == text


@pytest.mark.parametrize(
    "written",
    [
        "${NAME}",
        "{a: ${NAME}, b: [${NAME:-x}, ${NAME:?no: name # here}]}",
        "[${NAME:-{a, b}}, '${NAME:-]}']",
        "${NAME:-${OTHER:-x}} ${NAME",
        "$${NAME}",
    ],
)
def test_variables_are_hidden_from_yaml_and_shown_again(written: str) -> None:
    hidden = hide_variables(written)
    assert len(hidden) == len(written)
    assert "{NAME}" not in hidden
    assert show_variables(hidden) == written


@given(st.text(alphabet="${}[],:#?a \n\uf8a0"))
def test_hiding_keeps_every_position(text: str) -> None:
    hidden = hide_variables(text)
    assert len(hidden) == len(text)
    if "\uf8a0" not in text:
        assert show_variables(hidden) == text
    else:
        assert hidden == text
