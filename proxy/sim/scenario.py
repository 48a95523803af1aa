"""An outage as a readable file: who asks how often, how each provider behaves, and what breaks when.

Providers are named by role: `first`, `second`, … are the upstreams of the configuration it is played
against, in the order of its first route; models likewise: `first` is the first route. So one file
can be played against any configuration. A provider that is not mentioned is healthy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

ROLES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
PREFERRED = ROLES[0]

# What a provider may do to an attempt, beside any HTTP status from 400 on.
ILLS = {
    "refused": "nobody listens",
    "unreachable": "connecting takes for ever",
    "dns": "the name can't be resolved",
    "tls": "the handshake fails",
    "reset": "the connection dies before the answer begins",
    "hang": "the request is taken and nothing comes back",
    "html": "an HTML error page of a CDN, status 502",
    "blank": "200 with nothing in it",
    "half_json": "200 with a body that ends too early",
    "error_event": "200, then an overloaded error before the first token",
    "quota": "429 insufficient_quota",
    "cut": "the connection dies in the middle of the answer",
    "stall": "silence in the middle of the answer",
}

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class ScenarioError(Exception):
    """A scenario that can't be read; the message lists every mistake, one a line."""


def _read_duration(value: object) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write 250ms, 30s or 5m")
    return float(match[1]) * _UNITS[match[2]]


def _read_ratio(value: object) -> float:
    text = str(value).strip()
    try:
        ratio = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"{value!r} is not a share; write 50% or 0.5")
    return ratio


def _read_role(value: object) -> str:
    if value not in ROLES:
        raise ValueError(f"{value!r} is not a role; roles are {', '.join(ROLES)}")
    return str(value)


def _read_ill(value: object) -> str:
    text = str(value)
    if text not in ILLS and not re.fullmatch(r"[45]\d\d", text):
        raise ValueError(f"{value!r} is neither an HTTP error status nor one of {', '.join(ILLS)}")
    return text


def _read_capacity(value: object) -> dict[float, float]:
    points = value if isinstance(value, dict) else {"0s": value}
    try:
        return {_read_duration(when): float(str(rate)) for when, rate in points.items()}
    except ValueError as error:
        raise ValueError(f"{value!r} is not a capacity; write 100 or {{0s: 100, 60s: 20}}") from error


Duration = Annotated[float, BeforeValidator(_read_duration)]
Ratio = Annotated[float, BeforeValidator(_read_ratio)]
Role = Annotated[str, BeforeValidator(_read_role)]
Ill = Annotated[str, BeforeValidator(_read_ill)]
Weight = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Traffic(_Part):
    """Who asks: each of *sidecars* proxies gets *rate* requests per second.

    `patience` is how long a client waits for its answer to begin, `retries` what its SDK adds: both
    as openai-python has them if nobody changes anything.
    """

    rate: Weight = 5.0
    sidecars: int = Field(default=1, ge=1, le=1000)
    streams: Ratio = 0.5
    models: dict[Role, Weight] = Field(default={"first": 1.0}, min_length=1)
    operations: dict[str, Weight] = Field(default={"chat": 1.0}, min_length=1)
    patience: Duration = 600.0
    retries: int = Field(default=2, ge=0, le=10)


class Waves(_Part):
    """A fault that comes and goes: *bad* then *good*, over and over."""

    bad: Duration
    good: Duration


