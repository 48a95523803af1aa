"""Every error shape that the field has seen, and the outcome it must become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.core.outcome import Kind, Outcome
from proxy.dialects.codes import AS_STATUS, CODES, WORDS
from proxy.dialects.errors import classify

WALL = 1_790_000_000.0


def judge(status: int, body: Any = b"", **headers: str) -> Outcome:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return classify(status, sent.get, raw, wall=WALL)


def error(**fields: Any) -> dict[str, Any]:
    return {"error": fields}


def openai(message: str, kind: str | None = None, code: str | None = None) -> dict[str, Any]:
    return error(message=message, type=kind, param=None, code=code)


def anthropic(kind: str, message: str = "…") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def google(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return error(code=code, message=message, status=status, details=list(details))


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "31s"}
PER_DAY = {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}
PER_MINUTE = {"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}]}
TPM = "Limit 30000, Requested 50000. The input or output tokens must be reduced."
ENVOY = b"upstream connect error or disconnect/reset before headers. reset reason: connection failure"
HTML = b"<!DOCTYPE html><html><head><title>api.openai.com | 520: Web server is returning an unknown error"

K = Kind
BAD = "invalid_request_error"
SHAPES = [
    # OpenAI
    (500, openai("The server had an error while processing your request.", "server_error"), K.SERVER_ERROR,
     "server_error", "openai 500"),
    (503, openai("That model is currently overloaded with other requests.", "server_error"), K.OVERLOADED,
     "no_capacity", "openai old 503"),
    (503,
     openai("Our servers are currently overloaded.", "service_unavailable_error", "server_is_overloaded"),
     K.OVERLOADED, "server_is_overloaded", "openai 503 server_is_overloaded"),
    (503, openai("Slow down.", "server_error", "slow_down"), K.OVERLOADED, "slow_down",
     "openai slow_down on 503"),
    (429, openai("Slow down.", "rate_limit_error", "slow_down"), K.RATE_LIMITED, "slow_down",
     "openai slow_down on 429"),
    (429, openai("Rate limit reached. Please try again in 41.724s.", "tokens", "rate_limit_exceeded"),
     K.RATE_LIMITED, "rate_limit_exceeded", "openai rate limit"),
    (429,
     openai(f"Request too large for gpt-4 on tokens per min (TPM): {TPM}", "tokens", "rate_limit_exceeded"),
     K.TOO_LARGE, "request_too_large", "openai request too large as 429"),
    (429, openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
     K.QUOTA_SPENT, "insufficient_quota", "openai insufficient_quota"),
    (429, openai("No credits", "insufficient_quota", "credit_balance_exhausted"), K.QUOTA_SPENT,
     "credit_balance_exhausted", "openai credit balance exhausted"),
    (429, openai("…", "insufficient_quota", "project_spend_limit_exceeded"), K.QUOTA_SPENT,
     "spend_limit_exceeded", "openai spend limit of a project"),
    (429, openai("…", None, "organization_usage_limit_exceeded"), K.QUOTA_SPENT,
     "organization_usage_limit_exceeded", "openai usage limit of the organisation"),
    (401, openai("Incorrect API key provided: sk-…", BAD, "invalid_api_key"), K.UNAUTHORIZED,
     "invalid_api_key", "openai 401"),
    (403,
     openai("Country, region, or territory not supported", "request_forbidden",
       "unsupported_country_region_territory"),
     K.UNAUTHORIZED, "unsupported_country_region_territory", "openai 403 country"),
    (403, openai("Project `p` does not have access to model `gpt-5`", BAD, "model_not_found"),
     K.MODEL_MISSING, "model_not_found", "openai 403 without access to the model"),
    (404, openai("The model `gpt-9` does not exist or you do not have access to it.", BAD, "model_not_found"),
     K.MODEL_MISSING, "model_not_found", "openai 404 model"),
    (404, openai("No such File object: file-abc", BAD), K.REJECTED, "invalid_request_error",
     "openai 404 of an object"),
    (404, openai("Invalid URL (POST /v1/rerank)", BAD), K.MODEL_MISSING, "unknown_path",
     "openai 404 of a path"),
    (400, openai("This model's maximum context length is 8192 tokens.", BAD, "context_length_exceeded"),
     K.TOO_LARGE, "context_length_exceeded", "openai context length"),
    (400,
     openai("Your request was rejected by our safety system.", "image_generation_user_error",
       "moderation_blocked"),
     K.REFUSED, "moderation_blocked", "openai image refused"),
    (400, openai("Your prompt was flagged as potentially violating our usage policy.", BAD, "invalid_prompt"),
     K.REFUSED, "invalid_prompt", "openai prompt flagged"),
    (400, openai("…", BAD, "content_policy_violation"), K.REFUSED, "content_policy_violation",
     "openai content policy"),
    (400,
     openai("Unsupported parameter: 'max_tokens' is not supported with this model.", BAD,
       "unsupported_parameter"),
     K.REJECTED, "invalid_request_error", "openai unsupported parameter"),
    (400, openai("Invalid value: the model was not found to be overloaded, please check your api key", BAD),
     K.REJECTED, "invalid_request_error", "a client's own words come back inside a 400"),
    (409, openai("conflict", "conflict_error"), K.REJECTED, "conflict_error", "openai 409"),
    (502, {"type": "cf_bad_gateway", "message": "bad gateway"}, K.SERVER_ERROR, "cf_bad_gateway",
     "openai edge 502"),
    (503, {"type": "cf_service_unavailable", "message": "…"}, K.OVERLOADED, "cf_service_unavailable",
     "openai edge 503"),
    # the edges in front
    (520, HTML, K.SERVER_ERROR, "html", "cdn page 520"),
    (503, b"<html><body><h1>503 Service Temporarily Unavailable", K.SERVER_ERROR, "html", "nginx page 503"),
    (403, b"<html><title>Attention Required! | Cloudflare", K.SERVER_ERROR, "html", "a firewall's page 403"),
    (401, b"<html>login", K.SERVER_ERROR, "html", "a login page 401"),
    (404, b"<html>not here", K.SERVER_ERROR, "html", "a page 404"),
    (502, b"error code: 502", K.SERVER_ERROR, "cdn", "cdn text 502"),
    (524, b"error code: 524", K.SERVER_ERROR, "cdn", "cdn text 524"),
    (503, ENVOY, K.SERVER_ERROR, "envoy", "envoy text 503"),
    (503, b"no healthy upstream", K.SERVER_ERROR, "envoy", "envoy no healthy upstream"),
    (500, b"Internal Server Error", K.SERVER_ERROR, "text", "plain text 500"),
    (400, b"Bad Request", K.SERVER_ERROR, "text", "plain text 400"),
    (422, b"Failed to deserialize the JSON body into the target type: missing field", K.REJECTED, None,
     "axum's plain text 422"),
    (404, b"404 page not found\n", K.MODEL_MISSING, "unknown_path", "go's plain text 404"),
    (429, b"<html>429 Too Many Requests", K.RATE_LIMITED, None, "a page 429 is still a rate limit"),
    (413, b"<html>413 Request Entity Too Large", K.TOO_LARGE, "request_too_large", "nginx page 413"),
    (502, b"", K.SERVER_ERROR, "empty", "empty 502"),
    (503, b"", K.OVERLOADED, "empty", "empty 503"),
    (401, b"", K.SERVER_ERROR, "empty", "empty 401"),
    (500, b'{"error": {"message": "cut sh', K.SERVER_ERROR, "malformed", "half JSON 500"),
    (500, b'"just a string"', K.SERVER_ERROR, "text", "a JSON string 500"),
    (500, b"[" * 100_000, K.SERVER_ERROR, "malformed", "absurd depth 500"),
    (302, b"", K.SERVER_ERROR, "redirect", "a redirect"),
    (307, {"message": "moved"}, K.SERVER_ERROR, "redirect", "a redirect with a body"),
    (600, b"", K.UNCLASSIFIED, None, "a status nobody has seen"),
    # statuses alone
    (408, error(message="The operation was timeout"), K.SERVER_ERROR, "timeout", "azure 408"),
    (425, error(message="too early"), K.SERVER_ERROR, "too_early", "425"),
    (421, error(message="misdirected"), K.SERVER_ERROR, "misdirected", "421"),
    (405, {"detail": "Method Not Allowed"}, K.MODEL_MISSING, "unknown_path", "405"),
    (403, {"message": "Forbidden"}, K.SERVER_ERROR, "forbidden", "403 without a word about our key"),
    (418, {"message": "teapot"}, K.REJECTED, None, "any other 4xx"),
    (507, {"message": "?"}, K.SERVER_ERROR, None, "any other 5xx"),
    # Azure
    (429,
     error(code="429",
       message="Requests to the ChatCompletions_Create Operation … Please retry after 86400 seconds."),
     K.RATE_LIMITED, None, "azure 429 with a code in quotes"),
    (429, error(code="429", message="The system is currently experiencing high demand"), K.OVERLOADED,
     "no_capacity", "azure high demand as 429"),
    (404, error(code="DeploymentNotFound", message="The API deployment for this resource does not exist."),
     K.MODEL_MISSING, "deploymentnotfound", "azure deployment missing"),
    (400,
     error(message="The response was filtered", type=None, param="prompt", code="content_filter",
       status=400, innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}}),
     K.REFUSED, "responsibleaipolicyviolation", "azure content filter"),
    (401, error(code="401", message="Access denied due to invalid subscription key or wrong API endpoint."),
     K.UNAUTHORIZED, None, "azure 401"),
    (403, error(code="403", message="Access denied due to Virtual Network/Firewall rules."), K.UNAUTHORIZED,
     "permission_denied", "azure 403"),
    (400, error(code="OperationNotSupported", message="The embeddings operation does not work with gpt-4."),
     K.MODEL_MISSING, "operationnotsupported", "azure wrong operation for a deployment"),
    (429, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 6 seconds."}, K.RATE_LIMITED,
     None, "azure api management"),
    # Anthropic
    (529, anthropic("overloaded_error", "Overloaded"), K.OVERLOADED, "overloaded_error", "anthropic 529"),
    (500, anthropic("api_error", "Internal server error"), K.SERVER_ERROR, "api_error", "anthropic 500"),
    (504, anthropic("timeout_error"), K.SERVER_ERROR, "timeout_error", "anthropic 504"),
    (429, anthropic("rate_limit_error"), K.RATE_LIMITED, "rate_limit_error", "anthropic 429"),
    (429, error(type="rate_limit_error", code="enforced_spend_limit_reached", message="…"), K.QUOTA_SPENT,
     "enforced_spend_limit_reached", "anthropic spend limit"),
    (402, anthropic("billing_error"), K.QUOTA_SPENT, "billing_error", "anthropic 402"),
    (400, anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
     K.QUOTA_SPENT, "credit_balance_too_low", "anthropic low credit as 400"),
    (401, anthropic("authentication_error", "invalid x-api-key"), K.UNAUTHORIZED, "authentication_error",
     "anthropic 401"),
    (403, anthropic("permission_error"), K.UNAUTHORIZED, "permission_error", "anthropic 403"),
    (404, anthropic("not_found_error", "model: claude-9"), K.MODEL_MISSING, "model_not_found",
     "anthropic 404 model"),
    (413, anthropic("request_too_large"), K.TOO_LARGE, "request_too_large", "anthropic 413"),
    (400, anthropic("invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum"),
     K.TOO_LARGE, "context_length_exceeded", "anthropic prompt too long"),
    (400, anthropic("invalid_request_error", "messages: roles must alternate"), K.REJECTED,
     "invalid_request_error", "anthropic 400"),
    # Gemini and Vertex
    (503, google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), K.OVERLOADED,
     "no_capacity", "gemini overloaded"),
    (503, [google(503, "UNAVAILABLE", "The model is overloaded.")], K.OVERLOADED, "no_capacity",
     "gemini error in a list"),
    (429, [google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", PER_DAY, RETRY_INFO)],
     K.QUOTA_SPENT, "daily_quota", "gemini per-day quota"),
    (429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", PER_MINUTE, RETRY_INFO),
     K.RATE_LIMITED, "resource_exhausted", "gemini per-minute quota"),
    (429, google(429, "RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later."), K.OVERLOADED,
     "no_capacity", "vertex resource exhausted"),
    (503, google(503, "UNAVAILABLE", "…", {"reason": "MODEL_CAPACITY_EXHAUSTED"}), K.OVERLOADED,
     "model_capacity_exhausted", "vertex MODEL_CAPACITY_EXHAUSTED"),
    (429, google(429, "RESOURCE_EXHAUSTED", "No capacity available for model gemini-3"), K.OVERLOADED,
     "no_capacity", "vertex no capacity as 429"),
    (400, google(400, "INVALID_ARGUMENT", "API key not valid.", {"reason": "API_KEY_INVALID"}),
     K.UNAUTHORIZED, "api_key_invalid", "gemini invalid key as 400"),
    (403, google(403, "PERMISSION_DENIED", "…"), K.UNAUTHORIZED, "permission_denied", "gemini 403"),
    (404, google(404, "NOT_FOUND", "models/gemini-9 is not found for API version v1beta"), K.MODEL_MISSING,
     "model_not_found", "gemini 404 model"),
    (400,
     google(400, "INVALID_ARGUMENT", "The input token count (2000000) exceeds the maximum number of tokens"),
     K.TOO_LARGE, "context_length_exceeded", "gemini too long"),
    (500, google(500, "INTERNAL", "An internal error has occurred"), K.SERVER_ERROR, "internal",
     "gemini 500"),
    (504, google(504, "DEADLINE_EXCEEDED", "…"), K.SERVER_ERROR, "deadline_exceeded", "gemini 504"),
    # Groq
    (498, error(message="capacity", type="…", code="capacity_exceeded"), K.OVERLOADED, "capacity_exceeded",
     "groq 498 with a code"),
    (498, error(message="flex tier"), K.OVERLOADED, "capacity_exceeded", "groq 498 alone"),
    (413,
     error(message="Request too large for model `x` on tokens per minute (TPM)", type="tokens",
       code="rate_limit_exceeded"),
     K.TOO_LARGE, "request_too_large", "groq 413"),
    (424, error(message="mcp server", type="failed_dependency"), K.REJECTED, None, "groq 424"),
    (499, error(message="cancelled"), K.SERVER_ERROR, "cancelled", "groq 499"),
    (400, error(message="The model `llama2` has been decommissioned", code="model_decommissioned"),
     K.MODEL_MISSING, "model_decommissioned", "groq decommissioned model"),
    # Mistral
    (429,
     {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "param": None,
       "code": "1300", "raw_status_code": 429},
     K.RATE_LIMITED, "1300", "mistral 429"),
    (429,
     {"object": "error", "message": "Service tier capacity exceeded for this model.",
       "type": "invalid_request_error", "code": None},
     K.OVERLOADED, "no_capacity", "mistral capacity as 429"),
    (503,
     {"object": "error", "message": "Service tier capacity exceeded for this model.",
       "type": "invalid_request_error", "code": None},
     K.OVERLOADED, "no_capacity", "mistral capacity as 503"),
    (429, {"message": "Requests rate limit exceeded"}, K.RATE_LIMITED, None,
     "mistral 429 with a message alone"),
    (422, {"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "missing"}]}, K.REJECTED,
     None, "mistral 422"),
    (400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "code": "1500"},
     K.MODEL_MISSING, "invalid_model", "mistral invalid model"),
    (401, {"message": "no Route matched", "request_id": "1"}, K.UNAUTHORIZED, None, "mistral 401"),
    (404, {"message": "no Route matched with those values"}, K.MODEL_MISSING, "unknown_path",
     "mistral unknown path"),
    # OpenRouter
    (402, error(code=402, message="Insufficient credits"), K.QUOTA_SPENT, "credit_balance_too_low",
     "openrouter 402"),
    (408, error(code=408, message="Your request timed out"), K.SERVER_ERROR, "timeout", "openrouter 408"),
    (429,
     error(code=429, message="Provider returned error", metadata={"raw": "x is temporarily rate-limited"}),
     K.RATE_LIMITED, None, "openrouter 429"),
    (502, error(code=502, message="Provider returned error", metadata={"provider_name": "X"}), K.SERVER_ERROR,
     None, "openrouter 502"),
    (503, error(code=503, message="No instances available"), K.OVERLOADED, None, "openrouter 503"),
    (403, error(code=403, message="Your input was flagged", metadata={"reasons": ["violence"]}), K.REFUSED,
     "content_policy", "openrouter moderation"),
    (404, error(code=404, message="No endpoints found for x/y."), K.MODEL_MISSING, "model_not_found",
     "openrouter no endpoints"),
    (404, error(code=404, message="No endpoints found that support tool use."), K.REJECTED, "unsupported",
     "openrouter no endpoints with that feature"),
    (400, error(code=400, message="x/y is not a valid model ID"), K.MODEL_MISSING, "model_not_found",
     "openrouter invalid model"),
    # DeepSeek, xAI, Cohere, Bedrock
    (402, openai("Insufficient Balance", "unknown_error", BAD), K.QUOTA_SPENT, "credit_balance_too_low",
     "deepseek 402"),
    (422, openai("Invalid parameters", BAD), K.REJECTED, "invalid_request_error", "deepseek 422"),
    (400, openai("Model Not Exist", BAD), K.MODEL_MISSING, "model_not_found",
     "deepseek missing model as 400"),
    (503, openai("Service is too busy", "service_unavailable_error"), K.OVERLOADED,
     "service_unavailable_error", "deepseek 503"),
    (400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xai-…"},
     K.UNAUTHORIZED, "invalid_api_key", "xai invalid key as 400"),
    (429, {"code": "Some resource has been exhausted", "error": "… reached its monthly spending limit."},
     K.QUOTA_SPENT, "credit_balance_too_low", "xai spending limit"),
    (503, {"code": "The service is currently unavailable", "error": "The model is at capacity"}, K.OVERLOADED,
     "no_capacity", "xai capacity"),
    (404, {"code": "Some requested entity was not found", "error": "The model x does not exist"},
     K.MODEL_MISSING, "model_not_found", "xai 404"),
    (401, {"message": "invalid api token"}, K.UNAUTHORIZED, None, "cohere 401"),
    (429, {"message": "You are using a Trial key, which is limited to 10 calls / minute"}, K.RATE_LIMITED,
     None, "cohere 429"),
    (400, {"message": "too many tokens: size limit exceeded by 100 tokens"}, K.TOO_LARGE,
     "context_length_exceeded", "cohere too long"),
    (429, {"__type": "ThrottlingException", "message": "Too many tokens, please wait before trying again."},
     K.RATE_LIMITED, "throttlingexception", "bedrock throttling"),
    (403, {"__type": "AccessDeniedException", "message": "You don't have access to the model with this id"},
     K.MODEL_MISSING, "model_not_found", "bedrock without access to the model"),
    (403, {"__type": "AccessDeniedException", "message": "User: arn:… is not authorized to perform: bedrock"},
     K.UNAUTHORIZED, "permission_denied", "bedrock without permission"),
    (403, {"__type": "ExpiredTokenException", "message": "…"}, K.UNAUTHORIZED, "expiredtokenexception",
     "bedrock expired token"),
    (400, {"message": "Input is too long for requested model."}, K.TOO_LARGE, "context_length_exceeded",
     "bedrock too long"),
    # vLLM, Ollama, llama.cpp
    (404, error(message="The model `x` does not exist.", type="NotFoundError", param=None, code=404),
     K.MODEL_MISSING, "model_not_found", "vllm new 404"),
    (500, error(message="…", type="InternalServerError", param=None, code=500), K.SERVER_ERROR,
     "internalservererror", "vllm new 500"),
    (400,
     {"object": "error", "message": "This model's maximum context length is 4096 tokens.",
       "type": "BadRequestError", "param": None, "code": 400},
     K.TOO_LARGE, "context_length_exceeded", "vllm old context length"),
    (400,
     {"object": "error", "message": "EngineCore encountered an issue.", "type": "BadRequestError",
       "param": None, "code": 400},
     K.SERVER_ERROR, "engine_dead", "vllm dead engine as 400"),
    (401, {"error": "Unauthorized"}, K.UNAUTHORIZED, None, "vllm 401"),
    (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, K.OVERLOADED,
     "no_capacity", "ollama busy"),
    (404, error(message='model "x" not found, try pulling it first', type="api_error", param=None, code=None),
     K.MODEL_MISSING, "model_not_found", "ollama missing model"),
    (404, {"detail": "Not Found"}, K.MODEL_MISSING, "unknown_path", "fastapi unknown path"),
    (501, error(code=501, message="This server does not support embeddings.", type="not_supported_error"),
     K.MODEL_MISSING, "not_supported_error", "llama.cpp without embeddings"),
    (400,
     error(code=400, message="the request exceeds the available context size",
       type="exceed_context_size_error"),
     K.TOO_LARGE, "exceed_context_size_error", "llama.cpp too long"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"), [pytest.param(*row[:4], id=row[4]) for row in SHAPES]
)
def test_a_shape_is_recognised(status: int, body: Any, kind: Kind, code: str | None) -> None:
    outcome = judge(status, body)
    assert (outcome.kind, outcome.code, outcome.status) == (kind, code, status)
    assert not outcome.unready
    assert not outcome.in_band


@pytest.mark.parametrize(
    "words",
    [
        "Your credit balance is too low",
        "API key not valid",
        "Model Not Exist",
        "EngineCore encountered an issue",
        "The server is overloaded",
        "The model x does not exist",
    ],
)
@pytest.mark.parametrize("before", ["Invalid value: ", "Bad content\n"])
def test_words_that_a_client_may_have_written_close_nothing(words: str, before: str) -> None:
    outcome = judge(400, openai(f"{before}{words}", BAD))
    assert outcome.kind is Kind.REJECTED


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(503, error(code=503, message="Loading model", type="unavailable_error"), id="llama.cpp"),
        pytest.param(
            503, {"error": "Model x is currently loading", "estimated_time": 20.0}, id="hugging face"
        ),
    ],
)
def test_a_server_that_still_loads_its_model_is_not_ready_and_has_not_failed(status: int, body: Any) -> None:
    outcome = judge(status, body)
    assert (outcome.kind, outcome.unready, outcome.code) == (Kind.OVERLOADED, True, "loading_model")


HINTS = [
    ({}, openai("Rate limit reached. Please try again in 41.724s.", code="rate_limit_exceeded"), 41.724,
     "openai's words"),
    ({}, error(code="429", message="… Please retry after 86400 seconds."), 86400.0,
     "azure's words, uncapped"),
    ({"retry_after": "7", "retry_after_ms": "6500"}, {}, 6.5, "milliseconds beat seconds"),
    ({"retry_after": "7", "x_ms_retry_after_ms": "1500"}, {}, 1.5, "azure's milliseconds"),
    ({"retry_after": "7"}, openai("Please try again in 41s."), 7.0, "a header beats words"),
    ({}, google(429, "RESOURCE_EXHAUSTED", "Please retry in 5s.", PER_MINUTE, RETRY_INFO), 31.0,
     "google's RetryInfo beats words"),
    ({}, {"error": "is currently loading", "estimated_time": 20.5}, 20.5, "hugging face's estimate"),
    ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "6m0s",
      "x_ratelimit_remaining_tokens": "900", "x_ratelimit_reset_tokens": "900s"},
     {}, 360.0, "the reset of the exhausted limit alone"),
    ({"x_ratelimit_remaining_requests": "5", "x_ratelimit_reset_requests": "6m0s"}, {}, None,
     "a reset of what is not exhausted is no hint"),
    ({}, openai("Rate limit reached."), None, "no hint at all"),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "body", "seconds"), [pytest.param(*row[:3], id=row[3]) for row in HINTS])
def test_a_hint_is_found(headers: dict[str, str], body: Any, seconds: float | None) -> None:
    assert judge(429, body, **headers).retry_after_s == seconds


def test_resets_are_no_hint_for_a_server_error() -> None:
    headers = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "6m0s"}
    assert judge(500, openai("oops"), **headers).retry_after_s is None


def test_a_page_may_carry_a_hint_too() -> None:
    assert judge(503, HTML, retry_after="30").retry_after_s == 30.0


def test_a_code_is_one_of_a_known_few_never_what_an_upstream_makes_up() -> None:
    reasons = {None, "html", "envoy", "cdn", "text", "empty", "malformed", "redirect", "forbidden", "timeout"}
    reasons |= {
        "spend_limit_exceeded",
        "daily_quota",
        "unknown_path",
        "request_too_large",
        "payment_required",
    }
    reasons |= {"misdirected", "too_early", "cancelled", "capacity_exceeded"}
    known = reasons | CODES.keys() | AS_STATUS.keys() | {words.code for words in WORDS}
    assert {judge(status, body).code for status, body, *_ in SHAPES} <= known
    assert judge(400, openai("…", "made_up", "<script>")).code is None


def test_a_huge_body_is_not_parsed() -> None:
    outcome = judge(500, b'{"error": {"code": "insufficient_quota", "message": "' + b"x" * 300_000 + b'"}}')
    assert outcome.kind is Kind.SERVER_ERROR


def test_every_status_means_something_without_a_body() -> None:
    kinds = {status: judge(status).kind for status in range(300, 600)}
    assert not {Kind.OK, Kind.IN_BAND_ERROR, Kind.UNCLASSIFIED} & set(kinds.values())
