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
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from terrace.local import audit, certificates, control_plane, logs, processes
from terrace.local.addresses import AddressBlock
from terrace.local.api_client import ApiClient
from terrace.local.control_plane import (
    NODE,
    NODE_NAME,
    Layout,
    command_line,
    components,
    control_plane_address,
)
from terrace.local.errors import ComponentError, LocalClusterError
from terrace.local.kubelets import components as kubelets
from terrace.local.kubelets import namespaces, nodes, rbac
from terrace.local.kubelets.network import NodeNetwork, node_names
from terrace.local.state import ClusterFolder, ClusterState, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_READY_TIMEOUT_S = 180.0
"""Of each component. One that died is noticed at once: this is for machines that are too busy."""
_POLL_S = 0.05
_DEFAULT_ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"
_PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "StorageClass": "storageclasses",
}
_NOT_NOW = (0, http.HTTPStatus.TOO_MANY_REQUESTS)
"""No answer, or one to ask again later."""
_NODE_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


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
        new = {name for name in components(state.options) if not self._is_alive(name)}
        for name in components(state.options):
            if name in new:
                self._spawn(name, layout, held_fd)
            if name in new and name == kubelets.NAMESPACES:
                nodes.furnish(layout, self._state.processes[name], self._environment())
            if name == control_plane.API_SERVER:
                self._wait(name, "ready", self._client("apiserver").is_ready)
                self._bootstrap()
                if state.options.kubelets:
                    images = nodes.images_of(self._state, self._folder.node)
                    images.load_pause(binaries["pause"], self._folder.node)
        self.wait(dict.fromkeys(new, began))

    def wait(self, since: Mapping[str, dt.datetime] = MappingProxyType({})) -> None:
        """Wait until all of it works; what is in ``since`` must have said so after that."""
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
        is_ready = _kubelet_is_ready if self._state.options.kubelets else _host_is_ready
        for name, node in self._nodes().items():
            self._wait(name, "ready", partial(is_ready, api, node, since.get(name)))
        if self._state.options.kubelets:
            for name, condition in nodes.health_checks(self._state):
                self._wait(name, "ready", condition)

    def _nodes(self) -> dict[str, str]:
        """Component -> the Node that it registers."""
        if self._state.options.nodes:
            return {NODE: NODE_NAME}
        count = self._state.options.kubelets
        return dict(zip(kubelets.kubelet_names(count), node_names(count), strict=True))

    def _bootstrap(self) -> None:
        """What the node may do and the StorageClass; before the node starts."""
        # Here, because it brings a Kubernetes client that no other command needs.
        from terrace.local.node_rbac import bootstrap_manifests  # noqa: PLC0415 - as said above

        api = self._client("apiserver")
        manifests = bootstrap_manifests()
        if self._state.options.kubelets:
            manifests += rbac.bootstrap_manifests()
        for manifest in manifests:
            self._put(api, manifest)

    def _put(self, api: ApiClient, manifest: dict[str, Any]) -> None:
        """Apply it as soon as the server takes it; a busy one may not answer in time."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        path = f"/apis/{manifest['apiVersion']}/{_PLURALS[kind]}/{name}"

        def is_there() -> bool:
            status, answer = api.apply(path, manifest)
            if status in _NOT_NOW or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                return False
            if status not in (http.HTTPStatus.OK, http.HTTPStatus.CREATED):
                raise LocalClusterError(f"the API server refused {kind} {name}: {answer}")
            return True

        self._wait(control_plane.API_SERVER, f"able to take {kind} {name}", is_there)

    def _write_files(self, layout: Layout) -> None:
        pki = self._folder.pki
        certificates.write_pki(pki, _leaves(layout), dt.datetime.now(dt.UTC))
        context = f"terrace-{self._state.name}"
        count = layout.options.kubelets
        node_users = kubelets.users(count) if count else ("node",)
        users = {
            "admin": self._folder.kubeconfig,
            **{
                user: self._folder.kubeconfigs / f"{user}.conf"
                for user in ("controller-manager", "scheduler", *node_users)
            },
        }
        for user, path in users.items():
            certificates.write_kubeconfig(path, pki, layout.server, user, context)
        write_private(self._folder.audit_policy, audit.policy())
        if count:
            nodes.write_files(layout)

    def _spawn(self, name: str, layout: Layout, held_fd: int | None) -> None:
        log = self._folder.log(name)
        logs.start_afresh(log)
        argv = command_line(name, layout)
        try:
            if name in _inside(layout):
                outer = self._state.processes[kubelets.NAMESPACES]
                record = namespaces.spawn(outer, argv, log, self._environment())
            else:
                record = processes.spawn(argv, log, self._environment(), held_fd)
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

    def _environment(self) -> dict[str, str]:
        """Our own environment, marked, and with the cluster's addresses exempt from any proxy."""
        env = {**os.environ, processes.MARKER: str(self._folder.root)}
        exempt = ["127.0.0.0/8", "localhost"]
        if self._state.options.kubelets:
            exempt.append(NodeNetwork(self._state.block).whole)
        for name in ("NO_PROXY", "no_proxy"):
            env[name] = ",".join(filter(None, [env.get(name), *exempt]))
        return env

    def _client(self, port: str) -> ApiClient:
        address = control_plane_address(self._state.options, AddressBlock(self._state.block))
        return ApiClient(address, self._state.ports[port], self._folder.pki)


def _is_ok(client: ApiClient, path: str) -> bool:
    return client.get(path)[0] == http.HTTPStatus.OK


def _host_is_ready(api: ApiClient, name: str, since: dt.datetime | None) -> bool:
    """Ready, and by a heartbeat after ``since``: the stored object may be of an earlier run."""
    if _ready_heartbeat(api, name) is None:
        return False
    if since is None:
        return True
    status, lease = api.get(f"{_NODE_LEASES}/{name}")
    renewed = lease.get("spec", {}).get("renewTime") if status == http.HTTPStatus.OK else None
    return renewed is not None and dt.datetime.fromisoformat(renewed) >= since


def _kubelet_is_ready(api: ApiClient, name: str, since: dt.datetime | None) -> bool:
    """The same of a kubelet, which writes its status at once and its first Lease much later."""
    heartbeat = _ready_heartbeat(api, name)
    if heartbeat is None or since is None:
        return heartbeat is not None
    return heartbeat >= since.replace(microsecond=0)  # it is written in whole seconds


def _ready_heartbeat(api: ApiClient, name: str) -> dt.datetime | None:
    """When the Node last said that it is Ready, or None where it does not."""
    status, node = api.get(f"/api/v1/nodes/{name}")
    if status != http.HTTPStatus.OK:
        return None
    for item in node.get("status", {}).get("conditions", []):
        if item["type"] == "Ready" and item["status"] == "True":
            return dt.datetime.fromisoformat(item["lastHeartbeatTime"])
    return None


def _leaves(layout: Layout) -> tuple[certificates.Leaf, ...]:
    if not layout.options.kubelets:
        return certificates.leaves(NODE_NAME, layout.block.node, layout.address)
    network = NodeNetwork(layout.block.number)
    return (
        *certificates.control_plane_leaves(layout.address, network.api_service),
        *kubelets.leaves(network, layout.options.kubelets),
    )


def _inside(layout: Layout) -> set[str]:
    """The components that run in namespaces of the cluster."""
    if not layout.options.kubelets:
        return set()
    return set(components(layout.options)) - {kubelets.NAMESPACES}
