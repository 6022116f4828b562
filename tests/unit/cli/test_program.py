"""The installed program ``terrace``: exit codes, output that is piped, and what a Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from support.ports import refusing_port
from support.waiting import wait_for
from terrace.cli.model_file import Reading, read_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(sys.executable).with_name("terrace")
ROOT = Path(__file__).parents[3]
DEMO = ROOT / "runtime_image/terrace_runtime/demo/chat.gguf"
NODE = ("--node", "cpu=16,memory=64Gi")


def terrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "TERM")}
    return subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=plain | environment,
    )


def test_a_model_that_fits_is_a_table_without_colours() -> None:
    answer = terrace("plan", str(DEMO), *NODE)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "\x1b" not in answer.stdout
    assert "* Auto        host" in answer.stdout
    assert "Why Auto, on flavor cpu:" in answer.stdout


def test_bad_input_is_one_line_and_no_traceback() -> None:
    answer = terrace("plan", "nowhere.gguf")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "error: SOURCE nowhere.gguf: there is no such file\n"


def test_a_cluster_that_does_not_answer_is_no_answer(tmp_path: Path) -> None:
    config = tmp_path / "config"
    with refusing_port() as port:
        cluster = {"server": f"http://127.0.0.1:{port}"}
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "c",
                }
            )
        )
        answer = terrace("explain", "im/demo", "--kubeconfig", str(config))
    assert answer.returncode == 3
    assert "does not answer" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_installation_without_the_runtime_says_so(tmp_path: Path) -> None:
    package = tmp_path / "terrace_runtime"
    package.mkdir()
    (package / "__init__.py").write_text("")
    contract = ROOT / "runtime_image/terrace_runtime/contract"
    (package / "contract").symlink_to(contract)
    answer = terrace("plan", str(DEMO), *NODE, PYTHONPATH=_path_with(tmp_path))
    assert answer.returncode == 3
    assert "without the runtime" in answer.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_plan_leaves_no_child(number: signal.Signals) -> None:
    with silent_server() as port:
        command = ["plan", f"https://127.0.0.1:{port}/m.gguf", "--allow-network", "127.0.0.0/8"]
        with subprocess.Popen([PROGRAM, *command], stderr=subprocess.PIPE) as running:
            own = psutil.Process(running.pid)
            children = wait_for("a child", lambda: own.children(recursive=True), every=0.001)
            running.send_signal(number)
            running.communicate(timeout=60)
        assert running.returncode != 0
        wait_for("no child", lambda: not any(each.is_running() for each in children))


def test_an_interruption_before_the_reader_is_known_leaves_no_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readers: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        """As on a busy machine: the interruption comes before we know the child."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            readers.append(self.pid)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with silent_server() as port, pytest.raises(KeyboardInterrupt):
            read_facts(f"https://127.0.0.1:{port}/m.gguf", reading=Reading(("127.0.0.0/8",)))
    finally:
        signal.signal(signal.SIGINT, inherited)
    (reader,) = readers
    with pytest.raises(ProcessLookupError):
        os.kill(reader, 0)


@contextmanager
def silent_server() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def _path_with(folder: Path) -> str:
    before = os.environ.get("PYTHONPATH", "")
    return f"{folder}{os.pathsep}{before}" if before else str(folder)
