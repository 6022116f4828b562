"""The runtime's commands as processes: exit codes, last words, signals, a real model."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import orjson
import psutil
import pytest

from support import tiny_projectors
from support.engine_builders import DEMO, runtime_config
from support.replicas import last_words, pod_folder, serving
from support.waiting import wait_for
from terrace_runtime.contract import (
    EXIT_BACKEND,
    EXIT_BAD_CONFIG,
    EXIT_ENGINE,
    EXIT_MODEL_MISSING,
    EXIT_PERMANENT,
    FetchOutcome,
    FetchProgress,
    ModelFacts,
    RuntimeReport,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.replicas import Replica
    from terrace_runtime.contract import RuntimeConfig

LONG_S = 60
MESSAGES: Any = [{"role": "user", "content": "What is a pod?"}]
BODY = orjson.dumps({"model": "chat", "messages": MESSAGES})
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY
PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "terrace_runtime", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    return pod_folder(tmp_path)


def demo_pod(pod: Path, **changes: Any) -> RuntimeConfig:
    (pod / "models" / "chat.gguf").write_bytes((DEMO / "chat.gguf").read_bytes())
    return runtime_config(model_path="/models/chat.gguf", **changes)


@contextlib.contextmanager
def stopped_engine(replica: Replica) -> Iterator[psutil.Process]:
    """It does nothing until the end of the block.

    So a request stays open for as long as it takes to look at what the replica does meanwhile.
    """
    engine = psutil.Process(replica.engine_pid())
    engine.suspend()
    try:
        yield engine
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            engine.resume()


def report_of(replica: Replica) -> RuntimeReport:
    return RuntimeReport.model_validate_json(replica.get("/v1/runtime"))


def streamed_answer(port: int) -> str:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as client:
        stream = client.chat.completions.create(
            model="chat", messages=MESSAGES, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_a_replica_serves_a_real_model_and_drains_on_sigterm(pod: Path) -> None:
    config = demo_pod(pod, drain_timeout_s=LONG_S)
    with serving(pod, config) as replica, ThreadPoolExecutor(1) as clients:
        assert replica.status("/healthz") == 200
        wait_for("readiness", replica.is_ready, every=0.05)
        with stopped_engine(replica):
            text = clients.submit(streamed_answer, replica.port)
            wait_for("the request", lambda: report_of(replica).waiting == 1, every=0.02)
            replica.process.send_signal(signal.SIGTERM)
            wait_for("red readiness", lambda: replica.status("/readyz") == 503, every=0.01)
            assert replica.status("/healthz") == 200
            assert report_of(replica).state == "draining"
        assert text.result(LONG_S) == (
            "A pod is the smallest thing Kubernetes runs: one or more containers "
            "that share a network address and storage."
        )
        assert replica.process.wait(LONG_S) == 0
    assert "pod is the smallest" not in replica.log()
    assert "What is a pod" not in replica.log()


def test_sigterm_while_the_model_loads_ends_at_once(pod: Path) -> None:
    with serving(pod, demo_pod(pod)) as replica:
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(LONG_S) == 0


def test_a_killed_engine_ends_the_process_with_its_reason(pod: Path) -> None:
    with serving(pod, demo_pod(pod)) as replica:
        wait_for("readiness", replica.is_ready, every=0.05)
        with (
            stopped_engine(replica) as engine,
            socket.create_connection(("127.0.0.1", replica.port), LONG_S) as client,
        ):
            # A probe behind a request that nothing but the engine's end answers: it is answered
            # between that end and the server's own, however late we read it.
            client.sendall(ASK + PROBE)
            engine.kill()
            answers = b"".join(iter(lambda: client.recv(4096), b""))
        assert replica.process.wait(LONG_S) == EXIT_ENGINE
    asked, probed = answers.split(b"HTTP/1.1 ")[1:]
    assert asked[:3] in {b"500", b"503"}
    assert probed[:3] == b"503"
    assert b"SIGKILL" in probed
    assert "SIGKILL" in last_words(pod)


def test_a_model_that_does_not_load_says_so(pod: Path) -> None:
    config = demo_pod(pod)
    (pod / "models" / "chat.gguf").write_bytes(b"GGUF" + bytes(1000))
    with serving(pod, config) as replica:
        assert replica.process.wait(LONG_S) == EXIT_BACKEND
    words = last_words(pod)
    assert "cannot be loaded" in words
    assert "llama.cpp itself works here" in words


def test_a_projector_that_crashes_llama_is_named(pod: Path) -> None:
    config = demo_pod(pod)
    blind = tiny_projectors.llava(pod / "models" / "eyes.gguf", without="v.blk.0.attn_q.weight")
    seeing = config.model_copy(update={"projector_path": f"/models/{blind.name}"})
    with serving(pod, seeing) as replica:
        assert replica.process.wait(LONG_S) == EXIT_BACKEND
    assert "opening the projector /models/eyes.gguf was ended by SIGSEGV" in last_words(pod)


def config_json(**changes: Any) -> str:
    return runtime_config(**changes).model_dump_json()


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, EXIT_BAD_CONFIG, "cannot be read"),
        ("{", EXIT_BAD_CONFIG, "Invalid JSON"),
        ('{"model": "m"}', EXIT_BAD_CONFIG, "served_names: Field required"),
        (
            runtime_config(model_path="/models/none").model_dump_json(),
            EXIT_MODEL_MISSING,
            "/models/none",
        ),
        (
            runtime_config(model_path="/m", trust_key="x").model_dump_json(),
            EXIT_BAD_CONFIG,
            "trust_key",
        ),
    ],
)
def test_serve_refuses_a_bad_start(pod: Path, content: str | None, code: int, words: str) -> None:
    (pod / "m").write_bytes(b"")
    if content is not None:
        (pod / "etc/terrace/runtime.json").write_text(content)
    ended = run("serve", TERRACE_POD_ROOT=str(pod))
    assert ended.returncode == code
    assert words in last_words(pod)
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_fetch_leaves_facts_or_a_failure_behind(pod: Path) -> None:
    good = run("fetch", TERRACE_POD_ROOT=str(pod), TERRACE_FETCH='{"uri": "demo://chat"}')
    assert good.returncode == 0
    outcome = FetchOutcome.model_validate_json(last_words(pod))
    assert outcome.facts is not None
    assert (pod / outcome.path.lstrip("/")).is_file()
    lines = [FetchProgress.model_validate_json(line) for line in good.stdout.splitlines()]
    assert lines[-1].done_bytes == lines[-1].total_bytes == outcome.facts.file_bytes

    bad = run("fetch", TERRACE_POD_ROOT=str(pod), TERRACE_FETCH='{"uri": "demo://none"}')
    assert bad.returncode == EXIT_PERMANENT
    failure = FetchOutcome.model_validate_json(last_words(pod)).failure
    assert failure is not None
    assert failure.reason == "NotFound"


def test_fetch_without_a_spec_is_a_bad_configuration(pod: Path) -> None:
    for spec in ("", "{}", '{"uri": "demo://chat", "extra": 1}'):
        ended = run("fetch", TERRACE_POD_ROOT=str(pod), TERRACE_FETCH=spec)
        assert ended.returncode == EXIT_BAD_CONFIG
        assert "FetchSpec" in last_words(pod)


def test_inspect_prints_facts_or_the_reason(tmp_path: Path) -> None:
    good = run("inspect", str(DEMO / "draft.gguf"))
    assert ModelFacts.model_validate_json(good.stdout).layer_count == 2
    page = tmp_path / "page.gguf"
    page.write_bytes(b"<html>")
    bad = run("inspect", str(page))
    assert bad.returncode == EXIT_PERMANENT
    failure = FetchOutcome.model_validate_json(bad.stdout).failure
    assert failure is not None
    assert failure.reason == "UnsupportedFormat"
    assert "UnsupportedFormat" in bad.stderr


def test_help_names_the_commands() -> None:
    text = run("--help").stdout
    assert all(name in text for name in ("serve", "fetch", "inspect"))
    assert "--port" in run("serve", "--help").stdout
