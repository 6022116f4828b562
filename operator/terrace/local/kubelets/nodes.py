"""Real nodes coming up, and coming down.

Owns: what has to be there before their first process starts, what "ready" means for each, and
ending their pods. Does not own: the order of all processes (``terrace.local.startup`` and
``terrace.local.shutdown``).
"""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from terrace.local import logs, processes
from terrace.local.errors import LocalClusterError
from terrace.local.kubelets import cgroups, components, janitor, namespaces, probe
from terrace.local.kubelets.images import NodeImages
from terrace.local.kubelets.network import NodeNetwork, node_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from terrace.local.control_plane import Layout
    from terrace.local.state import ClusterState, ProcessRecord

_POD_GRACE_S = 10.0
_CGROUP_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 5.0


def refuse_if_impossible(root: Path, count: int) -> None:
    """Raise LocalClusterError where this machine, or that folder, cannot hold so many nodes."""
    why = probe.why_not() or hidden_inside(root.resolve()) or probe.short_of_watchers(count)
    if why:
        raise LocalClusterError(why)


def hidden_inside(root: Path) -> str | None:
    """Why a cluster's folder must not lie there, or None. Pure."""
    for path in namespaces.HIDDEN:
        if root.is_relative_to(path):
            return f"real nodes have a {path} of their own, without {root}: choose another --dir"
    return None


def write_files(layout: Layout) -> None:
    """What the processes of the nodes read."""
    components.write_files(layout, probe.machine(layout.folder.node))


def furnish(layout: Layout, outer: ProcessRecord, env: Mapping[str, str]) -> None:
    """Fill the namespaces that ``outer`` just made, and see to what it may leave."""
    network = NodeNetwork(layout.block.number)
    log = layout.folder.log("janitor")
    logs.start_afresh(log)
    processes.spawn(janitor.argv(outer, network.name), log, env, None)
    count = layout.options.kubelets
    cgroups.make(network.name, node_names(count), cgroups.mounted_here())
    files = [components.node_files(layout, index) for index in range(count)]
    binds = {each.kubelet_root_inside: each.kubelet_root for each in files}
    namespaces.prepare(outer, network, binds)


def images_of(state: ClusterState, folder: Path) -> NodeImages:
    """The images of a running cluster's nodes; ``folder``: where its nodes' files lie."""
    if not state.options.kubelets:
        raise LocalClusterError(
            f"cluster {state.name!r} has no node that runs images: make one with "
            "`terrace local up --nodes kubelet:1`"
        )
    outer = state.processes.get(components.NAMESPACES)
    if outer is None or not processes.is_alive(outer):
        raise LocalClusterError(f"cluster {state.name!r} does not run; start it first")
    snapshotter = probe.machine(folder).snapshotter
    return NodeImages(outer, node_names(state.options.kubelets), snapshotter)


def health_checks(state: ClusterState) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Component -> whether it does its work, beside the nodes themselves."""
    address = NodeNetwork(state.block).control_plane
    yield components.PROXY, partial(_answers, f"http://{address}:10256/healthz")
    yield components.DNS, partial(_answers, f"http://{address}:8181/ready")


def end_pods(state: ClusterState) -> None:
    """Ask all containers to end and give them time, as a node does that shuts down.

    Nothing may be left that starts them again: the kubelets have ended.
    """
    group = NodeNetwork(state.block).name
    for pid in cgroups.members(group):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    processes.wait_until(lambda: not _containers(group), _POD_GRACE_S)


def clear_up(state: ClusterState) -> None:
    """Remove what the end of the namespaces leaves."""
    network = NodeNetwork(state.block)
    namespaces.remove_link(network)
    cgroups.remove(network.name, _CGROUP_TIMEOUT_S)


def _containers(group: str) -> set[int]:
    """Members but for sandboxes, which end on nothing that they are asked."""
    found = set()
    for pid in cgroups.members(group):
        with suppress(OSError):
            with open(f"/proc/{pid}/comm") as file:  # noqa: PTH123 - one line, read often
                name = file.read().strip()
            if name != "pause":
                found.add(pid)
    return found


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ANSWER_TIMEOUT_S) as response:
            return bool(response.status == 200)  # noqa: PLR2004 - OK
    except (urllib.error.URLError, OSError):
        return False
