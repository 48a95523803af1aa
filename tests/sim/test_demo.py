"""The demo's pair of providers, its schedule, its text and its traffic."""

from __future__ import annotations

import asyncio
import random

import pytest
import yaml
from aiohttp import web

from proxy.sim.demo import SCHEDULE, DemoProviders, Phase
from proxy.sim.provider import Fault, Ill, Provider
from proxy.sim.traffic import DemoTraffic


def wall() -> float:
    return 1_790_000_000.0


async def test_the_settings_name_both_providers_where_they_listen() -> None:
    async with DemoProviders(wall, random.Random(1)) as providers:
        settings = yaml.safe_load(providers.settings_text("127.0.0.1:7380", "127.0.0.1:7381"))
        assert settings["server"] == {"listen": "127.0.0.1:7380", "admin": "127.0.0.1:7381"}
        assert settings["upstreams"]["first"]["base_url"] == providers.first.base_url
        assert settings["upstreams"]["second"]["base_url"] == providers.second.base_url
        assert settings["routes"]["demo-chat"] == ["first", "second"]
        assert settings["policy"]["first_token"] == "2s"


async def test_the_schedule_breaks_only_the_first_and_begins_again() -> None:
    seen: list[tuple[Ill, Ill]] = []
    round_is_over = asyncio.Event()

    def on_phase(phase: Phase) -> None:
        seen.append((phase.fault.ill, providers.second.fault.ill))
        if len(seen) == 6:
            round_is_over.set()

    quick = [Phase(phase.fault, 0.0, phase.tells) for phase in SCHEDULE]
    providers = DemoProviders(wall, random.Random(1), schedule=quick, on_phase=on_phase)
    async with providers:
        await asyncio.wait_for(round_is_over.wait(), 5)
    first = [Ill.HEALTHY, Ill.STATUS, Ill.HANG, Ill.CUT, Ill.HEALTHY, Ill.STATUS]
    assert seen[:6] == [(ill, Ill.HEALTHY) for ill in first]


async def test_nothing_listens_and_nothing_runs_after_the_exit() -> None:
    async with DemoProviders(wall, random.Random(1)) as providers:
        ports = [providers.first.port, providers.second.port]
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
    assert len(asyncio.all_tasks()) == 1


async def test_the_welcome_says_what_to_paste_and_what_will_break() -> None:
    async with DemoProviders(wall, random.Random(1)) as providers:
        text = providers.welcome("127.0.0.1:7380", "127.0.0.1:7381")
    assert "curl -N http://127.0.0.1:7380/v1/chat/completions" in text
    assert 'OpenAI(base_url="http://127.0.0.1:7380/v1"' in text
    assert "http://127.0.0.1:7381/" in text
    assert "20 s  answers 503" in text
    assert "80 s  answers normally again" in text
    assert max(map(len, text.splitlines())) <= 110


async def test_the_traffic_counts_what_its_clients_felt() -> None:
    async with Provider("first", wall, random.Random(1), pace_s=0.0) as provider:
        async with DemoTraffic(provider.base_url, random.Random(2), rate=500.0) as traffic:
            while traffic.tally.answered < 10:
                await asyncio.sleep(0)
            await provider.become(Fault(Ill.CUT))
            while traffic.tally.interrupted < 3:
                await asyncio.sleep(0)
            await provider.become(Fault(Ill.STATUS, 503))
            while traffic.tally.failed < 3:
                await asyncio.sleep(0)
        tally = traffic.tally
    assert tally.asked >= tally.answered + tally.interrupted + tally.failed
    assert f"{tally.answered} answered (unknown {tally.answered})" in str(tally)


async def test_the_traffic_never_piles_up_on_a_provider_that_says_nothing() -> None:
    most = 0
    waiting = 0

    async def hang(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal most, waiting
        waiting += 1
        most = max(most, waiting)
        await asyncio.Event().wait()
        raise AssertionError

    server = web.Server(hang, handler_cancellation=True)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    async with DemoTraffic(url, random.Random(2), rate=2000.0) as traffic:
        while waiting < 16:
            await asyncio.sleep(0)
        for _ in range(2000):
            await asyncio.sleep(0)
        assert traffic.tally.asked == 16
    listener.close()
    await server.shutdown(0)
    assert most == 16
