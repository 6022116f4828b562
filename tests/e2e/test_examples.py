"""The shipped clients against the real chain, and examples on a node without devices."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from support.chain import ROOT

if TYPE_CHECKING:
    from support.chain import Chain

CLIENTS = ROOT / "examples/12-clients"


def run(chain: Chain, *command: str) -> str:
    done = subprocess.run(
        command,
        env=os.environ | {"OPENAI_BASE_URL": chain.url, "MODEL": "demo"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_openai_python_example_lists_streams_and_asks(chain: Chain) -> None:
    models, *answer = run(
        chain, sys.executable, str(CLIENTS / "chat.py"), "What is a pod?"
    ).splitlines()
    assert "demo" in models.removeprefix("models: ").split(", ")
    streamed, tokens, whole = "\n".join(answer[:-2]), answer[-2], answer[-1]
    assert re.fullmatch(r"\d+ \+ \d+ tokens", tokens)
    assert "container" in streamed
    assert whole.endswith(("(stop)", "(length)"))


def test_the_curl_example_lists_asks_and_streams(chain: Chain) -> None:
    said = run(chain, "sh", str(CLIENTS / "chat.sh"))
    listed, whole, streamed = re.split(r"^# .*\n", said, flags=re.MULTILINE)[1:]
    assert "demo" in {each["id"] for each in json.loads(listed)["data"]}
    assert "x-terrace-cached-tokens:" in whole.lower()
    answer = json.loads(whole[whole.index("\n{") :])
    assert answer["choices"][0]["message"]["content"]
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert all(json.loads(event)["object"] == "chat.completion.chunk" for event in events[:-1])


def test_the_curl_example_fails_where_the_model_does_not_exist(chain: Chain) -> None:
    done = subprocess.run(
        ["sh", str(CLIENTS / "chat.sh")],
        env=os.environ | {"OPENAI_BASE_URL": chain.url, "MODEL": "nobody"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert '"code":"model_not_found"' in done.stdout


def test_a_pool_with_a_gpu_flavor_first_falls_back_to_the_cpu(chain: Chain) -> None:
    example = str(ROOT / "examples/05-devices")
    chain.cluster.kubectl("apply", "-f", example)
    try:
        chain.wait_condition("chat", "Ready", "True")
        status = chain.get("im", "chat")["status"]
        assert status["placement"]["flavor"] == "cpu"
        assert any("gpu" in reason for reason in status["plan"]["reasons"])
    finally:
        chain.cluster.kubectl("delete", "-f", example, "--ignore-not-found", "--wait=true")


def test_a_pool_with_a_gpu_flavor_alone_never_runs_on_the_cpu(chain: Chain) -> None:
    example = str(ROOT / "examples/06-nvidia")
    chain.cluster.kubectl("apply", "-f", example)
    try:
        found = chain.wait_condition("on-nvidia", "Placed", "False", "NoNodeFits")
        assert "nvidia.com/gpu" in found["message"]
        own = "terrace.dev/model=on-nvidia,app.kubernetes.io/component=runtime"
        assert not chain.cluster.kubectl(
            "get", "pods,statefulsets", "-l", own, "-o", "name"
        ).split()
    finally:
        chain.cluster.kubectl("delete", "-f", example, "--ignore-not-found", "--wait=true")
