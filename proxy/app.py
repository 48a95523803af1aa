"""The composition root: configuration in, running proxy out.

The only place that reads the clock and draws the seed of chance; everything below takes both as
arguments. Starting binds the sockets; stopping drains: not ready, stop accepting, let open requests
finish, end the rest with an error event.
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from proxy import __version__, wiring
from proxy.config.addresses import Address
from proxy.config.dump import config_hash, masked
from proxy.config.loader import Loaded
from proxy.core.budget import Budgets
from proxy.core.pool import Pool
from proxy.edge.access_log import AccessLog, Format
from proxy.edge.admin import Actions, build_admin, build_metrics
from proxy.edge.admin import Parts as AdminParts
from proxy.edge.auth import KeyRing
from proxy.edge.gauges import Gauges
from proxy.edge.health import Health
from proxy.edge.incident_log import IncidentLog
from proxy.edge.limits import Usage
from proxy.edge.log_writer import LineWriter
from proxy.edge.loop_lag import LoopLag
from proxy.edge.metrics import Metrics
from proxy.edge.notices import notice
from proxy.edge.observers import compose
from proxy.edge.recent import Recent
from proxy.edge.server import ProxyServer
from proxy.edge.status_data import Sources, StatusBoard
from proxy.store.store import Store
from proxy.transport.connection.dial import Dialer
from proxy.transport.connection.dns import Resolver
from proxy.transport.connection.pool import ConnectionPool
from proxy.transport.forwarder import Forwarder
from proxy.transport.upstream import Wire

BACKLOG = 1024
INTERRUPT_S = 2.0  # for the error events of requests that outlive the drain
POLL_S = 0.05


class BindError(Exception):
    """A listener's address can not be used; the message names the configuration key."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line adds. `reread` loads the configuration again, for a reload.

    `state` is the file to keep state in where the configuration names none; `None` for memory only.
    """

    log_fd: int = 1
    log_format: Format = "json"
    reread: Callable[[], Loaded] | None = None
    state: Path | None = None


class Application:
    """One running proxy."""

    def __init__(self, loaded: Loaded, options: Options) -> None:
        if loaded.settings is None:
            raise ValueError("a configuration with mistakes can not run")
        self._options = options
        self._rng = random.Random()
        self._usage: dict[str, Usage] = {}
        self.parts = wiring.build(loaded.settings, self._usage)
        self.health = Health()
        self.pool = Pool(self.parts.facts.values(), self._rng)
        self.budgets = Budgets()
        self._bound: dict[str, Address] = {}
        self._runners: list[web.AppRunner] = []
        self._listener: asyncio.Server | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._assemble(loaded)

    def _assemble(self, loaded: Loaded) -> None:
        parts, loop = self.parts, asyncio.get_running_loop()
        self._lag = LoopLag(time.monotonic)
        self.recent = Recent(running=lambda request_id: self.forwarder.facts_of(request_id))
        self._log = LineWriter(self._options.log_fd, loop.call_later)
        access_log = AccessLog(self._log.write, time.time, self._options.log_format)
        self._store = Store(self._state_file(), lambda text: self.say("note", level="warning", message=text))
        self.incidents = IncidentLog(time.monotonic, time.time, self._store, loop.call_later)
        self.board = StatusBoard(self._sources())
        self.metrics = Metrics(parts.names, CollectorRegistry(), self._gauges(), version=__version__)
        self.metrics.loaded(config_hash(parts.settings), time.time())
        observe = compose([self.metrics, access_log, self.recent, self.board, self.incidents])
        connections = ConnectionPool(Dialer(Resolver(time.monotonic)), time.monotonic)
        wire = Wire(connections, time.monotonic, time.time)
        self.forwarder = Forwarder(self.pool, self.budgets, parts.upstreams, wire, self._rng, observe)
        self.server = ProxyServer(
            setup=parts.setup,
            forwarder=self.forwarder,
            observe=observe,
            clock=time.monotonic,
            wall=time.time,
            instance=secrets.token_hex(4),
        )

    def _state_file(self) -> Path | None:
        named = self.parts.settings.server.state
        return Path(named).expanduser() if named is not None else self._options.state

    def _sources(self) -> Sources:
        return Sources(
            version=__version__,
            routes=lambda: self.parts.routes,
            cells=lambda: self.pool.snapshot(time.monotonic()),
            clock=time.monotonic,
            wall=time.time,
            ready=lambda: self.health.is_ready,
            drained=lambda: {cell.upstream for cell in self.pool.snapshot(time.monotonic()) if cell.drained},
            listen=lambda: [str(self.listen), str(self.admin)],
            in_flight=lambda: self.server.in_flight,
            incidents=self.incidents.incidents,
            requests=self.recent.latest,
        )

    def _gauges(self) -> Gauges:
        return Gauges(
            cells=lambda: self.pool.snapshot(time.monotonic()),
            attempts_in_flight=self.pool.attempts_in_flight,
            retry_budgets=lambda: self.budgets.left(time.monotonic()),
            requests_in_flight=lambda: self.server.in_flight,
            streams_in_flight=lambda: self.server.streams,
            connections=lambda: len(self.server.connections),
            loop_lag_s=self._lag.seconds,
        )

    @property
    def listen(self) -> Address:
        """Return where the endpoint listens; the true port once it does."""
        return self._bound.get("server.listen", self.parts.settings.server.listen)

    @property
    def admin(self) -> Address:
        """Return where the admin listener listens; the true port once it does."""
        return self._bound.get("server.admin", self.parts.settings.server.admin)

    async def start(self) -> None:
        """Bind all listeners and become ready.

        Raises:
            BindError: an address can not be bound; nothing is left listening.
        """
        server = self.parts.settings.server
        await self._store.open()
        await self.incidents.restore()
        try:
            await self._listen("server.listen", server.listen)
            await self._serve_admin("server.admin", server.admin, self._admin_app())
            if server.metrics is not None:
                app = build_metrics(self.metrics.exposition, self.health)
                await self._serve_admin("server.metrics", server.metrics, app)
        except BindError:
            await self.close()
            raise
        self._lag.start()
        self.health.ready = True
        gc.freeze()  # what is there now stays: the collector need not look at it again

    async def _listen(self, key: str, address: Address) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                self.server.server(), address.host, address.port, backlog=BACKLOG
            )
        except OSError as error:
            raise BindError(f"{key}: can not listen on {address}: {error.strerror or error}") from error
        self._bound[key] = Address(address.host, self._listener.sockets[0].getsockname()[1])

    async def _serve_admin(self, key: str, address: Address, app: web.Application) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        self._runners.append(runner)
        await runner.setup()
        try:
            await web.TCPSite(runner, address.host, address.port, backlog=BACKLOG).start()
        except OSError as error:
            raise BindError(f"{key}: can not listen on {address}: {error.strerror or error}") from error
        self._bound[key] = Address(address.host, runner.addresses[0][1])

    def _admin_app(self) -> web.Application:
        server = self.parts.settings.server
        key = wiring.admin_key(server)
        parts = AdminParts(
            status=self.board.status,
            metrics=self.metrics.exposition,
            recent=self.recent,
            health=self.health,
            config=lambda: masked(self.parts.settings),
            actions=Actions(
                reload=self.reload if self._options.reread is not None else None,
                drain=lambda name: self._maintain(name, self.pool.drain),
                undrain=lambda name: self._maintain(name, self.pool.undrain),
            ),
        )
        return build_admin(
            parts, keys=KeyRing([key]) if key is not None else None, loopback=server.admin.is_loopback
        )

    def _maintain(self, upstream: str, act: Callable[[str], None]) -> bool:
        """Take an upstream out or put it back; return whether there is one of that name."""
        if upstream not in self.parts.facts:
            return False
        act(upstream)
        return True

    async def reload(self) -> Sequence[str]:
        """Load the configuration again and swap it whole; return its mistakes, none if it is in use.

        State is carried over by name. Requests that run keep what they started with.
        """
        assert self._options.reread is not None
        loaded = self._options.reread()
        if loaded.settings is None:
            self.metrics.reloaded(success=False)
            return [str(problem) for problem in loaded.problems]
        parts = self.parts = wiring.build(loaded.settings, self._usage)
        self.pool.update(parts.facts.values())
        self.budgets.update(parts.routes)
        self.forwarder.upstreams = parts.upstreams
        self.server.setup = parts.setup
        self.metrics.configure(parts.names)
        self.metrics.loaded(config_hash(parts.settings), time.time())
        self.metrics.reloaded(success=True)
        return []

    def reload_soon(self) -> None:
        """Reload, from a signal handler; what is wrong goes to the log."""
        if self._options.reread is not None and (self._reloading is None or self._reloading.done()):
            self._reloading = asyncio.get_running_loop().create_task(self._reload_and_say())

    async def _reload_and_say(self) -> None:
        mistakes = await self.reload()
        if mistakes:
            self.say("reload_failed", level="error", mistakes=list(mistakes))
        else:
            self.say("reloaded", config=config_hash(self.parts.settings))

    def say(self, event: str, *, level: str = "info", **fields: object) -> None:
        """Write a line about the process itself to the log."""
        self._log.write(notice(event, level, fields, time.time(), self._options.log_format))

    async def drain(self) -> None:
        """Stop accepting, let open requests finish for `server.drain`, end the rest with an error."""
        server = self.parts.settings.server
        self.health.draining = True
        await asyncio.sleep(server.drain_delay)
        self.server.draining = True
        if self._listener is not None:
            self._listener.close()
        self.server.close_idle()
        await self._until_idle(server.drain)
        self.forwarder.interrupt()
        await self._until_idle(INTERRUPT_S)

    async def _until_idle(self, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while self.server.in_flight and time.monotonic() < end:  # noqa: ASYNC110 (twenty looks a second, at the end only)
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        """Close every socket and write the last lines of the log."""
        self.health.ready = False
        self._lag.stop()
        if self._listener is not None:
            self._listener.close()
        self.server.close_all()
        for runner in self._runners:
            await runner.cleanup()
        await self.forwarder.wire.pool.close()
        self.incidents.save()
        await self._store.close()
        self._log.close()
