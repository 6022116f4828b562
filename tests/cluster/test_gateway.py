"""The gateway against a real API server: its watch, and the program as a pod would run it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import kube_config

from cluster.controller_operator import own_endpoint
from support.gateway import PRIVATE_KEY, raw_pod, until
from support.waiting import wait_for
from terrace.api.names import API_VERSION, Key
from terrace.gateway.registry import Registry
from terrace.gateway.watcher import Watcher
from terrace.local.binaries import find_binaries
from terrace.local.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from terrace.local.cluster import LocalCluster

ROOT = Path(__file__).parents[2]
NAMESPACE = RELEASE = "gateway-test"
DEMO = Key(NAMESPACE, "demo")


@pytest.fixture(scope="module")
def api(control_plane: LocalCluster) -> Iterator[LocalCluster]:
    """Both kinds and a namespace of our own with its service account."""
    control_plane.kubectl("apply", "-f", str(ROOT / "crds"))
    established = ("wait", "--for=condition=Established", "-f", str(ROOT / "crds"))
    control_plane.kubectl(*established, "--timeout=60s", timeout_s=80)
    wait_for("the kind is served", lambda: is_served(control_plane))
    control_plane.kubectl("create", "namespace", NAMESPACE)

    def account() -> str:
        found = ("get", "serviceaccount", "default", "-n", NAMESPACE, "--ignore-not-found")
        return control_plane.kubectl(*found)

    wait_for("the namespace's service account", account)
    yield control_plane
    control_plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def is_served(control_plane: LocalCluster) -> bool:
    """A kind is established a moment before the server serves it."""
    try:
        control_plane.kubectl("get", "inferencemodels.terrace.dev", "-A")
    except CommandError:
        return False
    return True


def put(api: LocalCluster, manifest: dict[str, Any], status: dict[str, Any] | None = None) -> None:
    """Apply an object and its status."""
    api.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(manifest))
    if status:
        which = (manifest["kind"], manifest["metadata"]["name"])
        patch = json.dumps({"status": status})
        api.kubectl(
            "patch", *which, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", patch
        )


def put_model(api: LocalCluster, name: str = "demo", served: str = "demo") -> None:
    spec = {"poolRef": {"name": "default"}, "source": {"uri": "demo://chat"}}
    kind = {"apiVersion": API_VERSION, "kind": "InferenceModel"}
    put(api, {**kind, "metadata": {"name": name}, "spec": spec}, {"servedNames": [served]})


def put_pod(api: LocalCluster, name: str = "demo-cpu-0", port: int = 8000, **changes: Any) -> None:
    """A pod that no node runs; its status is what a kubelet would write."""
    pod = raw_pod(name, port=port, **changes)
    del pod["metadata"]["namespace"], pod["metadata"]["uid"]
    pod["spec"]["containers"][0]["image"] = "none"
    # No scheduler looks at it: it stays as it is written.
    pod["spec"]["schedulerName"] = "nobody"
    put(api, {"apiVersion": "v1", "kind": "Pod", **pod}, pod["status"])


def delete(api: LocalCluster, kind: str, *names: str) -> None:
    api.kubectl("delete", kind, *names, "-n", NAMESPACE, "--wait=true", "--force")


@dataclass
class Wire:
    """A TCP relay in front of the API server that a test can cut."""

    target: tuple[str, int]
    connected: bool = True
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.connected:
            writer.transport.abort()
            return
        there_reader, there = await asyncio.open_connection(*self.target)
        if not self.connected:  # Since we looked.
            writer.transport.abort()
            there.transport.abort()
            return
        self.writers |= {writer, there}
        await asyncio.gather(_pump(reader, there), _pump(there_reader, writer))

    def cut(self) -> None:
        self.connected = False
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def watching(api: LocalCluster) -> AsyncIterator[tuple[Watcher, Registry, Wire]]:
    configuration = Configuration()
    await kube_config.load_kube_config(str(api.kubeconfig), client_configuration=configuration)
    server = urlsplit(configuration.host)
    wire = Wire((server.hostname or "", server.port or 443))
    relay = await asyncio.start_server(wire.serve, server.hostname, 0)  # its certificate fits
    port = relay.sockets[0].getsockname()[1]
    configuration.host = f"https://{server.hostname}:{port}"
    registry = Registry()
    async with ApiClient(configuration) as client:
        watcher = Watcher(client, registry, [NAMESPACE], random.Random(1))
        task = asyncio.create_task(watcher.run())
        try:
            await until(lambda: not watcher.not_ready())
            yield watcher, registry, wire
        finally:
            task.cancel()
            await asyncio.wait({task})
            wire.cut()
            relay.close()


async def call(function: Any, *args: Any, **named: Any) -> None:
    """kubectl blocks; the watch must not."""
    await asyncio.to_thread(function, *args, **named)


async def test_models_and_pods_appear_change_and_vanish(api: LocalCluster) -> None:
    async with watching(api) as (_, registry, _):
        assert registry.models() == []
        await call(put_model, api)
        await until(lambda: registry.resolve("demo"))
        await call(put_pod, api)
        await until(lambda: registry.endpoints(DEMO))
        assert registry.endpoints(DEMO)[0].url == "http://127.0.0.1:8000"
        await call(put_pod, api, ready=False)
        await until(lambda: not registry.endpoints(DEMO))
        await call(put_model, api, served="renamed")
        await until(lambda: registry.resolve("renamed") and not registry.resolve("demo"))
        await call(delete, api, "im", "demo")
        await until(lambda: not registry.models())
        await call(delete, api, "pod", "demo-cpu-0")


async def test_what_happens_while_the_watch_is_cut_is_caught_up_with(api: LocalCluster) -> None:
    await call(put_model, api)
    await call(put_model, api, "other", "other")
    await call(put_pod, api)
    async with watching(api) as (watcher, registry, wire):
        await until(lambda: len(registry.models()) == 2 and registry.endpoints(DEMO))
        wire.cut()
        await call(delete, api, "im", "other")
        await call(delete, api, "pod", "demo-cpu-0")
        await call(put_model, api, "new", "new")
        assert len(registry.models()) == 2  # the last view stays
        assert watcher.not_ready() == ""
        wire.connected = True
        await until(lambda: registry.resolve("new"))
        await until(lambda: not registry.resolve("other") and not registry.endpoints(DEMO))
    await call(delete, api, "im", "demo", "new")


async def test_a_version_that_is_too_old_leads_to_a_new_list(api: LocalCluster) -> None:
    await call(put_model, api)
    await call(put_pod, api)
    async with watching(api) as (watcher, registry, wire):
        await until(lambda: registry.endpoints(DEMO))
        wire.cut()
        await call(delete, api, "pod", "demo-cpu-0")
        for scope in watcher._scopes:
            scope.version = "1"  # long compacted: the real server answers 410
        wire.connected = True
        await until(lambda: not registry.endpoints(DEMO))
        await until(lambda: all(scope.version != "1" for scope in watcher._scopes))
        assert registry.resolve("demo")
    await call(delete, api, "im", "demo")


@dataclass
class Program:
    """``python -m terrace.gateway`` with the files and the environment of a pod."""

    process: subprocess.Popen[bytes]
    url: str

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", timeout=60)

    def get_as_it_is_told_to_end(self, path: str) -> int:
        """Status of the answer to a request that is there when SIGTERM is: both find it stopped.

        It listens for a few seconds more, which may be over by the time at which we ask.
        """
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        with closing(connection):
            self.process.send_signal(signal.SIGSTOP)
            self.process.terminate()
            connection.request("GET", path)
            self.process.send_signal(signal.SIGCONT)
            return connection.getresponse().status

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False


@pytest.fixture(scope="module")
def pod_root(api: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart's service account with the chart's roles, mounted as in a pod."""
    helm = find_binaries(["helm"], None, print)["helm"]
    command = [str(helm), "template", RELEASE, str(ROOT / "charts/terrace"), "-n", NAMESPACE]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    manifests = [m for m in yaml.safe_load_all(rendered) if m and m["kind"] in wanted]
    api.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    root = tmp_path_factory.mktemp("pod")
    account = root / "var/run/secrets/kubernetes.io/serviceaccount"
    account.mkdir(parents=True)
    token = api.kubectl("create", "token", f"{RELEASE}-gateway", "-n", NAMESPACE).strip()
    (account / "token").write_text(token)
    kubeconfig = yaml.safe_load(api.kubeconfig.read_text())["clusters"][0]["cluster"]
    (account / "ca.crt").write_bytes(
        base64.b64decode(kubeconfig["certificate-authority-data"])
        if "certificate-authority-data" in kubeconfig
        else (api.kubeconfig.parent / kubeconfig["certificate-authority"]).read_bytes()
    )
    trust = root / "etc/terrace/trust"
    trust.mkdir(parents=True)
    (trust / "ed25519").write_bytes(base64.urlsafe_b64encode(PRIVATE_KEY).rstrip(b"="))
    return root


