"""A played scenario as a picture: what clients felt over time, and where the load went.

matplotlib is an optional extra (`pip install sidestep[plot]`) and is imported only here.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proxy.sim.ledger import Ending, Ledger
from proxy.sim.replay import Replay
from proxy.sim.report import percentile
from proxy.sim.scenario import PREFERRED

BINS = 120
WITH, WITHOUT = "#1a7f5a", "#b3402e"


class PlotError(Exception):
    """The picture can't be drawn; the message says what to install."""


def draw(played: Replay, path: Path) -> None:
    """Draw *played* into the image file *path*.

    Raises: PlotError if matplotlib is not installed or the file's format is not known.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise PlotError("--plot needs matplotlib: pip install 'sidestep[plot]'") from error
    figure = figures.Figure(figsize=(10, 9), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    figure.suptitle(f"{played.scenario.name}: {played.scenario.about}", fontsize=11)
    width = played.scenario.duration / BINS
    _draw_answers(axes[0], played, width)
    _draw_waits(axes[1], played, width)
    _draw_load(axes[2], played, width)
    for axis in axes:
        _shade_faults(axis, played)
        axis.legend(loc="upper right", fontsize=8)
        axis.set_xlim(0, played.scenario.duration)
    axes[2].set_xlabel("seconds; shaded: the preferred provider is ill")
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise PlotError(f"{path}: {error}") from error


def _draw_answers(axis: Any, played: Replay, width: float) -> None:
    for ledger, label, colour in _sides(played):
        asked = [0] * BINS
        answered = [0] * BINS
        for record in ledger.records:
            bin_ = min(BINS - 1, int(record.call.at / width))
            asked[bin_] += 1
            answered[bin_] += record.ending is Ending.ANSWERED
        shares = [100 * good / all_ if all_ else math.nan for good, all_ in zip(answered, asked, strict=True)]
        axis.step(_times(width), shares, where="mid", label=label, color=colour)
    axis.set_ylabel("calls answered, %")
    axis.set_ylim(-3, 103)


def _draw_waits(axis: Any, played: Replay, width: float) -> None:
    for ledger, label, colour in _sides(played):
        waits: list[list[float]] = [[] for _ in range(BINS)]
        for record in ledger.records:
            if record.first_s is not None:
                waits[min(BINS - 1, int(record.call.at / width))].append(record.first_s)
        for share, style in ((0.5, "-"), (0.99, ":")):
            line = [percentile(values, share) for values in waits]
            axis.plot(_times(width), line, style, label=f"{label}, p{share * 100:.0f}", color=colour)
    axis.set_ylabel("wait for the answer to begin, s")
    axis.set_yscale("log")


def _draw_load(axis: Any, played: Replay, width: float) -> None:
    for name, role in played.setup.roles().items():
        counts = [0.0] * BINS
        for sent in played.ledger.sent:
            if sent.role == role:
                counts[min(BINS - 1, int(sent.at / width))] += 1 / width
        if any(counts):
            axis.step(_times(width), counts, where="mid", label=f"to {name}")
    axis.set_ylabel("attempts per second, with Sidestep")
    axis.set_ylim(bottom=0)


def _sides(played: Replay) -> Iterable[tuple[Ledger, str, str]]:
    return ((played.direct, "without", WITHOUT), (played.ledger, "with Sidestep", WITH))


def _times(width: float) -> list[float]:
    return [(number + 0.5) * width for number in range(BINS)]


def _shade_faults(axis: Any, played: Replay) -> None:
    for fault in played.scenario.spec(PREFERRED).faults:
        axis.axvspan(fault.at, fault.until, color="#000000", alpha=0.06, linewidth=0)
