"""kill -9 anything: clients get an error and not silence, and the next request works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

from support.chain import kill_9, processes_of
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    import psutil

    from support.chain import Chain

LONG: list[Any] = [{"role": "user", "content": "Tell me a story about a llama named Inti."}]


def client_of(chain: Chain) -> openai.OpenAI:
    return openai.OpenAI(base_url=chain.url, api_key="none", max_retries=0, timeout=60)


def ask(chain: Chain, name: str = "demo") -> str:
    """An answer, or nothing where the way is broken at the moment."""
    try:
        reply = client_of(chain).chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "What is a pod?"}],
            temperature=0,
            max_tokens=64,
        )
    except openai.APIError:
        return ""
    return reply.choices[0].message.content or ""


def stream_and_break(chain: Chain, break_it: Callable[[], object]) -> None:
    """Read a long answer and break something at its sixth piece."""
    stream = client_of(chain).chat.completions.create(
        model="demo", messages=LONG, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
    )
    for number, _ in enumerate(stream):
        if number == 5:
            break_it()


def kill_all(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        kill_9(process)


def answers_again(chain: Chain) -> None:
    said = wait_for("an answer after the failure", lambda: ask(chain), timeout=90, every=0.3)
    assert said.startswith("A pod is the smallest thing Kubernetes runs")


def test_a_killed_runtime_ends_the_stream_with_an_error_and_comes_back(chain: Chain) -> None:
    pod = chain.pods("demo")[0]
    restarts = pod["status"]["containerStatuses"][0]["restartCount"]
    servers = processes_of("terrace_runtime serve", pod["status"]["podIP"])
    with pytest.raises(openai.APIError):
        stream_and_break(chain, lambda: kill_all(servers))
    answers_again(chain)
    again = chain.pods("demo")[0]
    assert again["metadata"]["uid"] == pod["metadata"]["uid"]
    assert again["status"]["containerStatuses"][0]["restartCount"] == restarts + 1


def test_a_killed_engine_child_ends_the_stream_with_an_error_and_comes_back(chain: Chain) -> None:
    pod = chain.pods("demo")[0]
    restarts = pod["status"]["containerStatuses"][0]["restartCount"]
    server = processes_of("terrace_runtime serve", pod["status"]["podIP"])[0]
    engines = [c for c in server.children(recursive=True) if "engine" in " ".join(c.cmdline())]
    with pytest.raises(openai.APIError):
        stream_and_break(chain, lambda: kill_all(engines))
    answers_again(chain)
    status = chain.pods("demo")[0]["status"]["containerStatuses"][0]
    assert status["restartCount"] == restarts + 1
    assert status["lastState"]["terminated"]["message"]


def test_a_killed_gateway_closes_the_stream_and_the_next_request_works(chain: Chain) -> None:
    gateways = processes_of("-m terrace.gateway", chain.program("gateway")["status"]["podIP"])
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        stream_and_break(chain, lambda: kill_all(gateways))
    answers_again(chain)


def test_after_a_killed_operator_the_next_one_does_what_was_asked_meanwhile(chain: Chain) -> None:
    uid = chain.pods("demo")[0]["metadata"]["uid"]
    kill_all(processes_of("-m terrace.controller", chain.program("operator")["status"]["podIP"]))
    chain.cluster.kubectl("scale", "im/demo", "--replicas=2")

    def ready() -> bool:
        return bool(chain.get("im", "demo").get("status", {}).get("readyReplicas") == 2)

    try:
        wait_for("two ready replicas", ready, timeout=120, every=0.5)
        assert uid in [p["metadata"]["uid"] for p in chain.pods("demo")]
    finally:
        chain.cluster.kubectl("scale", "im/demo", "--replicas=1")
    wait_for("one replica again", lambda: len(chain.pods("demo")) == 1, timeout=90)
