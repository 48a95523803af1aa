"""The benchmark itself works: it measures both systems and says when a budget is broken."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from tests.bench import systems
from tests.bench.__main__ import ROWS, table

ROOT = Path(__file__).parent.parent.parent
FIGURES = {row.key: 1.0 for row in ROWS}


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.skipif(len(systems.CORES) < 2, reason="the benchmark needs two cores")
async def test_a_quick_run_fills_every_line_of_the_table() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench", "--quick",
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    lines = [line.split(" | ") for line in stdout.decode().splitlines() if line.startswith("| ")]
    assert [line[0].removeprefix("| ") for line in lines[1:]] == [row.name for row in ROWS]
    assert all(float(line[1].replace(",", "")) > 0 for line in lines[1:2])


def test_medians_are_compared_and_not_means() -> None:
    nginx = [{**FIGURES, "request_cpu": cpu} for cpu in (10.0, 11.0, 90.0)]
    ours = [{**FIGURES, "request_cpu": cpu} for cpu in (1.0, 44.0, 45.0)]
    assert "| 11.0 | 44.0 | 4.0 × | ≤ 5.5 × nginx: kept |" in table({"nginx": nginx, "sidestep": ours})


def test_a_broken_budget_is_named() -> None:
    ours = {**FIGURES, "request_cpu": 6.0, "idle_mib": 61.0}
    lines = table({"nginx": [FIGURES], "sidestep": [ours]}).splitlines()
    assert sum(line.endswith("BROKEN |") for line in lines) == 2
