"""Probes against real servers, commands and ports."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from support.host_pods import container, pod

if TYPE_CHECKING:
    from support.host_pods import Bench, Started

HTTP = """
import http.server, os, pathlib
root = pathlib.Path(os.environ["TERRACE_POD_ROOT"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if (root / "tmp" / "sick").exists() else 200)
        self.end_headers()
        self.wfile.write(b"body text")
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("$(POD_IP)", 8000), Handler).serve_forever()
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def server(**fields: object) -> dict[str, object]:
    ports = [{"name": "http", "containerPort": 8000}]
    return container(HTTP, image="test/py", env=[POD_IP], ports=ports, **fields)


def probe(**fields: object) -> dict[str, object]:
    asked = {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 0.05}
    return {**asked, "timeoutSeconds": 60, **fields}


def is_ready(one: Started) -> bool:
    return one.conditions()["Ready"] == "True"


def has_processes(one: Started, count: int) -> bool:
    return len(one.pids()) >= count


def sick(one: Started, *, is_sick: bool) -> None:
    file = one.root() / "tmp" / "sick"
    if is_sick:
        file.touch()
    else:
        file.unlink()


async def test_readiness_follows_an_http_server_on_its_named_port(bench: Bench) -> None:
    one = bench.start(pod(server(readinessProbe=probe(failureThreshold=2))))
    await one.until("it is ready", lambda: is_ready(one))
    assert one.container()["ready"] is True
    sick(one, is_sick=True)
    await one.until("it is unready", lambda: not is_ready(one))
    assert "Readiness probe failed: HTTP probe failed with statuscode: 503 body text" in [
        message for reason, message in one.events if reason == "Unhealthy"
    ]
    sick(one, is_sick=False)
    await one.until("it is ready again", lambda: is_ready(one))
    assert one.container()["restartCount"] == 0


async def test_a_container_without_probes_is_ready_once_it_runs(bench: Bench) -> None:
    one = bench.start(pod(container()))
    await one.until("it is ready", lambda: is_ready(one))


async def test_a_failed_liveness_probe_restarts_the_container(bench: Bench) -> None:
    probes = {
        "startupProbe": probe(failureThreshold=10_000),
        "livenessProbe": probe(failureThreshold=2),
    }
    one = bench.start(pod(server(**probes), restartPolicy="Always"))
    await one.until("it started", lambda: one.container()["started"])
    sick(one, is_sick=True)
    await one.until("it restarted", lambda: one.container()["restartCount"] == 1)
    assert ("Killing", "Container c failed liveness probe, will be restarted") in one.events
    await one.until("it is well again", lambda: one.container()["started"])


async def test_the_startup_probe_holds_the_others_back(bench: Bench) -> None:
    test = ["/bin/sh", "-c", 'test -e "$TERRACE_POD_ROOT/tmp/up"']
    startup = {"exec": {"command": test}, "periodSeconds": 0.05, "failureThreshold": 10_000}
    readiness = {"exec": {"command": ["true"]}, "periodSeconds": 0.05}
    one = bench.start(pod(container(startupProbe=startup, readinessProbe=readiness)))
    await one.until("it was asked", lambda: "Unhealthy" in one.reasons())
    assert not one.container()["started"]
    assert not is_ready(one)
    (one.root() / "tmp" / "up").touch()
    await one.until("it is ready", lambda: is_ready(one))
    assert one.container()["started"]


async def test_a_startup_probe_that_never_succeeds_ends_the_container(bench: Bench) -> None:
    startup = {"tcpSocket": {"port": 8000}, "periodSeconds": 0.05, "failureThreshold": 2}
    one = await bench.run(pod(container(startupProbe=startup)))
    assert one.terminated["exitCode"] == 143
    assert ("Killing", "Container c failed startup probe, will be restarted") in one.events


async def test_a_tcp_probe_sees_an_open_port(bench: Bench) -> None:
    readiness = {"tcpSocket": {"port": "http"}, "periodSeconds": 0.05, "failureThreshold": 100}
    one = bench.start(pod(server(readinessProbe=readiness)))
    await one.until("it is ready", lambda: is_ready(one))


async def test_a_command_that_hangs_fails_within_its_timeout_and_is_killed(bench: Bench) -> None:
    hang = {"exec": {"command": ["/bin/sh", "-c", "sleep 71 & sleep 72"]}}
    readiness = {**hang, "periodSeconds": 0.05, "timeoutSeconds": 0.1}
    one = bench.start(pod(container(readinessProbe=readiness)))
    await one.until("it failed", lambda: "Unhealthy" in one.reasons())
    assert one.message_of("Unhealthy") == "Readiness probe failed: no answer within 0.1 s"


async def test_a_probe_cancelled_while_it_is_cleared_up_leaves_nothing(bench: Bench) -> None:
    hang = {"exec": {"command": ["/bin/sh", "-c", "sleep 73 & sleep 74"]}, "timeoutSeconds": 100}
    for pause in range(4):
        one = bench.start(pod(container(readinessProbe=hang)))
        await one.until("it is asked", partial(has_processes, one, 4))
        stopping = asyncio.create_task(one.runner.stop(0.0))
        for _ in range(pause):
            await asyncio.sleep(0)
        await stopping
        await one.over()
        assert not one.pids()


async def test_a_refused_connection_is_told_in_few_words(bench: Bench) -> None:
    readiness = {"httpGet": {"port": 8000}, "periodSeconds": 0.05}
    one = bench.start(pod(container(readinessProbe=readiness)))
    await one.until("it failed", lambda: "Unhealthy" in one.reasons())
    address = f"{one.status['podIP']}:8000"
    assert one.message_of("Unhealthy") == (
        f"Readiness probe failed: dial tcp {address}: Connection refused"
    )


async def test_a_stopping_pod_is_not_ready(bench: Bench) -> None:
    script = 'trap "sleep 0.3; exit 0" TERM; echo up; while :; do sleep 0.02; done'
    readiness = {"exec": {"command": ["true"]}, "periodSeconds": 0.05}
    one = bench.start(pod(container(script, readinessProbe=readiness)))
    await one.until("it is ready", lambda: is_ready(one))
    stopping = asyncio.create_task(one.runner.stop(60.0))
    await one.until("it is unready", lambda: not is_ready(one))
    await stopping
    await one.over()
