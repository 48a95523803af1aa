"""Every test here runs twice: on asyncio's event loop and on uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def complaints() -> list[dict[str, object]]:
    """What was reported to the loop; a test that expects some takes them out."""
    return []


@pytest.fixture(autouse=True)
async def _nothing_is_left(complaints: list[dict[str, object]]) -> AsyncIterator[None]:
    """Fail where a callback has raised, or a task outlives its connection."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
    before = asyncio.all_tasks()
    yield
    assert complaints == []
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.sleep(0.01)
