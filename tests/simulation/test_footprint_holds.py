"""The memory estimate against the real peak of a real replica, filled to its last KV cell."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from support.planning import MIB, demo_facts
from support.replicas import SERVE, Replica, listening_port
from support.waiting import wait_for
from terrace.planner.footprint import footprint
from terrace.planner.geometry import Shape
from terrace.planner.tiers import Tiers
from terrace_runtime.contract import (
    KvTiers,
    Offload,
    RuntimeConfig,
    RuntimeReport,
    Speculation,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace.api.values import KvType

DEMO = Path(__file__).parents[2] / "runtime_image/terrace_runtime/demo/chat.gguf"
MAX_TOO_MUCH = 1.35
"""How far above the real peak an estimate may be. Most of it is room for open requests."""
ANSWER_TOKENS = 8


@pytest.mark.parametrize(
    ("context", "parallel", "keys", "values"),
    [
        (2048, 4, "f16", "f16"),
        (2048, 1, "q8_0", "q4_0"),
        (512, 8, "q8_0", "q8_0"),
    ],
)
def test_a_full_replica_stays_below_its_estimate_and_near_it(
    context: int, parallel: int, keys: KvType, values: KvType, tmp_path: Path
) -> None:
    config = RuntimeConfig(
        model="demo",
        served_names=("demo",),
        model_path=str(DEMO),
        model_digest="d" * 64,
        context_tokens=context,
        parallel=parallel,
        threads=1,
        kv_key_type=keys,
        kv_value_type=values,
    )
    shape = Shape(context, parallel, config.ubatch_tokens, keys, values)
    estimate = footprint(demo_facts(), shape).anonymous_bytes

    peak = measured_peak(config, tmp_path)

    assert peak <= estimate <= peak * MAX_TOO_MUCH


@pytest.mark.parametrize(
    "tiers",
    [
        Tiers("mapped", host_bytes=8 * MIB, disk_bytes=64 * MIB, prefetch_bytes=4 * MIB),
        Tiers("paged", is_unified=True, host_bytes=8 * MIB),
    ],
    ids=["split, on disk", "unified, paged"],
)
def test_a_replica_with_tiers_stays_below_its_estimate_and_near_it(
    tiers: Tiers, tmp_path: Path
) -> None:
    config = RuntimeConfig(
        model="demo",
        served_names=("demo",),
        model_path=str(DEMO),
        model_digest="d" * 64,
        context_tokens=2048,
        parallel=3,
        threads=1,
        kv_unified=tiers.is_unified,
        kv=KvTiers(
            block_tokens=tiers.block_tokens,
            host_bytes=tiers.host_bytes,
            disk_bytes=tiers.disk_bytes,
            disk_path=str(tmp_path / "kv") if tiers.disk_bytes else "",
            prefetch_bytes=tiers.prefetch_bytes,
            isolation="shared",
        ),
        offload=Offload(weights=tiers.weights),
        speculation=Speculation(mode="ngram", max_tokens=4),
    )
    shape = Shape(2048, 3, config.ubatch_tokens, "f16", "f16", guessed_tokens=4, tiers=tiers)
    estimate = footprint(demo_facts(), shape).anonymous_bytes

    # More prompts than the cells and the host tier hold, and the first of them once more.
    num_prompts = 2 * tiers.host_bytes // (1280 * config.context_tokens)
    peak = measured_peak(config, tmp_path, [*range(num_prompts), 0, 1, 2])

    assert peak <= estimate <= peak * MAX_TOO_MUCH


def test_a_replica_whose_layout_changes_stays_below_its_estimate_and_near_it(
    tmp_path: Path,
) -> None:
    tiers = Tiers("mapped", is_auto=True, host_bytes=16 * MIB)
    config = RuntimeConfig(
        model="demo",
        served_names=("demo",),
        model_path=str(DEMO),
        model_digest="d" * 64,
        context_tokens=2048,
        parallel=6,
        threads=1,
        kv_auto=True,
        kv=KvTiers(block_tokens=32, host_bytes=16 * MIB),
    )
    shape = Shape(2048, 6, config.ubatch_tokens, "f16", "f16", tiers=tiers)
    estimate = footprint(demo_facts(), shape).anonymous_bytes

    # Everybody asks the same, then everybody something else, and the same once more.
    peak, report = measured(config, tmp_path, [*[0] * 6, *range(1, 13), *[0] * 6])

    assert report.engine.cache.layout_changes > 0
    assert peak <= estimate <= peak * MAX_TOO_MUCH


def measured_peak(config: RuntimeConfig, folder: Path, prompts: Sequence[int] = ()) -> int:
    """The first of ``measured``."""
    return measured(config, folder, prompts)[0]


def measured(
    config: RuntimeConfig, folder: Path, prompts: Sequence[int] = ()
) -> tuple[int, RuntimeReport]:
    """Highest RssAnon + RssShmem seen of a server and all its children, in bytes; its last report.

    Buffers stay once they were touched, so a look after each answer sees them; the replica's own
    report looks more seldom, at moments of its own.
    """
    file, log = folder / "runtime.json", folder / "log"
    file.write_text(config.model_dump_json())
    command = [*SERVE, "--config", str(file)]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, text=True) as server,
    ):
        try:
            replica = Replica(server, folder, 0)
            replica.port = wait_for("a listening line", lambda: listening_port(replica))
            wait_for("a ready replica", replica.is_ready)
            url = f"http://127.0.0.1:{replica.port}"
            with ThreadPoolExecutor(config.parallel) as clients:
                numbers = prompts or range(config.parallel)
                answers = clients.map(lambda i: fill(url, config, i), numbers)
                seen = max(anonymous_bytes(server.pid) for _ in answers)
            report = RuntimeReport.model_validate_json(fetch(f"{url}/v1/runtime"))
        finally:
            server.terminate()
    assert report.memory.anonymous_peak_bytes is not None, log.read_text()
    return max(seen, report.memory.anonymous_peak_bytes), report


def anonymous_bytes(pid: int) -> int:
    """RssAnon + RssShmem of a process and its children now."""
    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    total = 0
    for process in family:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) << 10
    return total


def fill(url: str, config: RuntimeConfig, number: int) -> None:
    prompt = [3 + (number + 7 * i) % 1900 for i in range(config.context_tokens - ANSWER_TOKENS)]
    answer: dict[str, Any] = json.loads(
        fetch(
            f"{url}/v1/completions",
            {"model": "demo", "prompt": prompt, "max_tokens": ANSWER_TOKENS},
        )
    )
    assert answer["usage"]["prompt_tokens"] >= len(prompt)


def fetch(url: str, body: dict[str, Any] | None = None) -> bytes:
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=200) as response:
        answer: bytes = response.read()
    return answer
