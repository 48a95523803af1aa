"""Every operation of the API is in the table with its class; odd paths are nothing at all."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.endpoints import (
    Endpoint,
    MethodMismatch,
    ModelAt,
    StreamKind,
    Treatment,
    every_endpoint,
    find,
)

OPERATIONS = list(
    csv.DictReader((Path(__file__).parent / "operations.tsv").read_text().splitlines(), delimiter="\t")
)
CLASSES = {
    "A-failover (JSON": "A1",
    "A-failover (mult": "A2",
    "A/B-responses (f": "AB",
    "B-pinned": "B",
    "C-models (aggreg": "C",
    "D-realtime WebRT": "D",
    "D-realtime sessi": "D",
    "D-websocket (pin": "D",
    "F-admin (block o": "F",
}


def operation(row: dict[str, str]) -> tuple[str, str, str]:
    """Return a row's method, its template, and a real path for it."""
    template = row["path"].split("?")[0].strip("/")
    segments = ["id-" + part.strip("{}") if part.startswith("{") else part for part in template.split("/")]
    return row["method"].removesuffix("(Upgrade)"), template, "/".join(segments)


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: f"{row['method']} {row['path']}")
def test_an_operation_is_found_with_its_class(row: dict[str, str]) -> None:
    method, template, path = operation(row)
    found = find(method, "/v1/" + path)
    assert isinstance(found, Endpoint)
    assert (found.method, found.template) == (method, template)
    assert found.treatment is Treatment(CLASSES[row["class"][:16]])
    assert found.path == path
    assert find(method, "/" + path) == found
    assert find(method, "/openai/v1/" + path) == found
    assert found.admin is (found.treatment is Treatment.ADMIN)
    assert (found.stream_kind is not StreamKind.NONE) >= ("event-stream" in row["response_ct"])


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row["model_at"]], ids=lambda row: row["path"])
def test_the_model_is_where_the_specification_has_it(row: dict[str, str]) -> None:
    method, _, path = operation(row)
    found = find(method, "/v1/" + path)
    assert isinstance(found, Endpoint)
    places = {
        "JSON body": ModelAt.BODY,
        "multipart field": ModelAt.FORM,
        "JSON body/multipart field": ModelAt.BODY_OR_FORM,
        "query": ModelAt.QUERY,
        "in response.create event": ModelAt.EVENT,
    }
    assert found.model_at is places[row["model_at"]]


def test_the_table_holds_nothing_else_but_rerank_and_score() -> None:
    listed = {operation(row)[:2] for row in OPERATIONS}
    assert len(OPERATIONS) == 290
    assert {(entry.method, entry.template) for entry in every_endpoint()} - listed == {
        ("POST", "rerank"),
        ("POST", "score"),
    }


def test_only_what_leaves_no_trace_may_be_sent_twice() -> None:
    for entry in every_endpoint():
        stateless = entry.treatment.value in ("A1", "A2", "AB")
        assert entry.replayable is (stateless or entry.method == "GET")
        assert not (entry.creates and entry.method != "POST")
    created = {entry.template for entry in every_endpoint() if entry.creates}
    assert {"files", "batches", "responses", "threads/runs", "uploads/{upload_id}/complete"} <= created
    assert not {"chat/completions", "batches/{batch_id}/cancel", "embeddings"} & created


