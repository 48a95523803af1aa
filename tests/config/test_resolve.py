"""Policies by inheritance, and what the rest of the proxy is given."""

from __future__ import annotations

from proxy.config.resolve import (
    attempt_policy,
    breaker_policy,
    connect_s,
    core_routes,
    route_policy,
    upstream_facts,
    upstream_wire,
)
from proxy.core.target import AttemptPolicy, BreakerPolicy, RoutePolicy
from tests.config.loading import MINIMAL, settings_of

LAYERS = """
upstreams:
  a:
    base_url: http://127.0.0.1:1/v1
    policy: {first_token: 2s, stall: 3s, connect: 4s, breaker: {open: 1s, slow_after: 9s}}
  b: {base_url: "http://127.0.0.1:2/v1"}
routes:
  m:
    targets: [a, b/n]
    policy: {stall: 5s, backoff: 1s, hold: 0s, hedge: off, deadline: 30s}
  "x*": [b, a/y]
policy:
  stall: 6s
  response: 7s
  first_token: 8s
  connect: 9s
  hedge: p95
  breaker: {open: 2s, consecutive: 3, slow_after: 8s}
"""


def test_without_a_policy_the_defaults_of_the_contract_hold() -> None:
    settings = settings_of(MINIMAL)
    assert breaker_policy(settings, "openai") == BreakerPolicy()
    assert connect_s(settings, "openai") == 5.0
    assert route_policy(settings, "*") == RoutePolicy()
    assert attempt_policy(settings, "*", "openai") == AttemptPolicy()


def test_the_nearest_value_wins_key_by_key() -> None:
    settings = settings_of(LAYERS)
    assert attempt_policy(settings, "m", "a") == AttemptPolicy(2.0, 7.0, 5.0, 1, 1.0)
    assert attempt_policy(settings, "m", "b") == AttemptPolicy(8.0, 7.0, 5.0, 1, 1.0)
    assert attempt_policy(settings, "x*", "a") == AttemptPolicy(2.0, 7.0, 3.0, 1, 0.25)
    assert breaker_policy(settings, "a") == BreakerPolicy(open_s=1.0, consecutive=3, slow_after_s=9.0)
    assert breaker_policy(settings, "b") == BreakerPolicy(open_s=2.0, consecutive=3, slow_after_s=8.0)
    assert (connect_s(settings, "a"), connect_s(settings, "b")) == (4.0, 9.0)
    assert route_policy(settings, "m") == RoutePolicy(deadline_s=30.0, hold_s=0.0, hedge=None)
    assert route_policy(settings, "x*") == RoutePolicy(hedge="p95")


def test_saying_the_default_again_wins_over_what_lies_further_out() -> None:
    settings = settings_of(
        MINIMAL.replace('"}', '", policy: {first_token: auto, breaker: {slow_after: null, adaptive: yes}}}')
        + "policy: {first_token: 5s, breaker: {slow_after: 5s, adaptive: no}}\n"
    )
    assert attempt_policy(settings, "*", "openai").first_token_s is None
    assert breaker_policy(settings, "openai") == BreakerPolicy(slow_after_s=None, adaptive=True)


def test_exact_routes_have_definite_models_and_patterns_pass_the_name_on() -> None:
    exact, pattern = core_routes(settings_of(LAYERS))
    assert [
        [(target.upstream.name, target.model, target.wildcard) for target in tier.targets]
        for tier in exact.tiers
    ] == [
        [("a", "m", False)],
        [("b", "n", False)],
    ]
    assert [
        [(target.upstream.name, target.model, target.wildcard) for target in tier.targets]
        for tier in pattern.tiers
    ] == [
        [("b", None, True)],
        [("a", "y", False)],
    ]
    assert exact.tiers[0].targets[0].upstream is pattern.tiers[1].targets[0].upstream


def test_the_long_form_reaches_the_core() -> None:
    settings = settings_of(
        """
        upstreams:
          a: {base_url: "http://127.0.0.1:1/v1", capabilities: {context: 1000}}
          b: {base_url: "http://127.0.0.1:2/v1"}
        routes:
          m:
            targets:
              - [{target: a, weight: 3}, {target: b/x/y, weight: 0.5, context: 500}]
              - b
            allow: [a, b]
            deny: [b]
            owner: a
            balance: least_in_flight
        """
    )
    (route,) = core_routes(settings)
    assert (route.allow, route.deny, route.owner) == (frozenset("ab"), frozenset("b"), "a")
    assert [tier.balance for tier in route.tiers] == ["least_in_flight"] * 2
    first, second = route.tiers[0].targets
    assert (first.weight, first.model, first.context) == (3.0, "m", 1000)
    assert (second.weight, second.model, second.context) == (0.5, "x/y", 500)


