"""A local cluster: bring it up, repair it, look at it, take it down.

Owns: what each of these means for its state, and that a failed ``up`` leaves nothing running.
Does not own: starting (``startup.py``), stopping (``shutdown.py``), where programs come from
(``binaries.py``). Next: ``startup.py``; ``tools.py`` for kubectl and helm against a cluster.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from terrace.local import audit, control_plane, logs, processes, shutdown
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
from terrace.local.control_plane import components, control_plane_address
from terrace.local.errors import LocalClusterError
from terrace.local.kubelets import components as kubelets
from terrace.local.kubelets import namespaces, nodes
from terrace.local.kubelets.network import CONTROL_PLANE_PORTS, NodeNetwork
from terrace.local.startup import Startup
from terrace.local.state import (
    ClusterFolder,
    ClusterOptions,
    ClusterState,
    cluster_path,
    register,
)
from terrace.local.tools import Tools

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.audit import AuditEvent

_PROGRAMS = (*components(ClusterOptions(nodes=0)), "kubectl", "helm")
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
        images: Path | None = None,
        bin_dir: Path | None = None,
        report: Report | None = None,
    ) -> None:
        self.name = name
        self.folder = ClusterFolder(cluster_path(name, directory))
        if images is not None:  # the one option that many callers set on its own
            options = (options or ClusterOptions()).model_copy(update={"images": str(images)})
        self._wanted_options = options
        self._given_bin_dir = bin_dir
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
    def bin_dir(self) -> Path:
        """Where this cluster's kubectl lies."""
        return self._binaries("kubectl")["kubectl"].parent

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
        return Tools(self.folder, self._binaries("kubectl", "helm"))

    def kubectl(self, *args: str, stdin: str | None = None, timeout_s: float = 60.0) -> str:
        """What kubectl prints; raises CommandError with its stderr when it fails."""
        return self.tools.kubectl(*args, stdin=stdin, timeout_s=timeout_s)

    def kubectl_command(self, *args: str) -> list[str]:
        """An argv for callers that run kubectl themselves, to read a watch for instance."""
        return self.tools.kubectl_command(*args)

    def apply(self, path: Path) -> str:
        """``kubectl apply`` of a file or a folder."""
        return self.tools.apply(path)

    def install_chart(
        self, chart: Path, values: Mapping[str, Any] | None = None, **where: str
    ) -> str:
        """Install or upgrade a chart with helm; ``where``: release, namespace."""
        return self.tools.install_chart(chart, values or {}, **where)

    def audit_events(self) -> list[AuditEvent]:
        """Every request answered so far, oldest first; needs the option ``audit``."""
        if not self.options.audit:
            raise LocalClusterError(f"cluster {self.name!r} was made without the option audit")
        return list(audit.read_events(self.folder.audit_log))

    def api(self) -> ApiClient:
        """A small client with the admin's rights."""
        state = self._state()
        address = control_plane_address(state.options, AddressBlock(state.block))
        return ApiClient(address, state.ports["apiserver"], self.folder.pki)

    def load_images(self, archives: Sequence[Path]) -> None:
        """Import OCI archives into every node that lacks them; they stay until ``down``."""
        self._state()  # where there is no cluster, its folder shall not appear
        with self.folder.locked():
            images = nodes.images_of(self._state(), self.folder.node)
            images.load([archive.absolute() for archive in archives], self._report)

    def up(self) -> bool:
        """Bring the cluster up, or repair it; returns False when all of it ran already.

        If it fails or is interrupted, every process is stopped; data and logs stay.
        """
        with self.folder.locked():
            try:
                return self._up()
            finally:
                # Refused before anything was made: take the lock file back out of the folder.
                if not self.folder.state_file.exists():
                    self.folder.remove_if_empty()

    def _up(self) -> bool:
        self._refuse_foreign_user()
        state = self.folder.load()
        if state is not None and _any_alive(state):
            self._check_options(state)
            if _all_alive(state):
                Startup(self.folder, state, self._report).wait()
                return False
        self.folder.check()
        options = self._options(state)
        if state is not None and bool(state.options.kubelets) != bool(options.kubelets):
            raise LocalClusterError(
                f"cluster {self.name!r} keeps data made with another kind of node, whose addresses "
                f"would not do; delete it with `terrace local down --name {self.name}`"
            )
        if options.kubelets:
            nodes.refuse_if_impossible(self.folder.root, options.kubelets)
        if state is not None and _has_lost_its_nodes(state):
            # What ran in their namespaces is ending with them; none of it can be kept.
            shutdown.stop(self.folder, self._report)
            state = self.folder.load()
        binaries = self._binaries(*_PROGRAMS, *(kubelets.PROGRAMS if options.kubelets else ()))
        if options.kubelets:
            binaries = {**binaries, **kubelets.machine_programs()}
        register(self.name, self.folder.root)
        try:
            self.folder.make()
            self._start(state, binaries)
        except BaseException:
            shutdown.stop(self.folder, self._report)
            raise
        return True

    def down(self, *, keep_data: bool = False) -> bool:
        """Stop every process; delete the folder unless ``keep_data``. False: there was none."""
        if not self.folder.state_file.exists():
            return False
        with self.folder.locked():
            shutdown.stop(self.folder, self._report)
            if not keep_data:
                shutdown.delete(self.folder, self.name)
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

    def _start(self, previous: ClusterState | None, binaries: Mapping[str, Path]) -> None:
        if previous is not None and _any_alive(previous):
            # The survivors hold the block, unless they are themselves from an earlier repair.
            state, claim = previous, claim_again(previous.block)
        else:
            claim = self._claim(previous, self._options(previous))
            state = self._fresh(claim.block, previous)
        try:
            held_fd = claim.holder.fileno() if claim else None
            Startup(self.folder, state, self._report).start(binaries, held_fd)
        finally:
            if claim:
                claim.release()

    def _claim(self, previous: ClusterState | None, options: ClusterOptions) -> BlockClaim:
        if previous is not None and options.kubelets:
            return self._claim_same(previous.block)
        if previous is not None:
            return claim_block(previous.block)
        count = LAST_BLOCK - FIRST_BLOCK + 1
        preferred = FIRST_BLOCK + zlib.crc32(os.fsencode(self.folder.root)) % count
        if not options.kubelets:
            return claim_block(preferred)
        return claim_block(preferred, lambda each: namespaces.is_free_here(NodeNetwork(each)))

    def _claim_same(self, block: int) -> BlockClaim:
        """The stored objects hold addresses of the block: another one would not do."""
        network = NodeNetwork(block)
        claim = claim_again(block)
        if claim is not None and not namespaces.is_free_here(network):
            claim.release()
            claim = None
        if claim is None:
            raise LocalClusterError(
                f"the addresses {network.whole} of cluster {self.name!r} are in use by another "
                "cluster or network; stop that, or delete this one with `terrace local down`"
            )
        return claim

    def _fresh(self, block: AddressBlock, previous: ClusterState | None) -> ClusterState:
        options = self._options(previous)
        wanted_ports = previous.ports if previous else {}
        if options.kubelets:
            ports = CONTROL_PLANE_PORTS
        else:
            ports = choose_ports(block.control_plane, control_plane.PORTS, wanted_ports)
        return ClusterState(name=self.name, options=options, block=block.number, ports=ports)

    def _options(self, previous: ClusterState | None) -> ClusterOptions:
        return self._wanted_options or (previous.options if previous else ClusterOptions())

    def _state(self) -> ClusterState:
        state = self.folder.load()
        if state is None:
            raise LocalClusterError(
                f"there is no local cluster {self.name!r} in {self.folder.root}; "
                "make it with `terrace local up`"
            )
        return state

    def _binaries(self, *names: str) -> Mapping[str, Path]:
        return find_binaries(names, self._given_bin_dir, self._report)

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


def _server(state: ClusterState) -> str:
    address = control_plane_address(state.options, AddressBlock(state.block))
    return f"https://{address}:{state.ports['apiserver']}"


def _any_alive(state: ClusterState) -> bool:
    return any(processes.is_alive(record) for record in state.processes.values())


def _has_lost_its_nodes(state: ClusterState) -> bool:
    outer = state.processes.get(kubelets.NAMESPACES)
    return state.options.kubelets > 0 and (outer is None or not processes.is_alive(outer))


def _all_alive(state: ClusterState) -> bool:
    records = [state.processes.get(name) for name in components(state.options)]
    return all(record is not None and processes.is_alive(record) for record in records)
