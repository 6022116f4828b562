"""Gateway, runtime and operator as processes: every line of their stderr is one JSON object."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
import psutil
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.engine_builders import DEMO, runtime_config
from support.gateway import PRIVATE_KEY, chat, raw_model, raw_pod
from support.replicas import SERVE, pod_folder, serving
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from terrace_runtime.contract import RuntimeConfig

SECRET_QUESTION = "What is a pod of whales"
STARTING_S = 60
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def lines_of(log: Path) -> list[dict[str, Any]]:
    """Every line, each checked to be a log line."""
    found = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
    for line in found:
        assert _MOMENT.fullmatch(line["ts"]), line
        assert line["level"] in {"debug", "info", "warning", "error", "critical"}
        assert line["component"] in {"runtime", "engine", "gateway", "operator"}
        assert isinstance(line["event"], str)
    return found


def about(lines: list[dict[str, Any]], request_id: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("request_id") == request_id]


def a_replica(pod: Path) -> RuntimeConfig:
    """The demo model, trusting the gateway's key."""
    (pod / "models" / "chat.gguf").write_bytes((DEMO / "chat.gguf").read_bytes())
    public = Ed25519PrivateKey.from_private_bytes(PRIVATE_KEY).public_key().public_bytes_raw()
    return runtime_config(
        namespace="default",
        model="demo",
        served_names=("demo",),
        model_path="/models/chat.gguf",
        trust_key=base64.urlsafe_b64encode(public).rstrip(b"=").decode(),
    )


@asynccontextmanager
async def api_server(replica_port: int) -> AsyncIterator[int]:
    """Lists one model with one ready pod; watches stay open and silent."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.Event().wait()
        is_pods = request.path.endswith("/pods")
        items = [raw_pod(port=replica_port) if is_pods else raw_model()]
        return web.Response(
            body=orjson.dumps({"metadata": {"resourceVersion": "1"}, "items": items})
        )

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def kubeconfig(folder: Path, port: int) -> Path:
    """Of a cluster at this port of the loopback."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def port_of(process: subprocess.Popen[bytes]) -> int:
    """Where it listens; 0: nowhere yet."""
    assert process.poll() is None
    found = psutil.Process(process.pid).net_connections("tcp")
    return next((one.laddr.port for one in found if one.status == psutil.CONN_LISTEN), 0)


def started(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out)


@asynccontextmanager
async def gateway_process(root: Path, api_port: int) -> AsyncIterator[str]:
    trust = root / "etc/terrace/trust"
    trust.mkdir(parents=True)
    (trust / "ed25519").write_bytes(base64.urlsafe_b64encode(PRIVATE_KEY).rstrip(b"="))
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig(root, api_port)),
        "TERRACE_POD_ROOT": str(root),
    }
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    command = [sys.executable, "-m", "terrace.gateway", "--port", "0"]
    process = started(command, environment, root / "log")
    try:
        async with asyncio.timeout(STARTING_S):
            port = await asyncio.to_thread(
                wait_for, "a port", lambda: port_of(process), STARTING_S, every=0.05
            )
            url = f"http://127.0.0.1:{port}"
            while not await is_ready(url):
                assert process.poll() is None, (root / "log").read_text()
                await asyncio.sleep(0.05)
        yield url
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
        process.wait()


async def is_ready(url: str) -> bool:
    async with httpx2.AsyncClient() as client:
        try:
            return (await client.get(f"{url}/readyz")).status_code == 200
        except httpx2.HTTPError:
            return False


async def test_one_request_is_found_in_both_logs_by_its_id(tmp_path: Path) -> None:
    pod, front = pod_folder(tmp_path / "pod"), tmp_path / "gateway"
    question: Any = [{"role": "user", "content": SECRET_QUESTION}]
    with serving(pod, a_replica(pod)) as replica:
        wait_for("readiness", replica.is_ready, STARTING_S, every=0.05)
        async with (
            api_server(replica.port) as api_port,
            gateway_process(front, api_port) as url,
            httpx2.AsyncClient(base_url=url, timeout=STARTING_S) as client,
        ):
            path = "/v1/chat/completions"
            body = orjson.loads(chat(messages=question, max_tokens=8, temperature=0))
            answer = await client.post(path, json=body, headers={"X-Request-Id": "job-7"})
            assert answer.headers["x-request-id"] == "job-7"
            made = await client.post(path, json=body | {"stream": True})
            odd = await client.post(path, json=body, headers={"X-Request-Id": "a b" * 100})
            unknown = await client.post(path, json=body | {"model": "nobody"})
            listed = await client.get("/v1/models")
            nowhere = await client.get("/v2/" + "x" * 300)
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(60) == 0
    behind, ahead = lines_of(pod / "log"), lines_of(front / "log")

    (at_replica,), (at_gateway,) = about(behind, "job-7"), about(ahead, "job-7")
    assert at_replica["event"] == at_gateway["event"] == "request"
    assert at_replica["status"] == at_gateway["status"] == 200
    assert at_replica["model"] == at_gateway["model"] == "default/demo"
    assert at_gateway["replica"] == "default/demo-cpu-0"
    assert at_replica["duration_ms"] > 0
    usage = answer.json()["usage"]
    assert at_replica["prompt_tokens"] == usage["prompt_tokens"]
    assert at_replica["generated_tokens"] == usage["completion_tokens"] == 8
    assert at_replica["finish"] == answer.json()["choices"][0]["finish_reason"] == "length"
    for reply in (made, odd):
        own = reply.headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", own)
        assert about(behind, own)[0]["status"] == about(ahead, own)[0]["status"] == 200
    (streamed,) = about(ahead, made.headers["x-request-id"])
    assert streamed["stream"] is True
    (refused,) = about(ahead, unknown.headers["x-request-id"])
    assert (refused["status"], refused["refusal"]) == (404, "model_not_found")
    said = answer.json()["choices"][0]["message"]["content"].strip()
    assert len(said) > 8
    (models,) = about(ahead, listed.headers["x-request-id"])
    assert (models["event"], models["status"], models["path"]) == ("request", 200, "/v1/models")
    (lost,) = about(ahead, nowhere.headers["x-request-id"])
    assert (lost["status"], lost["refusal"], len(lost["path"])) == (404, "not_found", 256)
    for log in (pod / "log", front / "log"):
        assert "whales" not in log.read_text()
        assert said not in log.read_text()


