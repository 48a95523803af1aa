"""What is tested here runs on uvloop, as in production; modules with `BOTH_LOOPS` also on asyncio's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.transport.connection.lab import Certificates


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    module = getattr(item, "module", None)
    both = getattr(module, "BOTH_LOOPS", False)
    return {"uvloop": uvloop.new_event_loop, **({"asyncio": asyncio.new_event_loop} if both else {})}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))
