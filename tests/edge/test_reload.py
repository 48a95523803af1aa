"""What a reload changes, and what it keeps."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.proxy import running_proxy
from tests.fakes.upstream import FakeUpstream, Reply, Request

REFUSED = {
    "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
}


def only(key: str, request: Request) -> Reply:
    return Reply() if request.headers.get("authorization") == f"Bearer {key}" else Reply(401, json=REFUSED)


def config(url: str, keys: str) -> str:
    return f'upstreams: {{a: {{base_url: "{url}", api_keys: [{keys}]}}}}\nroutes: {{m: [a]}}\n'


async def test_a_replaced_key_is_used_at_once_after_a_reload(tmp_path: Path) -> None:
    async with (
        FakeUpstream(default=lambda request: only("new", request)) as fake,
        running_proxy(config(fake.base_url, "old"), tmp_path) as proxy,
    ):
        statuses = []
        for keys in ("old", "old", "new"):
            assert await proxy.reload(config(fake.base_url, keys)) == 200
            async with proxy.chat() as answer:
                statuses.append(answer.status)
        text = await proxy.metrics()
    # The refused key rests over the reload that keeps it; the new one begins with a clean slate.
    assert statuses == [502, 503, 200]
    assert len(fake.requests) == 2
    assert (
        'sidestep_breaker_state{model="",operation="",scope="credential",state="closed",upstream="a"} 1.0'
        in text
    )


async def test_a_key_that_stays_keeps_its_state_when_another_is_replaced(tmp_path: Path) -> None:
    async with (
        FakeUpstream(default=lambda request: only("good", request)) as fake,
        running_proxy(config(fake.base_url, "bad, good"), tmp_path) as proxy,
    ):
        for _ in range(3):
            async with proxy.chat() as answer:
                await answer.read()
        assert await proxy.reload(config(fake.base_url, "bad, fresh")) == 200
        asked = len(fake.requests)
        async with proxy.chat() as answer:
            assert answer.status == 502
    # Only the fresh key was tried: the bad one is still resting.
    assert [each.headers["authorization"] for each in fake.requests[asked:]] == ["Bearer fresh"]