def test_llama_cpp_speaks_json_too(tmp_path: Path) -> None:
    pod = pod_folder(tmp_path / "pod")
    with serving(pod, a_replica(pod), TERRACE_LOG_LEVEL="debug") as replica:
        wait_for("readiness", replica.is_ready, STARTING_S, every=0.05)
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(60) == 0
    told = [line for line in lines_of(pod / "log") if line["logger"] == "llama.cpp"]
    assert len(told) > 20
    assert {line["component"] for line in told} == {"engine"}
    assert any(line["level"] == "info" for line in told)


def test_a_log_that_nobody_reads_holds_no_request_up(tmp_path: Path) -> None:
    pod = pod_folder(tmp_path / "pod")
    (pod / "etc/terrace/runtime.json").write_text(a_replica(pod).model_dump_json())
    environment = {**os.environ, "TERRACE_POD_ROOT": str(pod), "TERRACE_LOG_LEVEL": "debug"}
    with subprocess.Popen(SERVE, env=environment, stderr=subprocess.PIPE) as process:
        try:
            # Up to its port, and no further.
            url = f"http://127.0.0.1:{told_port(process)}"
            with httpx2.Client(base_url=url, timeout=STARTING_S) as client:
                wait_for("readiness", lambda: answers(client), STARTING_S)
                # Far more than a pipe takes.
                statuses = {client.get(f"/v1/models/{'x' * 200}").status_code for _ in range(400)}
                body = orjson.loads(chat(max_tokens=4))
                answer = client.post("/v1/chat/completions", json=body)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert statuses == {404}
    assert answer.status_code == 200


def told_port(process: subprocess.Popen[bytes]) -> int:
    assert process.stderr is not None
    lines = (json.loads(line) for line in process.stderr)
    return next(int(line["port"]) for line in lines if line["event"] == "listening")


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.HTTPError:
        return False


def test_a_person_at_a_terminal_or_who_asks_gets_text(tmp_path: Path) -> None:
    pod = pod_folder(tmp_path / "pod")
    command = [sys.executable, "-m", "terrace_runtime", "serve", "--log-format", "text"]
    ended = subprocess.run(
        command,
        env={**os.environ, "TERRACE_POD_ROOT": str(pod)},
        capture_output=True,
        text=True,
        timeout=STARTING_S,
        check=False,
    )
    assert re.fullmatch(r"\S+Z CRITICAL runtime: \S+ cannot be read: .*\n", ended.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_operator_speaks_json_while_it_finds_no_cluster(
    tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    with socket.socket() as nobody:
        # Bound, so that nobody else can listen there meanwhile.
        nobody.bind(("127.0.0.1", 0))
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig(tmp_path, int(nobody.getsockname()[1]))),
            "TERRACE_METRICS_PORT": "0",
        }
        environment.pop("KUBERNETES_SERVICE_HOST", None)
        process = started([sys.executable, "-m", "terrace.controller"], environment, log)
        try:
            wait_for("a first line", lambda: log.read_text().endswith("\n"), STARTING_S)
            process.send_signal(number)
            process.wait(60)
        finally:
            process.kill()
            process.wait()
    assert {line["component"] for line in lines_of(log)} == {"operator"}


def test_an_operator_with_bad_settings_says_so_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "none"), "TERRACE_WORKERS": "many"}
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    with (tmp_path / "log").open("wb") as out:
        command = [sys.executable, "-m", "terrace.controller"]
        done = subprocess.run(
            command, env=environment, stdout=out, stderr=out, timeout=STARTING_S, check=False
        )
    assert done.returncode == 2
    (line,) = lines_of(tmp_path / "log")
    assert line["event"] == "cannot start"