class Fault(_Part):
    """What breaks, from `at`, for `lasts`.

    `share` of the requests is hit, growing from none over `onset` and falling to none over the last
    `fade`. `fails` weighs what they see; without it they are only slowed. `first_token` and `answer`
    replace the provider's own. `cuts_open`: answers under way die as it begins.
    """

    at: Duration
    lasts: Duration
    share: Ratio = 1.0
    onset: Duration = 0.0
    fade: Duration = 0.0
    waves: Waves | None = None
    models: frozenset[Role] | None = None
    operations: frozenset[str] | None = None
    fails: dict[Ill, Weight] = Field(default={})
    retry_after: Duration | None = None
    fails_in: Duration = 0.15
    first_token: Duration | None = None
    answer: Duration | None = None
    cuts_open: bool = False

    @property
    def until(self) -> float:
        """Return when it is over."""
        return self.at + self.lasts

    @model_validator(mode="after")
    def _does_something(self) -> Fault:
        if not self.fails and self.first_token is None and self.answer is None and not self.cuts_open:
            raise ValueError("a fault needs fails, first_token, answer or cuts_open")
        if self.onset + self.fade > self.lasts:
            raise ValueError("onset and fade together last longer than the fault")
        return self

    def concerns(self, model: str, operation: str) -> bool:
        """Tell whether it can hit requests for *model* (the role of their route) and *operation*."""
        return (self.models is None or model in self.models) and (
            self.operations is None or operation in self.operations
        )

    def share_at(self, now: float) -> float:
        """Return the share of requests that is hit at *now*."""
        since = now - self.at
        if not 0.0 <= since < self.lasts:
            return 0.0
        if self.waves is not None and since % (self.waves.bad + self.waves.good) >= self.waves.bad:
            return 0.0
        rising = since / self.onset if since < self.onset else 1.0
        left = self.lasts - since
        return self.share * min(rising, left / self.fade if left < self.fade else 1.0)


class ProviderSpec(_Part):
    """One provider in health, and its faults.

    `first_token` and `answer` (from the first token to the end) are medians of log-normal times with
    the given `spread` (sigma). `errors` are 500s that even a healthy one gives. Above `capacity`,
    in requests per second, it answers 503; a mapping of times gives points to go between in a line.
    """

    first_token: Duration = 0.6
    answer: Duration = 3.0
    spread: float = Field(default=0.4, ge=0.0, le=2.0)
    errors: Ratio = 0.005
    capacity: Annotated[dict[float, float], BeforeValidator(_read_capacity)] | None = None
    faults: tuple[Fault, ...] = ()

    def capacity_at(self, now: float) -> float | None:
        """Return how many requests per second it can take at *now*; `None`: any number."""
        if self.capacity is None:
            return None
        before = max((when for when in self.capacity if when <= now), default=min(self.capacity))
        after = min((when for when in self.capacity if when > now), default=before)
        if after == before:
            return self.capacity[before]
        along = (now - before) / (after - before)
        return self.capacity[before] + along * (self.capacity[after] - self.capacity[before])


class Scenario(_Part):
    """A whole outage. `about` names the real one it retells."""

    name: str
    about: str
    duration: Duration
    traffic: Traffic = Traffic()
    providers: dict[Role, ProviderSpec]

    @property
    def trouble(self) -> tuple[float, float]:
        """Return when the first fault of the first provider begins and when its last one is over."""
        faults = self.spec(PREFERRED).faults
        if not faults:
            return (self.duration, self.duration)
        return (min(fault.at for fault in faults), max(fault.until for fault in faults))

    def spec(self, role: str) -> ProviderSpec:
        """Return the provider in *role*, a healthy one if the file does not mention it."""
        return self.providers.get(role) or ProviderSpec()


def read_scenario(text: str, name: str) -> Scenario:
    """Read a scenario from YAML; *name* is its name and how messages call the file.

    Raises: ScenarioError listing every mistake.
    """
    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{name}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ScenarioError(f"{name}: a scenario is a mapping with about, duration, traffic and providers")
    try:
        return Scenario.model_validate({"name": name, **document})
    except ValidationError as error:
        raise ScenarioError("\n".join(_messages(error, name))) from error


def load_scenario(name_or_path: str, shipped: Path) -> Scenario:
    """Load a scenario by path (anything with a slash or a suffix) or by the name of a shipped one.

    Raises: ScenarioError if there is none, naming those that are shipped, or if it has mistakes.
    """
    path = Path(name_or_path)
    if not path.suffix and len(path.parts) == 1:
        path = shipped / f"{name_or_path}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
        raise ScenarioError(f"no scenario {name_or_path!r}; shipped are: {known}") from error
    return read_scenario(text, path.stem)


def _messages(error: ValidationError, name: str) -> list[str]:
    lines = []
    for mistake in error.errors():
        where = ".".join(str(part) for part in mistake["loc"] if part != "[key]")
        unknown = mistake["type"] == "extra_forbidden"
        what = "unknown key" if unknown else mistake["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {where or 'scenario'}: {what}")
    return lines
