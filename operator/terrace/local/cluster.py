"""A local cluster: bring it up, repair it, look at it, take it down.

Owns: the order of the steps, readiness, what happens when one fails. Does not own: flags
(``control_plane.py``), process handling (``processes.py``), where binaries come from
(``binaries.py``). Next: ``tools.py`` for kubectl and helm against a cluster.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from terrace.local import audit, certificates, control_plane, logs, processes
from terrace.local.addresses import (
    FIRST_BLOCK,
    LAST_BLOCK,
    AddressBlock,
    BlockClaim,
    choose_ports,
    claim_again,
    claim_block,
)
from terrace.local.api_client import ApiClient
from terrace.local.binaries import find_binaries
from terrace.local.control_plane import NODE, NODE_NAME, Layout, command_line, components
from terrace.local.errors import ComponentError, LocalClusterError
from terrace.local.state import (
    ClusterFolder,
    ClusterOptions,
    ClusterState,
    cluster_path,
    forget,
    register,
    write_private,
)
from terrace.local.tools import Tools

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.audit import AuditEvent

_READY_TIMEOUT_S = 60.0
# What stops together. The node goes first, while the API still answers; the API server before
# etcd, because without etcd it waits a minute for its watches.
_STOP_ORDER = (
    (NODE, 10.0),
    (control_plane.API_SERVER, 1.0),
    (control_plane.CONTROLLER_MANAGER, 1.0),
    (control_plane.SCHEDULER, 1.0),
    (control_plane.ETCD, 5.0),
)
Report = Callable[[str], None]


@dataclass(frozen=True)
class ComponentStatus:
    """One process of a cluster, as it is now."""

    name: str
    pid: int | None
    is_alive: bool
    log: Path
    log_bytes: int


@dataclass(frozen=True)
class ClusterStatus:
    """A cluster as it is now."""

    name: str
    folder: Path
    server: str
    is_ready: bool
    components: tuple[ComponentStatus, ...]

    @property
    def is_running(self) -> bool:
        """Whether every process is there."""
        return all(component.is_alive for component in self.components)

    @property
    def is_stopped(self) -> bool:
        """Whether no process is there."""
        return not any(component.is_alive for component in self.components)


class LocalCluster:
    """One cluster by its name. Cheap to make; nothing happens before ``up``."""

    def __init__(
        self,
        name: str = "default",
        *,
        directory: Path | None = None,
        options: ClusterOptions | None = None,
        bin_dir: Path | None = None,
        report: Report | None = None,
    ) -> None:
        self.name = name
        self.folder = ClusterFolder(cluster_path(name, directory))
        self._wanted_options = options
        self._bin_dir = bin_dir
        self._report = report or (lambda _line: None)

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig."""
        return self.folder.kubeconfig

    @property
    def logs_dir(self) -> Path:
        """One log per component."""
        return self.folder.logs

    @property
    def server(self) -> str:
        """URL of the API server."""
        return _server(self._state())

    @property
    def options(self) -> ClusterOptions:
        """How this cluster was made."""
        return self._state().options

    @property
    def tools(self) -> Tools:
        """Run kubectl and helm against this cluster."""
        return Tools(self.folder, find_binaries(("kubectl", "helm"), self._bin_dir, self._report))

    def kubectl(self, *args: str, stdin: str | None = None, timeout_s: float = 60.0) -> str:
        """What kubectl prints; raises CommandError with its stderr when it fails."""
        return self.tools.kubectl(*args, stdin=stdin, timeout_s=timeout_s)

    def apply(self, path: Path) -> str:
        """``kubectl apply`` of a file or a folder."""
        return self.tools.apply(path)

    def install_chart(self, chart: Path, values: Mapping[str, Any], **where: str) -> str:
        """Install or upgrade a chart with helm; ``where``: release, namespace."""
        return self.tools.install_chart(chart, values, **where)

    def audit_events(self) -> list[AuditEvent]:
        """Every request answered so far, oldest first; needs the option ``audit``."""
        if not self.options.audit:
            raise LocalClusterError(f"cluster {self.name!r} was made without the option audit")
        return list(audit.read_events(self.folder.audit_log))

    def api(self) -> ApiClient:
        """A small client with the admin's rights."""
        state = self._state()
        address = AddressBlock(state.block).control_plane
        return ApiClient(address, state.ports["apiserver"], self.folder.pki)

    def up(self) -> bool:
        """Bring the cluster up, or repair it; returns False when all of it ran already.

        If it fails or is interrupted, every process is stopped; data and logs stay.
        """
        with self.folder.locked():
            state = self.folder.load()
            if state is not None and _all_alive(state):
                self._check_options(state)
                self._wait_ready(state)
                self._report("all processes run already")
                return False
            self._refuse_foreign_user()
            binaries = find_binaries(_needed(), self._bin_dir, self._report)
            self.folder.make()
            register(self.name, self.folder.root)
            try:
                self._start(state, binaries)
            except BaseException:
                self._stop()
                raise
            return True

    def down(self, *, keep_data: bool = False) -> bool:
        """Stop every process; delete the folder unless ``keep_data``. False: there was none."""
        if not self.folder.state_file.exists():
            return False
        with self.folder.locked():
            self._stop()
            if not keep_data:
                self._delete()
        return True

    def status(self) -> ClusterStatus:
        """What runs; raises LocalClusterError when there is no such cluster."""
        state = self._state()
        parts = []
        for name in components(state.options):
            record = state.processes.get(name)
            log = self.folder.log(name)
            logs.bound(log)
            parts.append(
                ComponentStatus(
                    name=name,
                    pid=record.pid if record else None,
                    is_alive=record is not None and processes.is_alive(record),
                    log=log,
                    log_bytes=log.stat().st_size if log.exists() else 0,
                )
            )
        is_ready = any(part.is_alive for part in parts) and self.api().is_ready()
        return ClusterStatus(self.name, self.folder.root, _server(state), is_ready, tuple(parts))

    # Starting ---------------------------------------------------------------------------------

    def _start(self, previous: ClusterState | None, binaries: Mapping[str, Path]) -> None:
        if previous is not None and _any_alive(previous):
            self._check_options(previous)
            # The survivors hold the block, unless they are themselves from an earlier repair.
            claim = claim_again(previous.block)
            state = previous
        else:
            claim = self._claim(previous)
            state = self._fresh(claim.block, previous)
        try:
            self._run(state, binaries, claim.holder.fileno() if claim else None)
        finally:
            if claim:
                claim.release()

    def _run(self, state: ClusterState, binaries: Mapping[str, Path], held: int | None) -> None:
        block = AddressBlock(state.block)
        layout = Layout(self.folder, block, state.ports, state.options, binaries)
        self.folder.save(state)
        self._write_files(layout)
        for name in components(state.options):
            state = self._start_component(name, layout, state, held)
            if name == control_plane.API_SERVER:
                self._wait_api(state)
        self._wait_ready(state)

    def _claim(self, previous: ClusterState | None) -> BlockClaim:
        if previous is not None:
            return claim_block(previous.block)
        count = LAST_BLOCK - FIRST_BLOCK + 1
        return claim_block(FIRST_BLOCK + zlib.crc32(os.fsencode(self.folder.root)) % count)

    def _fresh(self, block: AddressBlock, previous: ClusterState | None) -> ClusterState:
        options = self._wanted_options or (previous.options if previous else ClusterOptions())
        wanted_ports = previous.ports if previous else {}
        ports = choose_ports(block.control_plane, control_plane.PORTS, wanted_ports)
        return ClusterState(name=self.name, options=options, block=block.number, ports=ports)

    def _write_files(self, layout: Layout) -> None:
        pki = self.folder.pki
        wanted = certificates.leaves(NODE_NAME, layout.block.node, layout.block.control_plane)
        certificates.write_pki(pki, wanted, dt.datetime.now(dt.UTC))
        context = f"terrace-{self.name}"
        for user in ("controller-manager", "scheduler", "node"):
            path = self.folder.kubeconfigs / f"{user}.conf"
            certificates.write_kubeconfig(path, pki, layout.server, user, context)
        certificates.write_kubeconfig(self.kubeconfig, pki, layout.server, "admin", context)
        write_private(self.folder.audit_policy, audit.policy())

    def _start_component(
        self, name: str, layout: Layout, state: ClusterState, held: int | None
    ) -> ClusterState:
        record = state.processes.get(name)
        if record is not None and processes.is_alive(record):
            return state
        log = self.folder.log(name)
        logs.start_afresh(log)
        env = _environment(self.folder.root)
        record = processes.spawn(command_line(name, layout), log, env, held)
        self._report(f"{name} started (pid {record.pid})")
        state = state.model_copy(update={"processes": {**state.processes, name: record}})
        self.folder.save(state)
        return state

    # Waiting ----------------------------------------------------------------------------------

    def _wait_api(self, state: ClusterState) -> None:
        api = self.api()
        self._wait(state, control_plane.API_SERVER, "ready", api.is_ready)

    def _wait_ready(self, state: ClusterState) -> None:
        api = self.api()
        self._wait_api(state)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait(
            state,
            control_plane.CONTROLLER_MANAGER,
            "working",
            lambda: api.get(account)[0] == 200,  # noqa: PLR2004 - HTTP OK
        )
        path = f"/apis/storage.k8s.io/v1/storageclasses/{control_plane.STORAGE_CLASS}"
        if api.get(path)[0] != 200:  # noqa: PLR2004 - HTTP OK
            api.apply(path, control_plane.storage_class())
        if state.options.nodes:
            self._wait(state, NODE, "ready", lambda: _node_is_ready(api))

    def _wait(
        self, state: ClusterState, component: str, what: str, condition: Callable[[], bool]
    ) -> None:
        began = time.monotonic()

        def settled() -> bool:
            for name, record in state.processes.items():
                if not processes.is_alive(record):
                    raise ComponentError(name, "ended", self.folder.log(name))
            return condition()

        if not processes.wait_until(settled, _READY_TIMEOUT_S, 0.05):
            raise ComponentError(
                component, f"was not {what} after {_READY_TIMEOUT_S:.0f} s",
                self.folder.log(component),
            )  # fmt: skip
        self._report(f"{component} {what} ({time.monotonic() - began:.1f} s)")

    # Stopping ---------------------------------------------------------------------------------

    def _stop(self) -> None:
        state = self.folder.load()
        if state is not None:
            for name, grace_s in _STOP_ORDER:
                record = state.processes.get(name)
                if record is not None and processes.is_alive(record):
                    processes.stop([record], grace_s)
                    self._report(f"{name} stopped")
        # Pods of a node agent that was killed, and what a killed `up` had not yet recorded.
        processes.stop(processes.left_behind(self.folder.root), 2.0)
        if state is not None:
            self.folder.save(state.model_copy(update={"processes": {}}))

    def _delete(self) -> None:
        for name in sorted(ClusterFolder.owned() - {"lock"}):
            path = self.folder.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.folder.lock_file.unlink(missing_ok=True)
        forget(self.name, self.folder.root)
        with contextlib.suppress(OSError):
            self.folder.root.rmdir()

    # Small things -----------------------------------------------------------------------------

    def _state(self) -> ClusterState:
        state = self.folder.load()
        if state is None:
            raise LocalClusterError(
                f"there is no local cluster {self.name!r} in {self.folder.root}; "
                "make it with `terrace local up`"
            )
        return state

    def _check_options(self, state: ClusterState) -> None:
        if self._wanted_options is not None and self._wanted_options != state.options:
            raise LocalClusterError(
                f"cluster {self.name!r} runs with other options; stop it first with "
                f"`terrace local down --keep-data --name {self.name}`"
            )

    def _refuse_foreign_user(self) -> None:
        owner = self.folder.root.stat().st_uid
        if owner != os.geteuid():
            raise LocalClusterError(
                f"{self.folder.root} belongs to the user with id {owner}; choose another --dir"
            )


def _needed() -> tuple[str, ...]:
    return (*control_plane.components(ClusterOptions(nodes=0)), "kubectl", "helm")


def _server(state: ClusterState) -> str:
    return f"https://{AddressBlock(state.block).control_plane}:{state.ports['apiserver']}"


def _any_alive(state: ClusterState) -> bool:
    return any(processes.is_alive(record) for record in state.processes.values())


def _all_alive(state: ClusterState) -> bool:
    records = [state.processes.get(name) for name in components(state.options)]
    return all(record is not None and processes.is_alive(record) for record in records)


def _node_is_ready(api: ApiClient) -> bool:
    status, node = api.get(f"/api/v1/nodes/{NODE_NAME}")
    if status != 200:  # noqa: PLR2004 - HTTP OK
        return False
    conditions = node.get("status", {}).get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _environment(root: Path) -> dict[str, str]:
    """Our own environment, marked, and with loopback exempt from any proxy."""
    env = dict(os.environ)
    env[processes.MARKER] = str(root)
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, [env.get(name), "127.0.0.0/8,localhost"]))
    return env
