"""Durations, sizes, shares, counts and flags, read by what is expected and not by how YAML sees them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import scalars
from proxy.config.problems import Mistake
from proxy.config.scalars import Reads, Text

DURATION = scalars.duration()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1m30s", 90.0),
        ("0.5h", 1800.0),
        ("007s", 7.0),
    ],
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert DURATION.read(Text(text)) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30", "'30' has no unit: write 30s for seconds or 30ms for milliseconds"),
        ("0", "'0' has no unit: write 0s for seconds or 0ms for milliseconds"),
        ("12:30", "'12:30' is not a duration: write 250ms, 30s, 5m or 1h"),
        ("1e3", "'1e3' is not a duration: write 250ms, 30s, 5m or 1h"),
        ("-5s", "'-5s' is not a duration: write 250ms, 30s, 5m or 1h"),
        ("5 s", "'5 s' is not a duration: write 250ms, 30s, 5m or 1h"),
        ("5sec", "'5sec' is not a duration: write 250ms, 30s, 5m or 1h"),
        ("٣s", "'٣s' is not a duration: write 250ms, 30s, 5m or 1h"),
        ("no", "'no' is not a duration: write 250ms, 30s, 5m or 1h"),
        ("off", "'off' is not a duration: write 250ms, 30s, 5m or 1h"),
        ("999999h", "must be at most 7 days"),
        ("", "needs a duration such as 30s"),
    ],
)
def test_what_is_not_a_duration_is_told_what_to_write(text: str, message: str) -> None:
    with pytest.raises(Mistake) as caught:
        DURATION.read(Text(text))
    assert str(caught.value) == message


def test_a_variable_without_a_unit_is_named_and_not_shown() -> None:
    with pytest.raises(Mistake) as caught:
        DURATION.read(Text("30", "${WAIT}"))
    assert str(caught.value) == "'${WAIT}' has no unit: a duration is written 250ms, 30s, 5m or 1h"


@pytest.mark.parametrize(
    ("reads", "text", "value"),
    [
        pytest.param(scalars.duration(words=("auto",)), "auto", None, id="auto"),
        pytest.param(scalars.duration(words=("off", "p95")), "off", None, id="off"),
        pytest.param(scalars.duration(words=("off", "p95")), "p95", "p95", id="p95"),
        pytest.param(scalars.duration(words=("off", "p95")), "2s", 2.0, id="a duration beside words"),
        pytest.param(scalars.size(), "64MiB", 64 * 1024**2, id="binary size"),
        pytest.param(scalars.size(), "100kB", 100_000, id="decimal size"),
        pytest.param(scalars.size(), "1.5KiB", 1536, id="part of a size"),
        pytest.param(scalars.size(), "512B", 512, id="bytes"),
        pytest.param(scalars.ratio(), "0.5", 0.5, id="share"),
        pytest.param(scalars.ratio(), "50%", 0.5, id="percent"),
        pytest.param(scalars.ratio(), "12.5%", 0.125, id="part of a percent"),
        pytest.param(scalars.ratio(), "1", 1.0, id="all"),
        pytest.param(scalars.ratio(zero=True), "0%", 0.0, id="none where that is allowed"),
        pytest.param(scalars.count(least=1), "010", 10, id="no octal numbers"),
        pytest.param(scalars.count(least=1, word="auto"), "auto", "auto", id="a word for a count"),
        pytest.param(scalars.flag(), "no", False, id="no"),
        pytest.param(scalars.flag(), "On", True, id="On"),
        pytest.param(scalars.choice("enforce", "off"), "off", "off", id="off as a word"),
        pytest.param(scalars.positive(), "0.25", 0.25, id="a weight"),
        pytest.param(scalars.words(), "12:30", "12:30", id="a text that YAML 1.1 takes for a number"),
    ],
)
def test_a_scalar_is_read_by_what_is_expected(reads: Reads, text: str, value: object) -> None:
    assert reads.read(Text(text)) == value


@pytest.mark.parametrize(
    ("reads", "text", "message"),
    [
        (scalars.duration(least=0.001), "0s", "must be at least 1ms"),
        (
            scalars.duration(words=("off", "p95")),
            "p99",
            "'p99' is not a duration: write 250ms, 30s, 5m or 1h, or off, or p95",
        ),
        (scalars.size(), "64", "'64' has no unit: a size is written 512B, 64KiB, 64MiB or 1GiB"),
        (scalars.size(), "64M", "'64M' is not a size: write 512B, 64KiB, 64MiB or 1GiB"),
        (scalars.size(), "0B", "must be at least 1B"),
        (scalars.ratio(), "50", "'50' is more than 1: write a share such as 0.5 or 50%"),
        (scalars.ratio(), "150%", "must be more than 0% and at most 100%"),
        (scalars.ratio(), "0", "must be more than 0% and at most 100%"),
        (scalars.ratio(), "half", "'half' is not a share: write 0.5 or 50%"),
        (scalars.count(least=1), "1.5", "'1.5' is not a whole number"),
        (scalars.count(least=1), "1_000", "'1_000' is not a whole number"),
        (scalars.count(least=1), "0", "must be at least 1"),
        (scalars.count(least=1, word="auto"), "all", "'all' is not a whole number or auto"),
        (scalars.flag(), "maybe", "'maybe' is neither true nor false"),
        (scalars.choice("relay", "failover"), "relai", "'relai' is not known: did you mean 'relay'?"),
        (scalars.choice("error", "resume"), "none", "'none' is not known: write error or resume"),
        (scalars.positive(), "0", "must be more than 0"),
        (scalars.words(), " ", "is empty"),
    ],
)
def test_what_can_not_be_meant_says_so(reads: Reads, text: str, message: str) -> None:
    with pytest.raises(Mistake) as caught:
        reads.read(Text(text))
    assert str(caught.value) == message


@given(st.integers(0, 7 * 24 * 3600 * 1000))
def test_a_duration_that_is_written_back_reads_the_same(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    written = scalars.write_duration(seconds)
    assert DURATION.read(Text(written)) == pytest.approx(seconds, rel=1e-5)


@given(st.integers(1, 2**40))
def test_a_size_that_is_written_back_reads_the_same(amount: int) -> None:
    reads = scalars.size()
    assert reads.write is not None
    assert reads.read(Text(reads.write(amount))) == amount


@given(st.text() | st.none(), st.sampled_from(["duration", "size", "ratio", "flag", "words", "positive"]))
def test_no_reader_fails_in_another_way_than_by_a_mistake(text: str | None, name: str) -> None:
    reads: Reads = getattr(scalars, name)()
    with contextlib.suppress(Mistake):
        reads.read(None if text is None else Text(text))
