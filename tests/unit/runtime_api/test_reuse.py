"""What a replica tells of its caches and its limits: headers, the report, 429 and 504."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from support.engine_builders import runtime_config, text_request
from support.runtime_http import LONG_S, ScriptedEngine, config, piece, raw, running, words
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.contract import (
    CACHED_TIER_HEADER,
    CACHED_TOKENS_HEADER,
    CacheReport,
    EngineReport,
    TierReport,
)
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.request import FinishReason, QueueFullError
from terrace_runtime.metrics import MAX_TENANTS, Metrics

if TYPE_CHECKING:
    from support.runtime_http import Step
    from terrace_runtime.engine.request import Request

BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("tier", "named"), [("disk", "disk"), ("", "none")])
async def test_headers_say_how_deep_the_prompt_was_found_and_in_which_tier(
    tier: str, named: str, stream: Any
) -> None:
    first = piece("Hi", num_prompt_tokens=7, num_cached_tokens=5, cached_tier=tier)
    end = piece("", 0, num_prompt_tokens=7, num_cached_tokens=5, finish=FinishReason.STOP)
    async with running(ScriptedEngine(lambda _: [first, end])) as site:
        reply = await raw(site.port, "POST", PATH, orjson.dumps({**BODY, "stream": stream}))
    assert reply.headers[CACHED_TOKENS_HEADER] == "5"
    assert reply.headers[CACHED_TIER_HEADER] == named


async def test_what_further_answers_share_with_the_first_is_not_found_in_a_tier() -> None:
    def script(request: Request) -> list[Step]:
        # The second answer's prompt is the first one's, which was computed anew.
        cached, tier = (0, "") if request.id.endswith("-0") else (6, "device")
        values: Any = {"num_prompt_tokens": 7, "num_cached_tokens": cached, "cached_tier": tier}
        return [piece("Hi", **values), piece("", 0, **values, finish=FinishReason.STOP)]

    async with running(ScriptedEngine(script)) as site:
        reply = await raw(site.port, "POST", PATH, orjson.dumps({**BODY, "n": 2}))
    assert reply.headers[CACHED_TOKENS_HEADER] == "0"
    assert reply.headers[CACHED_TIER_HEADER] == "none"


async def test_a_request_that_is_too_old_gets_504_with_the_limit_it_broke() -> None:
    late = words(finish=FinishReason.TIMEOUT)
    engine = ScriptedEngine(lambda _: list(late))
    async with running(engine, config(request_timeout_s=30)) as site:
        own = await raw(site.port, "POST", PATH, orjson.dumps({**BODY, "timeout": 2.5}))
        ours = await raw(site.port, "POST", PATH, orjson.dumps(BODY))
    assert (own.status, ours.status) == (504, 504)
    assert "2.5 s" in own.body.decode()
    assert orjson.loads(own.body)["error"]["param"] == "timeout"
    assert "30 s" in ours.body.decode()
    assert engine.requests[0].timeout_s == 2.5


async def test_the_report_shows_the_engines_tiers() -> None:
    tiers = (TierReport(name="host", used_bytes=5, limit_bytes=9, hits=3),)
    engine = ScriptedEngine()
    engine.report = EngineReport(cache=CacheReport(reuse="blocks", tiers=tiers))
    async with running(engine) as site:
        report = orjson.loads((await raw(site.port, "GET", "/v1/runtime")).body)
    assert report["engine"]["cache"]["tiers"][0]["used_bytes"] == 5


async def test_who_would_wait_longer_than_allowed_is_refused_at_once() -> None:
    settings = runtime_config(parallel=1, max_wait_s=0.05, context_tokens=4096)
    engine = InProcessEngine(settings, FakeBackend(eos_odds=10**9))
    await engine.start()
    try:
        slow = text_request("first", max_tokens=2500)
        async with asyncio.timeout(LONG_S):
            assert [one async for one in engine.submit(slow)][-1].finish
            running_one = engine.submit(text_request("second", max_tokens=2500))
            with pytest.raises(QueueFullError, match="requests wait already"):
                engine.submit(text_request("third"))
            await running_one.aclose()
    finally:
        await engine.close()


async def test_metrics_show_tiers_guesses_queue_tenants_and_the_gateways_names() -> None:
    tier = TierReport(name="disk", used_bytes=5, limit_bytes=9, blocks=2, hits=3, spills=4)
    engine = ScriptedEngine()
    engine.report = EngineReport(cache=CacheReport(block_tokens=32, misses=6, tiers=(tier,)))
    async with running(engine) as site:
        await raw(site.port, "POST", PATH, orjson.dumps(BODY))
        text = (await raw(site.port, "GET", "/metrics")).body.decode()
    for line in (
        'terrace_runtime_kv_tier_used_bytes{tier="disk"} 5.0',
        'terrace_runtime_kv_tier_limit_bytes{tier="disk"} 9.0',
        'terrace_runtime_kv_tier_hits_total{tier="disk"} 3.0',
        'terrace_runtime_kv_tier_spills_total{tier="disk"} 4.0',
        "terrace_runtime_kv_misses_total 6.0",
        "terrace_runtime_queue_seconds_count 1.0",
        'terrace_runtime_tenant_tokens_total{kind="prompt",tenant=""} 7.0',
        'terrace_runtime_tenant_requests_total{outcome="stop",tenant=""} 1.0',
        'terrace_runtime_memory_bytes{kind="weights"} 1000.0',
        'vllm:num_requests_waiting{model_name="demo"} 2.0',
        'vllm:kv_cache_usage_perc{model_name="demo"} 0.4',
        'vllm:cache_config_info{block_size="32",num_gpu_blocks="32"} 1.0',
    ):
        assert line in text.splitlines()


def test_more_tenants_than_can_have_series_of_their_own_count_as_other() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for number in range(MAX_TENANTS + 5):
        metrics.count_tenant(f"t{number}", "stop", 1, 1)
    name = "terrace_runtime_tenant_requests_total"
    assert registry.get_sample_value(name, {"tenant": "other", "outcome": "stop"}) == 5
    assert registry.get_sample_value(name, {"tenant": "t1", "outcome": "stop"}) == 1
