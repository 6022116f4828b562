"""Every bad request gets an OpenAI error that names the field; nothing reaches the engine."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from support.runtime_http import LONG_S, Reply, ScriptedEngine, Site, raw, running

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


class ThreadedSite:
    """One replica for all cases of this file, in a thread of its own."""

    def __init__(self) -> None:
        self.engine = ScriptedEngine()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(LONG_S)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with running(self.engine) as site:
            self.site: Site = site
            self._ready.set()
            await self._stop.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def ask(self, path: str, body: bytes, method: str = "POST", **headers: str) -> Reply:
        return asyncio.run(raw(self.site.port, method, path, body, headers))


@pytest.fixture(scope="module")
def shared_site() -> Iterator[ThreadedSite]:
    found = ThreadedSite()
    yield found
    found.close()


@pytest.fixture
def site(shared_site: ThreadedSite) -> ThreadedSite:
    shared_site.engine.requests.clear()
    return shared_site


def error_of(reply: Reply) -> dict[str, Any]:
    error: dict[str, Any] = orjson.loads(reply.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "x-request-id" in reply.headers
    return error


CHAT_FIELDS: list[tuple[str, Any, str]] = [
    ("model", None, "model"),
    ("model", "", "model"),
    ("model", "x" * 300, "model"),
    ("messages", None, "messages"),
    ("messages", [], "messages"),
    ("messages", "Hi", "messages"),
    ("messages", [{"content": "x"}], "messages[0].role"),
    ("messages", [{"role": "wizard", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "user"}], "messages[0].content"),
    ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}],
        "messages[0].content[0].image_url.url",
    ),
    ("messages", [{"role": "function", "content": "x", "name": "f"}], "messages[0]"),
    ("messages", [{"role": "assistant", "tool_calls": [{}]}], "messages[0]"),
    ("messages", [{"role": "user", "content": "x"}] * 5000, "messages"),
    ("n", 0, "n"),
    ("n", 10**9, "n"),
    ("n", 9, "n"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", -1, "max_tokens"),
    ("max_tokens", 2**63, "max_tokens"),
    ("max_tokens", "5", "max_tokens"),
    ("max_tokens", True, "max_tokens"),
    ("max_tokens", 1.5, "max_tokens"),
    ("max_completion_tokens", 0, "max_completion_tokens"),
    ("temperature", -0.1, "temperature"),
    ("temperature", 9, "temperature"),
    ("temperature", "1", "temperature"),
    ("temperature", True, "temperature"),
    ("top_p", 0, "top_p"),
    ("top_p", 1.1, "top_p"),
    ("top_k", -2, "top_k"),
    ("min_p", 2, "min_p"),
    ("repeat_penalty", 0, "repeat_penalty"),
    ("presence_penalty", 3, "presence_penalty"),
    ("frequency_penalty", -3, "frequency_penalty"),
    ("seed", 2**63, "seed"),
    ("seed", "x", "seed"),
    ("stop", "", "stop"),
    ("stop", ["x"] * 17, "stop"),
    ("stop", ["x" * 300], "stop[0]"),
    ("stop", [""], "stop[0]"),
    ("stream", "yes", "stream"),
    ("stream_options", 5, "stream_options"),
    ("tools", [{"type": "function"}], "tools"),
    ("tool_choice", "required", "tool_choice"),
    ("functions", [{}], "functions"),
    ("typical_p", 0, "typical_p"),
    ("repeat_last_n", 4097, "repeat_last_n"),
    ("dry_multiplier", -1, "dry_multiplier"),
    ("dry_base", 0.5, "dry_base"),
    ("dry_allowed_length", -1, "dry_allowed_length"),
    ("dry_penalty_last_n", -2, "dry_penalty_last_n"),
    ("dry_sequence_breakers", [""], "dry_sequence_breakers[0]"),
    ("dry_sequence_breakers", ["x"] * 17, "dry_sequence_breakers"),
    ("xtc_probability", 1.1, "xtc_probability"),
    ("xtc_threshold", -0.1, "xtc_threshold"),
    ("logit_bias", {"5": 101}, "logit_bias.5"),
    ("logit_bias", {"x": 1}, "logit_bias.x"),
    ("logit_bias", {"-1": 1}, "logit_bias.-1"),
    ("logit_bias", {str(token): 1 for token in range(1025)}, "logit_bias"),
    ("logprobs", 3, "logprobs"),
    ("top_logprobs", 21, "top_logprobs"),
    ("top_logprobs", 2, "top_logprobs"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "x"}},
        "response_format.json_schema.schema",
    ),
    ("json_schema", 5, "json_schema"),
    ("guided_choice", [], "guided_choice"),
    ("structured_outputs", {}, "structured_outputs"),
    ("structured_outputs", {"json": {}, "regex": "a"}, "structured_outputs"),
    ("structured_outputs", {"structural_tag": "x"}, "structured_outputs.structural_tag"),
    ("best_of", 10**9, "best_of"),
    ("chat_template", "{{ 1 }}", "chat_template"),
    ("chat_template_kwargs", {"x": 1}, "chat_template_kwargs"),
    ("grammar", 5, "grammar"),
]


@pytest.mark.parametrize(("field", "value", "param"), CHAT_FIELDS)
def test_a_bad_chat_field_is_named(site: ThreadedSite, field: str, value: Any, param: str) -> None:
    body = {"model": "demo", "messages": MESSAGES, field: value}
    if value is None:
        del body[field]
    reply = site.ask(CHAT, orjson.dumps(body))
    error = error_of(reply)
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert not site.engine.requests


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("prompt", None, "prompt"),
        ("prompt", [], "prompt"),
        ("prompt", ["x"] * 17, "prompt"),
        ("prompt", ["x"] * 50_000, "prompt"),
        ("prompt", [-1], "prompt"),
        ("prompt", [1.5], "prompt"),
        ("prompt", [[]], "prompt"),
        ("prompt", {"a": 1}, "prompt"),
        ("echo", True, "echo"),
        ("suffix", "x", "suffix"),
        ("logprobs", 6, "logprobs"),
        ("logprobs", True, "logprobs"),
        ("best_of", 2, "best_of"),
    ],
)
def test_a_bad_completion_field_is_named(
    site: ThreadedSite, field: str, value: Any, param: str
) -> None:
    body = {"model": "demo", "prompt": "x", field: value}
    if value is None:
        del body[field]
    reply = site.ask(COMPLETIONS, orjson.dumps(body))
    assert reply.status == 400
    assert error_of(reply)["param"].startswith(param)
    assert not site.engine.requests


@pytest.mark.parametrize(
    ("field", "value", "param", "said"),
    [
        ("prompt", [], "prompt", "at least 1 item"),
        ("prompt", [[]], "prompt[0]", "at least 1 item"),
        ("prompt", ["x"] * 17, "prompt", "at most 16 items"),
        ("prompt", [[1]] * 17, "prompt", "at most 16 items"),
        ("prompt", [3, -1], "prompt[1]", "greater than or equal to 0"),
        ("prompt", [2**31], "prompt[0]", "less than 2147483648"),
        ("prompt", [1, "x"], "prompt[1]", "valid integer"),
        ("prompt", ["x", 1], "prompt[1]", "valid string"),
        ("prompt", [[1], ["x"]], "prompt[1][0]", "valid integer"),
        ("prompt", 5, "prompt", "valid string"),
        ("stop", ["x"] * 17, "stop", "at most 16 items"),
        ("stop", ["x", ""], "stop[1]", "at least 1 character"),
        ("stop", "x" * 300, "stop", "at most 256 characters"),
        ("logprobs", 6, "logprobs", "less than or equal to 5"),
        ("logprobs", True, "logprobs", "valid integer"),
    ],
)
def test_of_a_field_with_several_forms_the_one_that_was_meant_is_explained(
    site: ThreadedSite, field: str, value: Any, param: str, said: str
) -> None:
    body = {"model": "demo", "prompt": "x", field: value}
    error = error_of(site.ask(COMPLETIONS, orjson.dumps(body)))
    assert error["param"] == param
    assert said in error["message"]


def test_a_message_of_too_many_parts_hears_how_many_there_may_be(site: ThreadedSite) -> None:
    parts = [{"type": "text", "text": "x"}] * 257
    body = {"model": "demo", "messages": [{"role": "user", "content": parts}]}
    error = error_of(site.ask(CHAT, orjson.dumps(body)))
    assert error["param"] == "messages[0].content"
    assert "at most 256 items" in error["message"]


def test_prompts_times_choices_is_bounded(site: ThreadedSite) -> None:
    body = orjson.dumps({"model": "demo", "prompt": ["x"] * 16, "n": 8})
    reply = site.ask(COMPLETIONS, body)
    assert (reply.status, error_of(reply)["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "demo", "temperature": NaN, "messages": []}',
        b'{"model": "demo", "temperature": 1e309, "messages": []}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"messages": [' + b"{}," * 80_000 + b"{}]}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_is_no_request_is_refused(site: ThreadedSite, body: bytes) -> None:
    reply = site.ask(CHAT, body)
    assert reply.status == 400
    assert error_of(reply)["type"] == "invalid_request_error"


def test_a_large_body_is_refused_before_it_is_read(site: ThreadedSite) -> None:
    async def declare() -> Reply:
        headers = {"Content-Length": str(10**12)}
        return await raw(site.site.port, "POST", CHAT, headers=headers)

    reply = asyncio.run(declare())
    assert (reply.status, error_of(reply)["code"]) == (413, "body_too_large")


def test_an_endless_chunked_body_is_refused(site: ThreadedSite) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    with socket.create_connection(("127.0.0.1", site.site.port), LONG_S) as client:
        client.sendall(head.encode())
        # Whoever refuses may reset the connection: what was said before can be read all the same.
        with contextlib.suppress(ConnectionError):
            while not select.select([client], [], [], 0)[0]:
                client.sendall(chunk)
        assert client.recv(1024).split()[1] == b"413"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/%2e%2e%2fx", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/audio/speech", 404),
    ],
)
def test_wrong_paths_and_methods_are_openai_errors(
    site: ThreadedSite, method: str, path: str, status: int
) -> None:
    reply = site.ask(path, b"", method)
    assert reply.status == status
    assert error_of(reply)["type"] == "invalid_request_error"


def test_an_unknown_model_is_not_found(site: ThreadedSite) -> None:
    for name in ("other", "team/demo", "../demo", "demo\x00", "DEMO", "dem\u043e"):
        reply = site.ask(CHAT, orjson.dumps({"model": name, "messages": MESSAGES}))
        error = error_of(reply)
        assert (reply.status, error["param"], error["code"]) == (404, "model", "model_not_found")


def test_a_request_id_is_kept_only_when_it_is_harmless(site: ThreadedSite) -> None:
    kept = site.ask("/version", b"", "GET", **{"X-Request-Id": "abc-1.2:3"})
    assert kept.headers["x-request-id"] == "abc-1.2:3"
    for bad in ("a b", "x" * 200, '"}{', "é"):
        reply = site.ask("/version", b"", "GET", **{"X-Request-Id": bad})
        assert len(reply.headers["x-request-id"]) == 32


def test_harmless_fields_are_taken(site: ThreadedSite) -> None:
    body = {
        "model": "demo",
        "messages": MESSAGES,
        "user": "u",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "grammar": "",
        "n": None,
        "stop": None,
        "max_tokens": None,
        "reasoning_effort": "low",
        "made_up": [1, {"x": None}],
    }
    assert site.ask(CHAT, orjson.dumps(body)).status == 200
    assert len(site.engine.requests) == 1
