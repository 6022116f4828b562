"""DiskHeavy's promise: a model larger than the memory limit answers, paged from its file.

The limit is the kernel's own, over the whole replica: both processes and what they map. The same
replica that reads its weights into memory, or repacks them, is killed under it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from support.engine_builders import runtime_config
from support.large_model import LAYER_BYTES, large_model
from support.memory_limit import drop_from_page_cache, limited_memory, unavailable
from support.replicas import last_words, pod_folder, serving
from support.waiting import wait_for
from terrace_runtime.contract import EXIT_HOST_MEMORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.replicas import Replica
    from terrace_runtime.contract import RuntimeConfig

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

MIB = 1024 * 1024
LAYERS = 40
LIMIT_BYTES = 256 * MIB
"""Two Python processes, KV and compute buffers take about 170 MiB, the weights 360 MiB more."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = large_model(tmp_path_factory.mktemp("large") / "large.gguf", LAYERS)
    assert path.stat().st_size > LAYERS * LAYER_BYTES > LIMIT_BYTES * 1.3
    yield path
    path.unlink()


def pod_of(tmp_path: Path, model: Path, weights: str) -> tuple[Path, RuntimeConfig]:
    pod = pod_folder(tmp_path / weights)
    (pod / "models/large.gguf").hardlink_to(model)
    config = runtime_config(
        model="large",
        served_names=("large",),
        model_path="/models/large.gguf",
        parallel=1,
        ubatch_tokens=64,
        threads=2,
        offload={"weights": weights},
        step_timeout_s=600,
    )
    return pod, config


def answer(replica: Replica) -> tuple[str, int]:
    body: Any = {"model": "large", "prompt": "terrace", "max_tokens": 8, "temperature": 0}
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{replica.port}/v1", api_key="x", timeout=300
    ) as client:
        given = client.completions.create(**body, extra_body={"ignore_eos": True})
    assert given.usage is not None
    return given.choices[0].text, given.usage.completion_tokens


@pytest.mark.timeout(600)
def test_paged_weights_may_exceed_the_memory_limit(tmp_path: Path, model: Path) -> None:
    pod, config = pod_of(tmp_path, model, "paged")
    drop_from_page_cache(model)
    with limited_memory(8 * LIMIT_BYTES) as roomy:
        with serving(pod, config, wrapper=roomy.wrapper) as replica:
            wait_for("readiness", replica.is_ready, timeout=120)
            with_room = answer(replica)
        assert roomy.peak_bytes > 1.5 * LIMIT_BYTES
        assert roomy.times_full == 0
    drop_from_page_cache(model)
    with limited_memory(LIMIT_BYTES) as limit:
        with serving(pod, config, wrapper=limit.wrapper) as replica:
            wait_for("readiness", replica.is_ready, timeout=120)
            assert answer(replica) == with_room
            assert answer(replica) == with_room
            assert replica.process.poll() is None
        assert limit.peak_bytes <= LIMIT_BYTES
        assert limit.times_full > 100, "the weights did not come and go"
    assert with_room[1] == 8


@pytest.mark.timeout(600)
@pytest.mark.parametrize("weights", ["loaded", "mapped"])
def test_the_same_replica_is_killed_when_its_weights_are_in_memory(
    tmp_path: Path, model: Path, weights: str
) -> None:
    pod, config = pod_of(tmp_path, model, weights)
    drop_from_page_cache(model)
    with limited_memory(LIMIT_BYTES) as limit, serving(pod, config, wrapper=limit.wrapper) as one:
        assert one.process.wait(120) == EXIT_HOST_MEMORY
    words = last_words(pod)
    assert "SIGKILL" in words
    assert "out of memory" in words
