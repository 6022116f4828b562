"""Reports, metrics and identity."""

from __future__ import annotations

import base64
import time
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws
from joserfc.jwk import OctKey, OKPKey

from support.runtime_http import ScriptedEngine, Site, config, raw, running
from terrace_runtime.api.memory import MemoryMeter
from terrace_runtime.contract import IDENTITY_HEADER, RuntimeReport

BODY = orjson.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]})
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).decode().rstrip("=")


def token(
    *, key: Any = None, algorithm: str = "Ed25519", raw_payload: bytes | None = None, **claims: Any
) -> str:
    values = {
        "tenant": "t1",
        "priority": "batch",
        "model": "team/demo",
        "exp": int(time.time()) + 60,
    }
    payload = orjson.dumps(values | claims) if raw_payload is None else raw_payload
    return jws.serialize_compact(
        {"alg": algorithm}, payload, key or OKPKey.import_key(KEY), algorithms=[algorithm]
    )


async def ask(site: Site, header: str | None, model: str = "demo") -> int:
    headers = {} if header is None else {IDENTITY_HEADER: header}
    body = BODY.replace(b'"demo"', orjson.dumps(model))
    return (await raw(site.port, "POST", "/v1/chat/completions", body, headers)).status


async def test_a_signed_identity_names_tenant_priority_and_model() -> None:
    engine = ScriptedEngine()
    async with running(engine, config(trust_key=PUBLIC)) as site:
        assert await ask(site, token()) == 200
        assert await ask(site, token(priority="interactive"), "any name at all") == 200
        assert await ask(site, None) == 200
        assert await ask(site, None, "any name at all") == 404
        assert await ask(site, token(model="team/other")) == 404
    assert [(r.tenant, r.priority) for r in engine.requests] == [("t1", 1), ("t1", 0), ("", 0)]


async def test_an_identity_that_is_not_ours_is_refused() -> None:
    other = OKPKey.import_key(Ed25519PrivateKey.generate())
    secret = OctKey.import_key(base64.urlsafe_b64decode(PUBLIC + "=="))
    forged = token().split(".")
    bad = {
        "expired": token(exp=int(time.time()) - 1),
        "of another key": token(key=other),
        "with the public key as a shared secret": token(key=secret, algorithm="HS256"),
        "without a signature": f"{forged[0]}.{forged[1]}.",
        "with changed claims": f"{forged[0]}.{forged[1][:-4]}AAAA.{forged[2]}",
        "with alg none": base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
        + f".{forged[1]}.",
        "that is no JSON": token(raw_payload=b"hello"),
        "with an unknown claim": token(admin=True),
        "with an unknown priority": token(priority="urgent"),
        "empty": "",
        "noise": "x.y.z",
        "huge": "x" * 10_000,
    }
    engine = ScriptedEngine()
    async with running(engine, config(trust_key=PUBLIC)) as site:
        for name, header in bad.items():
            assert await ask(site, header) == 401, name
    async with running(engine, config(trust_key="")) as site:
        assert await ask(site, token()) == 401
    assert engine.requests == []


def test_a_trust_key_that_is_none_is_refused_at_the_start() -> None:
    from terrace_runtime.api.app import create_app  # noqa: PLC0415 - one test

    for bad in ("x", "AAAA", "!!!!"):
        with pytest.raises(ValueError, match="trust_key"):
            create_app(ScriptedEngine(), config(trust_key=bad))


