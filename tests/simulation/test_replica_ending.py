"""Every way in which a replica ends by itself leaves its reason where Kubernetes looks for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.engine_builders import DEMO, runtime_config
from support.replicas import last_words, pod_folder, serving
from support.waiting import wait_for
from terrace_runtime.contract import (
    EXIT_ADDRESS,
    EXIT_BAD_CONFIG,
    EXIT_ENGINE,
    EXIT_HOST_MEMORY,
    MAX_TERMINATION_BYTES,
    TERMINATION_LOG_ENV,
    KvTiers,
    RuntimeReport,
)
from terrace_runtime.ending import terminate

if TYPE_CHECKING:
    from pathlib import Path

LONG_S = 60


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """With the demo model and a RuntimeConfig that names it."""
    folder = pod_folder(tmp_path)
    (folder / "models" / "chat.gguf").write_bytes((DEMO / "chat.gguf").read_bytes())
    config = runtime_config(model_path="/models/chat.gguf")
    (folder / "etc/terrace/runtime.json").write_text(config.model_dump_json())
    return folder


def serve(pod: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "terrace_runtime", "serve", *arguments],
        env={**os.environ, "TERRACE_POD_ROOT": str(pod), **environment},
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )


def test_a_port_that_is_taken(pod: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = serve(pod, "--port", str(port))
    assert ended.returncode == EXIT_ADDRESS
    assert last_words(pod).startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")
    assert json.loads(ended.stderr.splitlines()[-1])["event"] == last_words(pod)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "cannot listen on 127.0.0.1:70000: bind(): port must be 0-65535"),
        (("--host", "192.0.2.1", "--port", "0"), "Cannot assign requested address"),
    ],
)
def test_an_address_that_cannot_be_had(pod: Path, arguments: tuple[str, ...], words: str) -> None:
    assert serve(pod, *arguments).returncode == EXIT_ADDRESS
    assert words in last_words(pod)


def test_a_host_tier_that_no_node_has(pod: Path) -> None:
    tiers = KvTiers(host_bytes=1 << 60)
    config = runtime_config(model_path="/models/chat.gguf", kv=tiers)
    (pod / "etc/terrace/runtime.json").write_text(config.model_dump_json())
    assert serve(pod).returncode == EXIT_HOST_MEMORY
    assert f"({1 << 60} bytes), more than the container's memory limit of" in last_words(pod)


def test_an_engine_that_was_killed(pod: Path) -> None:
    with serving(pod, runtime_config(model_path="/models/chat.gguf")) as replica:
        wait_for("readiness", replica.is_ready, LONG_S, every=0.05)
        os.kill(replica.engine_pid(), signal.SIGBUS)
        assert replica.process.wait(LONG_S) == EXIT_ENGINE
    assert "SIGBUS: a mapped file was cut short, or its volume failed" in last_words(pod)


def test_a_volume_for_kv_blocks_that_cannot_be_used_ends_nothing(pod: Path) -> None:
    (pod / "kv").write_text("a file where a folder should be")
    tiers = KvTiers(host_bytes=1 << 20, disk_bytes=1 << 24, disk_path="/kv")
    with serving(pod, runtime_config(model_path="/models/chat.gguf", kv=tiers)) as replica:
        wait_for("readiness", replica.is_ready, LONG_S, every=0.05)
        report = RuntimeReport.model_validate_json(replica.get("/v1/runtime"))
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(LONG_S) == 0
    assert report.state == "ready"
    lines = [json.loads(line) for line in replica.log().splitlines()]
    (problem,) = [line for line in lines if line["event"].startswith("no disk tier for now")]
    assert (problem["level"], problem["component"]) == ("warning", "engine")
    assert not (pod / "dev/termination-log").exists()


def test_the_path_may_be_another(pod: Path) -> None:
    (pod / "own").mkdir()
    (pod / "etc/terrace/runtime.json").write_text("{")
    ended = serve(pod, **{TERMINATION_LOG_ENV: "/own/words"})
    assert ended.returncode == EXIT_BAD_CONFIG
    assert "Invalid JSON" in (pod / "own/words").read_text()
    assert not (pod / "dev/termination-log").exists()


def test_a_termination_log_that_cannot_be_written_leaves_the_reason_in_the_log(pod: Path) -> None:
    (pod / "dev/termination-log").mkdir()
    (pod / "etc/terrace/runtime.json").write_text("{")
    ended = serve(pod)
    assert ended.returncode == EXIT_BAD_CONFIG
    first, last = (json.loads(line)["event"] for line in ended.stderr.splitlines())
    assert "cannot be written" in first
    assert "Invalid JSON" in last


def test_last_words_are_cut_between_two_letters(pod: Path) -> None:
    program = (
        "import sys; from terrace_runtime.ending import fail; "
        "sys.exit(fail(9, 'x' + 'é\\n' * 5000))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TERRACE_POD_ROOT": str(pod)},
        capture_output=True,
        timeout=LONG_S,
        check=False,
    )
    assert ended.returncode == 9
    raw = (pod / "dev/termination-log").read_bytes()
    assert MAX_TERMINATION_BYTES - 2 <= len(raw) <= MAX_TERMINATION_BYTES
    assert "\n" not in raw.decode()


def test_outside_a_pod_nothing_is_written_to_dev() -> None:
    assert "TERRACE_POD_ROOT" not in os.environ
    terminate("words")