def test_routes_are_in_matching_order() -> None:
    names = ["*", "gpt-*", "b", "gpt-5*", "*-mini", "gpt-*-mini", "a"]
    routes = "".join(f'  "{name}": [openai]\n' for name in names)
    settings = settings_of(MINIMAL.replace('  "*": [openai]\n', routes))
    assert list(settings.routes) == ["b", "a", "gpt-5*", "gpt-*-mini", "gpt-*", "*-mini", "*"]


def test_what_a_provider_lacks_can_be_corrected() -> None:
    settings = settings_of(
        """
        upstreams:
          c:
            provider: anthropic
            api_key: k
            capabilities: {json_schema: true, vision: false}
            reasoning: true
          d: {provider: anthropic, api_key: k, endpoints: [/v1/chat/completions, embeddings]}
        routes: {"*": [c, d]}
        """
    )
    facts = upstream_facts(settings, "c")
    assert "json_schema" not in facts.lacks
    assert {"vision", "logprobs", "n"} <= facts.lacks
    assert facts.endpoints == {"chat/completions", "models"}
    assert facts.reasoning
    assert (facts.endpoint, facts.fate, facts.max_concurrency) == ("https://api.anthropic.com:443", "c", 256)
    assert upstream_facts(settings, "d").endpoints == {"chat/completions", "embeddings"}


def test_upstreams_that_use_one_key_at_one_provider_share_its_cell() -> None:
    settings = settings_of(
        """
        upstreams:
          eu: {base_url: "https://eu.api.openai.com/v1", api_keys: [one, two]}
          us: {base_url: "https://us.api.openai.com/v1", api_key: two}
          else: {base_url: "https://x.example/v1", api_key: one}
          local: {provider: ollama}
          mine: {base_url: "https://x.example/v1", api_key: passthrough}
        routes: {m: [eu, us, else], n: [local], o: [mine]}
        """
    )
    cells = {name: upstream_facts(settings, name).credentials for name in settings.upstreams}
    first, second = cells["eu"]
    assert first != second
    assert cells["us"] == (second,)
    assert cells["else"] not in ((first,), (second,))
    assert (cells["local"], cells["mine"]) == (("local",), ("mine",))
    assert [key.reveal() for key in upstream_wire(settings, "eu").keys] == ["one", "two"]
    assert upstream_facts(settings, "mine").passthrough


def test_a_replaced_key_is_another_cell_and_one_that_stays_is_not() -> None:
    def cells(keys: str) -> tuple[str, ...]:
        text = f"""
            upstreams:
              eu: {{base_url: "https://eu.api.openai.com/v1", api_keys: {keys}}}
            routes: {{m: [eu]}}
        """
        return upstream_facts(settings_of(text), "eu").credentials

    one, two = cells("[one, two]")
    assert cells("[two, three]")[0] == two
    assert cells("[three]") != (one,)
    assert not {"one", "two"} & {one.partition("@")[2], two.partition("@")[2]}


def test_the_wire_knows_how_to_send() -> None:
    settings = settings_of(
        """
        upstreams:
          az:
            base_url: https://my.openai.azure.com/openai/v1/
            api_key: k
            headers: {X-Team: search}
            headers_from_client: [X-Trace]
            params: {drop: [user], set: {store: false}}
            models: {fast: deployment-1}
            proxy: http://me:secret@proxy.example:3128
          mi: {provider: mistral, api_key: k, params: {rename: {max_completion_tokens: limit}}}
        routes: {"*": [az, mi]}
        """
    )
    az, mi = upstream_wire(settings, "az"), upstream_wire(settings, "mi")
    assert (az.provider, az.base_url) == ("azure", "https://my.openai.azure.com/openai/v1")
    assert (az.auth_header, az.auth_prefix) == ("api-key", "")
    assert (mi.auth_header, mi.auth_prefix) == ("authorization", "Bearer ")
    assert (az.drop, dict(az.set), dict(az.models)) == (("user",), {"store": False}, {"fast": "deployment-1"})
    assert az.headers_from_client == ("x-trace",)
    assert az.proxy is not None
    assert az.proxy.reveal() == "http://me:secret@proxy.example:3128"
    assert str(az.proxy) == "http://***@proxy.example:3128"
    assert "secret" not in repr(az)
    assert mi.rename["max_completion_tokens"] == "limit"
    assert mi.rename["seed"] == "random_seed"