async def test_the_report_tells_the_operator_what_it_needs() -> None:
    async with running(ScriptedEngine(), config(plan_digest="p" * 64)) as site:
        site.state.memory.sample()
        report = RuntimeReport.model_validate_json(
            (await raw(site.port, "GET", "/v1/runtime")).body
        )
        version = orjson.loads((await raw(site.port, "GET", "/version")).body)
    assert (report.state, report.model, report.model_digest) == ("ready", "demo", "d" * 64)
    assert report.plan_digest == "p" * 64
    assert (report.threads, report.parallel, report.waiting, report.running) == (2, 4, 2, 1)
    assert report.prompt_tokens_per_second == 50
    assert report.generated_tokens_per_second == 0
    assert report.memory.weights_bytes == 1000
    assert report.memory.anonymous_peak_bytes is not None
    assert report.memory.anonymous_peak_bytes > 10_000_000
    assert version == {"build": report.build, "contract": "v1"}
    assert report.build.startswith("terrace-")
    assert report.build.endswith("+fake-1")


async def test_metrics_count_what_happened() -> None:
    async with running(ScriptedEngine()) as site:
        assert (await raw(site.port, "POST", "/v1/chat/completions", BODY)).status == 200
        assert (await raw(site.port, "POST", "/v1/chat/completions", b"{}")).status == 400
        bad_model = BODY.replace(b'"demo"', b'"nobody"')
        assert (await raw(site.port, "POST", "/v1/chat/completions", bad_model)).status == 404
        reply = await raw(site.port, "GET", "/metrics")
    lines = set(reply.body.decode().splitlines())
    assert reply.headers["content-type"].startswith("text/plain")
    assert {
        'terrace_runtime_requests_total{endpoint="chat",outcome="stop"} 1.0',
        'terrace_runtime_requests_total{endpoint="chat",outcome="invalid_request"} 1.0',
        'terrace_runtime_requests_total{endpoint="chat",outcome="model_not_found"} 1.0',
        "terrace_runtime_prompt_tokens_total 7.0",
        "terrace_runtime_generated_tokens_total 2.0",
        "terrace_runtime_time_to_first_token_seconds_count 1.0",
        "terrace_runtime_inter_token_seconds_count 1.0",
        "terrace_runtime_request_seconds_count 1.0",
        "terrace_runtime_requests_waiting 2.0",
        "terrace_runtime_requests_running 1.0",
        "terrace_runtime_kv_cache_usage_ratio 0.4",
    } <= lines
    assert "nobody" not in reply.body.decode()


def test_the_memory_meter_sees_children_and_keeps_the_peak() -> None:
    import subprocess  # noqa: PLC0415 - one test
    import sys  # noqa: PLC0415 - one test

    meter = MemoryMeter()
    alone = meter.sample()
    code = "import sys; held = bytearray(b'x' * 80_000_000); print(len(held)); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together = meter.sample()
        child.communicate()
    assert together - alone > 80_000_000
    assert meter.sample() < together
    assert meter.peak_bytes == together


async def test_an_adapter_is_asked_for_by_its_name_as_the_model() -> None:
    engine = ScriptedEngine()
    poet = {"name": "poet", "path": "/models/blobs/poet.gguf", "digest": "e" * 64}
    async with running(engine, config(adapters=(poet,), trust_key=PUBLIC)) as site:
        listed = orjson.loads((await raw(site.port, "GET", "/v1/models")).body)["data"]
        assert [one["id"] for one in listed] == ["demo", "chat", "poet"]
        assert (await raw(site.port, "GET", "/v1/models/poet")).status == 200
        for name in ("demo", "poet"):
            assert await ask(site, None, name) == 200
        assert await ask(site, token(), "poet") == 200
        assert await ask(site, None, "lawyer") == 404
        body = orjson.dumps({"model": "poet", "prompt": "Hi"})
        assert (await raw(site.port, "POST", "/v1/completions", body)).status == 200
    assert [request.adapter for request in engine.requests] == ["", "poet", "poet", "poet"]


async def test_the_report_shows_the_memory_of_each_device() -> None:
    async with running(ScriptedEngine(), config()) as site:
        told = RuntimeReport.model_validate_json((await raw(site.port, "GET", "/v1/runtime")).body)
    assert [(one.name, one.weights_bytes) for one in told.memory.devices] == [("CPU", 1000)]
