"""`GET /v1/models`: answered from configuration, so that it works while every upstream is down."""

from __future__ import annotations

import msgspec

from proxy.core.routing import RouteTable
from proxy.core.target import Route


class Model(msgspec.Struct):
    """One model as OpenAI's API lists it, with the upstreams behind it beside."""

    id: str
    owned_by: str
    upstreams: list[str]
    object: str = "model"
    created: int = 0


class ModelList(msgspec.Struct):
    """OpenAI's list shape."""

    data: list[Model]
    object: str = "list"


def models_body(routes: RouteTable) -> bytes:
    """Return the list of models that have a route of their own; patterns name no model."""
    return msgspec.json.encode(ModelList([_model(route) for route in routes.exact]))


def model_body(routes: RouteTable, name: str) -> bytes | None:
    """Return one model, or None where no route leads to it."""
    route = routes.find(name)
    return msgspec.json.encode(_model(route, name)) if route is not None else None


def _model(route: Route, name: str | None = None) -> Model:
    upstreams = list(dict.fromkeys(t.upstream.name for tier in route.tiers for t in tier.targets))
    return Model(id=name or route.name, owned_by=upstreams[0] if upstreams else "", upstreams=upstreams)
