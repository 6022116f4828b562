"""Starting what is missing of a cluster, and waiting until it works.

Owns: the order of the processes and what "ready" means for each. Does not own: flags
(``control_plane.py``), the claim on addresses and what happens when this fails (``cluster.py``).
"""

from __future__ import annotations

import datetime as dt
import http
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from terrace.local import audit, certificates, control_plane, logs, processes
from terrace.local.addresses import AddressBlock
from terrace.local.api_client import ApiClient
from terrace.local.control_plane import NODE, NODE_NAME, Layout, command_line, components
from terrace.local.errors import ComponentError, LocalClusterError
from terrace.local.state import ClusterFolder, ClusterState, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_READY_TIMEOUT_S = 60.0
_POLL_S = 0.05
_DEFAULT_ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"
_PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "StorageClass": "storageclasses",
}
_NODE_LEASE = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE_NAME}"


class Startup:
    """One run of ``up``: brings the state from what is there to everything running."""

    def __init__(
        self, folder: ClusterFolder, state: ClusterState, report: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._state = state
        self._report = report

    def start(self, binaries: Mapping[str, Path], held_fd: int | None) -> None:
        """Start each process that does not run. ``held_fd`` claims the cluster's addresses."""
        # A process that died earlier is replaced below; until then its end is no news.
        alive = {
            name: record
            for name, record in self._state.processes.items()
            if processes.is_alive(record)
        }
        self._state = state = self._state.model_copy(update={"processes": alive})
        block = AddressBlock(state.block)
        layout = Layout(self._folder, block, state.ports, state.options, binaries)
        self._folder.save(state)
        self._write_files(layout)
        began = dt.datetime.now(dt.UTC)
        is_new_node = not self._is_alive(NODE)
        for name in components(state.options):
            if not self._is_alive(name):
                self._spawn(name, layout, held_fd)
            if name == control_plane.API_SERVER:
                self._wait(name, "ready", self._client("apiserver").is_ready)
                self._bootstrap()
        self.wait(began if is_new_node else None)

    def wait(self, node_since: dt.datetime | None = None) -> None:
        """Wait until all of it works; the node must have said so after ``node_since``."""
        api = self._client("apiserver")
        self._wait(control_plane.API_SERVER, "ready", api.is_ready)
        for name, port in (
            (control_plane.CONTROLLER_MANAGER, "controller-manager"),
            (control_plane.SCHEDULER, "scheduler"),
        ):
            self._wait(name, "healthy", partial(_is_ok, self._client(port), "/healthz"))
        self._wait(
            control_plane.CONTROLLER_MANAGER, "working", lambda: _is_ok(api, _DEFAULT_ACCOUNT)
        )
        if self._state.options.nodes:
            self._wait(NODE, "ready", lambda: _node_is_ready(api, node_since))

    def _bootstrap(self) -> None:
        """What the node may do and the StorageClass; before the node starts."""
        # Here, because it brings a Kubernetes client that no other command needs.
        from terrace.local.node_rbac import bootstrap_manifests  # noqa: PLC0415 - as said above

        api = self._client("apiserver")
        for manifest in bootstrap_manifests():
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            status, answer = api.apply(
                f"/apis/{manifest['apiVersion']}/{_PLURALS[kind]}/{name}", manifest
            )
            if status not in (http.HTTPStatus.OK, http.HTTPStatus.CREATED):
                raise LocalClusterError(f"the API server refused {kind} {name}: {answer}")

    def _write_files(self, layout: Layout) -> None:
        pki = self._folder.pki
        wanted = certificates.leaves(NODE_NAME, layout.block.node, layout.block.control_plane)
        certificates.write_pki(pki, wanted, dt.datetime.now(dt.UTC))
        context = f"terrace-{self._state.name}"
        users = {
            "admin": self._folder.kubeconfig,
            **{
                user: self._folder.kubeconfigs / f"{user}.conf"
                for user in ("controller-manager", "scheduler", "node")
            },
        }
        for user, path in users.items():
            certificates.write_kubeconfig(path, pki, layout.server, user, context)
        write_private(self._folder.audit_policy, audit.policy())

    def _spawn(self, name: str, layout: Layout, held_fd: int | None) -> None:
        log = self._folder.log(name)
        logs.start_afresh(log)
        argv = command_line(name, layout)
        try:
            record = processes.spawn(argv, log, _environment(self._folder.root), held_fd)
        except OSError as error:
            raise LocalClusterError(f"{name} cannot be started from {argv[0]}: {error}") from error
        started = {**self._state.processes, name: record}
        self._state = self._state.model_copy(update={"processes": started})
        self._folder.save(self._state)
        self._report(f"{name} started (pid {record.pid})")

    def _wait(self, component: str, what: str, condition: Callable[[], bool]) -> None:
        began = time.monotonic()
        log = self._folder.log(component)

        def is_settled() -> bool:
            for name, record in self._state.processes.items():
                if not processes.is_alive(record):
                    raise ComponentError(name, "ended", self._folder.log(name))
            return condition()

        if not processes.wait_until(is_settled, _READY_TIMEOUT_S, _POLL_S):
            raise ComponentError(component, f"was not {what} after {_READY_TIMEOUT_S:.0f} s", log)
        elapsed = time.monotonic() - began
        if elapsed > _POLL_S:  # the rest was so already, and is not worth a line
            self._report(f"{component} {what} ({elapsed:.1f} s)")

    def _is_alive(self, name: str) -> bool:
        record = self._state.processes.get(name)
        return record is not None and processes.is_alive(record)

    def _client(self, port: str) -> ApiClient:
        address = AddressBlock(self._state.block).control_plane
        return ApiClient(address, self._state.ports[port], self._folder.pki)


def _is_ok(client: ApiClient, path: str) -> bool:
    return client.get(path)[0] == http.HTTPStatus.OK


def _node_is_ready(api: ApiClient, since: dt.datetime | None) -> bool:
    """Ready, and by a heartbeat after ``since``: the stored object may be of an earlier run."""
    status, node = api.get(f"/api/v1/nodes/{NODE_NAME}")
    if status != http.HTTPStatus.OK:
        return False
    conditions = node.get("status", {}).get("conditions", [])
    if not any(item["type"] == "Ready" and item["status"] == "True" for item in conditions):
        return False
    if since is None:
        return True
    status, lease = api.get(_NODE_LEASE)
    renewed = lease.get("spec", {}).get("renewTime") if status == http.HTTPStatus.OK else None
    return renewed is not None and dt.datetime.fromisoformat(renewed) >= since


def _environment(root: Path) -> dict[str, str]:
    """Our own environment, marked, and with loopback exempt from any proxy."""
    env = dict(os.environ)
    env[processes.MARKER] = str(root)
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, [env.get(name), "127.0.0.0/8,localhost"]))
    return env