def test_names_of_breakers_and_metrics() -> None:
    def of(method: str, path: str) -> tuple[str, str]:
        found = find(method, path)
        assert isinstance(found, Endpoint)
        return found.operation, found.label

    assert of("POST", "/v1/chat/completions") == ("chat", "chat/completions")
    assert of("POST", "/v1/completions") == ("completions", "completions")
    assert of("POST", "/v1/audio/speech") == ("speech", "audio/speech")
    assert of("POST", "/v1/audio/translations") == ("transcriptions", "audio/translations")
    assert of("GET", "/v1/files/file-1/content") == ("files", "files/{file_id}/content")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/embeddings", ("POST",)),
        ("DELETE", "/v1/chat/completions", ("GET", "POST")),
        ("PATCH", "/v1/files/file-1", ("DELETE", "GET")),
        ("POST", "/v1/models/gpt-5", ("DELETE", "GET")),
        ("OPTIONS", "/v1/responses", ("GET", "POST")),
        ("GET", "/openai/deployments/d/embeddings", ("POST",)),
        ("HEAD", "/v1/models", ("GET",)),
    ],
)
def test_another_method_is_told_from_another_path(method: str, path: str, allow: tuple[str, ...]) -> None:
    assert find(method, path) == MethodMismatch(allow)


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v1/", "/v2/models", "/v1/nothing", "/v1/chat", "/v1/chat/completions/",
      "/v1/v1/models",
     "/v1/files/a/b/c", "/openai", "/openai/deployments", "/openai/deployments/d",
       "/openai/deployments/d/files",
     "/v1/deployments/d/embeddings", "/openai/deployments/embeddings", "//v1/models", "/v1//models",
     "/v1/files/", "/v1/files//content", "/v1/files/..", "/v1/files/../models", "/v1/files/./x",
     "/v1/files/%2e%2e", "/v1/files/%2E.", "/v1/files/a%2f..%2fb", "/v1/files/%2f", "/v1/files/a%00",
       "/v1/files/a%5cb",
     "/v1/files/a\\b", "/v1/files/a%0ab", "/v1/files/%zz", "/v1/files/%", "/v1/files/%ff", "/v1/files/a b",
     "/v1/files/ä", "/v1/models/a//b", "/v1/models/../files", "/v1/\x00", "v1/models", "http://x/v1/models",
     "/v1/models/a/./b"],
)  # fmt: skip
def test_what_is_no_path_or_may_be_another_one_elsewhere_is_unknown(path: str) -> None:
    assert find("GET", path) is None
    assert find("POST", path) is None


@pytest.mark.parametrize(
    ("path", "model", "sent"),
    [
        ("/v1/models/gpt-5", "gpt-5", "models/gpt-5"),
        ("/v1/models/meta-llama/Llama-3.1", "meta-llama/Llama-3.1", "models/meta-llama%2FLlama-3.1"),
        ("/v1/models/meta-llama%2FLlama-3.1", "meta-llama/Llama-3.1", "models/meta-llama%2FLlama-3.1"),
        ("/models/ft:gpt-4o:org::a%20b", "ft:gpt-4o:org::a b", "models/ft%3Agpt-4o%3Aorg%3A%3Aa%20b"),
        ("/v1/models/a%252Fb", "a%2Fb", "models/a%252Fb"),
    ],
)
def test_a_models_id_may_hold_slashes_and_is_decoded_once(path: str, model: str, sent: str) -> None:
    found = find("GET", path)
    assert isinstance(found, Endpoint)
    assert found.param("model") == model
    assert found.path == sent
    assert found.param("file_id") is None


@pytest.mark.parametrize(
    ("path", "template", "deployment"),
    [
        ("/openai/deployments/my-gpt/chat/completions", "chat/completions", "my-gpt"),
        ("/openai/deployments/old/completions", "completions", "old"),
        ("/openai/deployments/chat/completions", "completions", "chat"),
        ("/openai/deployments/a%20b/embeddings", "embeddings", "a b"),
        ("/openai/deployments/meta/llama/chat/completions", "chat/completions", "meta/llama"),
        ("/openai/deployments/w/audio/transcriptions", "audio/transcriptions", "w"),
        ("/openai/deployments/d/images/generations", "images/generations", "d"),
    ],
)
def test_an_azure_deployment_is_the_model(path: str, template: str, deployment: str) -> None:
    found = find("POST", path)
    assert isinstance(found, Endpoint)
    assert (found.template, found.deployment, found.path) == (template, deployment, template)
    assert found.model_at is ModelAt.PATH


def test_literal_segments_come_before_parameters() -> None:
    runs, thread = find("POST", "/v1/threads/runs"), find("POST", "/v1/threads/thread_1")
    assert isinstance(runs, Endpoint)
    assert isinstance(thread, Endpoint)
    assert (runs.template, thread.template) == ("threads/runs", "threads/{thread_id}")


@given(st.text(alphabet="/.%2eEfF5cC\\a\x00-_~", max_size=24))
def test_no_path_reaches_outside_of_its_operation(tail: str) -> None:
    found = find("GET", "/v1/files/" + tail)
    if isinstance(found, Endpoint):
        segments = found.path.split("/")
        assert len(segments) == len(found.template.split("/"))
        assert not {"", ".", ".."} & set(segments)
