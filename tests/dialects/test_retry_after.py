"""How long an upstream asks us to wait, in every way it says so, and what is no hint at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.retry_after import duration_s, header_hint_s, reset_hint_s, words_hint_s

WALL = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param(b"30", 30.0, id="seconds"),
        pytest.param(b" 2.5 ", 2.5, id="a fraction"),
        pytest.param(b"0", 0.0, id="now"),
        pytest.param(b"Wed, 21 Oct 2015 07:29:30 GMT", 90.0, id="an HTTP date"),
        pytest.param(b"Wed, 21 Oct 2015 07:27:00 GMT", 0.0, id="a date in the past"),
        pytest.param(b"Wed, 21 Oct 2015 07:29:30 -0000", 90.0, id="a date without a zone is GMT"),
        pytest.param(b"999999999999", 999999999999.0, id="absurd, but a number: capped elsewhere"),
        pytest.param(b"-5", None, id="negative"),
        pytest.param(b"nan", None, id="not a number"),
        pytest.param(b"inf", None, id="infinite"),
        pytest.param(b"1e9", None, id="an exponent"),
        pytest.param(b"1_000", None, id="Python's own notation"),
        pytest.param(b"9" * 400, None, id="more digits than a number holds"),
        pytest.param(b"\xd9\xa3", None, id="digits of another script"),
        pytest.param(b"soon", None, id="a word"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"Wed, 99 Oct 2015 07:29:30 GMT", None, id="a day that is not"),
        pytest.param(b"\xff\xfe", None, id="bytes"),
    ],
)
def test_retry_after_is_read_or_ignored(value: bytes, seconds: float | None) -> None:
    assert header_hint_s({b"retry-after": value}.get, wall=WALL) == seconds


def test_milliseconds_win_over_seconds() -> None:
    headers = {b"retry-after": b"9", b"x-ms-retry-after-ms": b"2000", b"retry-after-ms": b"1500"}
    assert header_hint_s(headers.get, wall=WALL) == 1.5
    del headers[b"retry-after-ms"]
    assert header_hint_s(headers.get, wall=WALL) == 2.0
    headers[b"x-ms-retry-after-ms"] = b"later"
    assert header_hint_s(headers.get, wall=WALL) == 9.0


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        pytest.param("please try again in 41.724s.", 41.724, id="openai"),
        pytest.param("please try again in 6m0s. visit", 360.0, id="openai, minutes"),
        pytest.param("please try again in 547ms.", 0.547, id="openai, milliseconds"),
        pytest.param("please try again in 1h2m3.5s", 3723.5, id="hours"),
        pytest.param("please try again in 7m35.616s. need more", 455.616, id="groq"),
        pytest.param("please retry in 31.513s.", 31.513, id="gemini"),
        pytest.param("please retry after 86400 seconds.", 86400.0, id="azure"),
        pytest.param("try again in 6 seconds.", 6.0, id="azure api management"),
        pytest.param("try again in 1 minute", 60.0, id="a minute in words"),
        pytest.param("try again in about 2 hours, 5 minutes", 7500.0, id="hours and minutes in words"),
        pytest.param("retry after: 10s", 10.0, id="with a colon"),
        pytest.param("try again later", None, id="later"),
        pytest.param("try again in a moment", None, id="a moment"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_words_are_understood(words: str, seconds: float | None) -> None:
    found = words_hint_s(words)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("547ms", 0.547), ("2m59.56s", 179.56), ("12us", 1.2e-5), ("31", None),
     ("", None), ("s", None), ("1 s", None), ("-1s", None)],
)  # fmt: skip
def test_durations_are_go_durations(text: str, seconds: float | None) -> None:
    found = duration_s(text)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param(
            {b"x-ratelimit-remaining-tokens": b"0", b"x-ratelimit-reset-tokens": b"7.66s"}, 7.66, id="groq"
        ),
        pytest.param(
            {b"x-ratelimit-remaining-tokens": b"0", b"x-ratelimit-reset-tokens": b"12"}, 12.0, id="azure"
        ),
        pytest.param(
            {b"x-ratelimit-remaining": b"0", b"x-ratelimit-reset": b"1445412540000"}, 60.0, id="openrouter"
        ),
        pytest.param(
            {b"x-ratelimit-remaining": b"0", b"x-ratelimit-reset": b"1445412490"}, 10.0, id="github"
        ),
        pytest.param({b"ratelimit-remaining": b"0", b"ratelimit-reset": b"33"}, 33.0, id="mistral"),
        pytest.param(
            {
                b"anthropic-ratelimit-input-tokens-remaining": b"0",
                b"anthropic-ratelimit-input-tokens-reset": b"2015-10-21T07:28:45Z",
            },
            45.0,
            id="anthropic",
        ),
        pytest.param(
            {
                b"x-ratelimit-remaining-requests": b"0",
                b"x-ratelimit-reset-requests": b"1s",
                b"x-ratelimit-remaining-tokens": b"0",
                b"x-ratelimit-reset-tokens": b"9s",
            },
            9.0,
            id="the later of two",
        ),
        pytest.param({b"x-ratelimit-remaining-tokens": b"0"}, None, id="no reset"),
        pytest.param(
            {b"x-ratelimit-remaining-tokens": b"0", b"x-ratelimit-reset-tokens": b"soon"}, None, id="no time"
        ),
        pytest.param({b"x-ratelimit-reset-tokens": b"5s"}, None, id="nothing said to remain or not"),
    ],
)
def test_resets_count_where_nothing_remains(headers: dict[bytes, bytes], seconds: float | None) -> None:
    found = reset_hint_s(headers.get, wall=WALL)
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.binary(max_size=60), st.text(max_size=60))
def test_nothing_an_upstream_sends_raises_or_goes_below_zero(value: bytes, words: str) -> None:
    headers = dict.fromkeys((b"retry-after", b"retry-after-ms", b"x-ratelimit-reset"), value)
    headers[b"x-ratelimit-remaining"] = b"0"
    hints = (header_hint_s(headers.get, wall=WALL), reset_hint_s(headers.get, wall=WALL), words_hint_s(words))
    assert all(hint is None or hint >= 0 for hint in hints)