@contextmanager
def program(api: LocalCluster, pod_root: Path, *args: str) -> Iterator[Program]:
    host, port = own_endpoint(api)
    server = urlsplit(api.server)
    environment = {
        **os.environ,
        "KUBERNETES_SERVICE_HOST": server.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(server.port),
        "TERRACE_POD_ROOT": str(pod_root),
        "TERRACE_WATCH_NAMESPACES": "",
    }
    command = [sys.executable, "-m", "terrace.gateway", f"--host={host}", f"--port={port}", *args]
    with (
        (pod_root / "log").open("ab") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield Program(process, f"http://{host}:{port}")
        finally:
            process.kill()


def test_the_program_serves_with_the_charts_rights_and_drains_on_sigterm(
    api: LocalCluster, pod_root: Path
) -> None:
    put_model(api)
    with program(api, pod_root) as running:
        wait_for("readiness", running.is_ready)
        listed = running.get("/v1/models").json()["data"]
        assert "demo" in [each["id"] for each in listed]  # other tests have models of their own
        body = {"model": "demo", "messages": []}
        refused = httpx2.post(f"{running.url}/v1/chat/completions", json=body, timeout=60)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_not_ready"
        assert running.get_as_it_is_told_to_end("/readyz") == 503
        assert running.process.wait(60) == 0
    delete(api, "im", "demo")


def test_after_a_kill_the_next_program_knows_everything_again(
    api: LocalCluster, pod_root: Path
) -> None:
    put_model(api)
    with program(api, pod_root) as first:
        wait_for("readiness", first.is_ready)
        first.process.kill()
    with program(api, pod_root) as second:
        wait_for("readiness", second.is_ready)
        assert second.get("/v1/models/demo").status_code == 200
    delete(api, "im", "demo")


@pytest.mark.parametrize(
    ("verb", "resource"),
    [("get", "secrets"), ("list", "secrets"), ("create", "pods"), ("patch", "inferencemodels")],
)
def test_the_gateway_may_not(api: LocalCluster, pod_root: Path, verb: str, resource: str) -> None:
    account = f"system:serviceaccount:{NAMESPACE}:{RELEASE}-gateway"
    command = api.kubectl_command("auth", "can-i", verb, resource, "-A", f"--as={account}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "no"


def test_without_its_key_the_program_says_so_and_ends(
    api: LocalCluster, pod_root: Path, tmp_path: Path
) -> None:
    with program(api, tmp_path) as running:
        assert running.process.wait(60) == 2
    assert "etc/terrace/trust/ed25519" in (tmp_path / "log").read_text()
