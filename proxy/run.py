"""Running an application in an event loop: uvloop, signals, start-up lines, exit code."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from proxy.app import Application, BindError, Options
from proxy.config.addresses import Address, read_address
from proxy.config.loader import Loaded, read
from proxy.sim.demo import DemoProviders, Phase

PORTS_TRIED = 50


def run_proxy(loaded: Loaded, options: Options) -> int:
    """Serve *loaded* until SIGTERM or SIGINT; return the exit code."""
    return _run(_serve(loaded, options))


def run_demo(listen: str, admin: str) -> int:
    """Serve in front of the embedded providers until a signal; return the exit code."""
    return _run(_demo(_free(read_address(listen)), _free(read_address(admin))))


def _run(main: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _serve(loaded: Loaded, options: Options) -> int:
    application = Application(loaded, options)
    stop = _on_signals(application)
    try:
        await application.start()
    except BindError as error:
        print(f"sidestep: {error}", file=sys.stderr)
        return 2
    _announce(application, loaded, options)
    await stop.wait()
    await application.drain()
    await application.close()
    return 0


async def _demo(listen: Address, admin: Address) -> int:
    def tell(phase: Phase) -> None:
        now = time.strftime("%H:%M:%S")
        print(f"  {now}  provider 'first' now {phase.tells}", file=sys.stderr, flush=True)

    async with DemoProviders(time.time, random.Random(), on_phase=tell) as providers:
        text = providers.settings_text(str(listen), str(admin))
        loaded = read(text, "demo", {}, Path.cwd())
        if loaded.settings is None:
            raise RuntimeError(f"the demo's configuration has mistakes: {loaded.problems}")
        log = os.open(os.devnull, os.O_WRONLY)
        application = Application(loaded, Options(log_fd=log))
        stop = _on_signals(application)
        await application.start()
        print(providers.welcome(str(listen), str(admin)), flush=True)
        await stop.wait()
        await application.close()
        os.close(log)
    return 0


def _on_signals(application: Application) -> asyncio.Event:
    """Return the event that SIGTERM and SIGINT set; SIGHUP reloads."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    loop.add_signal_handler(signal.SIGHUP, application.reload_soon)
    return stop


def _announce(application: Application, loaded: Loaded, options: Options) -> None:
    """Write the start-up lines: where it listens, what it made of the environment."""
    application.say(
        "started", listen=str(application.listen), admin=str(application.admin), source=loaded.source
    )
    for note in loaded.notes:
        application.say("note", message=note)


def _free(address: Address) -> Address:
    """Return *address*, or the next one whose port is free."""
    for port in range(address.port, address.port + PORTS_TRIED):
        with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, port))
            except OSError:
                continue
            return Address(address.host, probe.getsockname()[1])
    return address
