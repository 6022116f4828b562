"""Stopping a cluster and deleting what it leaves.

Owns: the order in which processes end, and that none is missed. Does not own: how one process is
recognised and ended (``processes.py``).
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from terrace.local import control_plane, processes
from terrace.local.kubelets import components as kubelets
from terrace.local.kubelets import nodes
from terrace.local.kubelets.network import MAX_NODES
from terrace.local.pods import scratch
from terrace.local.state import ClusterFolder, forget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from terrace.local.state import ProcessRecord

# The node goes first, while the API still answers, and gets time to end its pods; the API server
# before etcd, because without etcd it waits a minute for its watches.
_STOP_ORDER = (
    *((name, 2.0) for name in kubelets.kubelet_names(MAX_NODES)),
    (control_plane.NODE, 10.0),
    (control_plane.API_SERVER, 1.0),
    (control_plane.CONTROLLER_MANAGER, 1.0),
    (control_plane.SCHEDULER, 1.0),
    (control_plane.ETCD, 5.0),
    # unshare(1) heeds no SIGTERM; the kernel ends what is left inside with it.
    (kubelets.NAMESPACES, 0.0),
)
_LEFT_BEHIND_GRACE_S = 2.0
_MOST_SWEEPS = 10


def stop(folder: ClusterFolder, report: Callable[[str], None]) -> None:
    """End every process of the cluster; returns when none is left."""
    state = folder.load()
    recorded = state.processes if state else {}
    for name, grace_s in _STOP_ORDER:
        record = recorded.get(name)
        if record is not None and processes.is_alive(record):
            processes.stop([record], grace_s)
            report(f"{name} stopped")
        if name == control_plane.NODE and state is not None and state.options.kubelets:
            nodes.end_pods(state)
        elif name == control_plane.NODE:
            _stop_unrecorded(folder, recorded)  # pods of a node agent that was killed
    _stop_unrecorded(folder, recorded)
    # Those for which no order is needed, such as containerd, end with their namespaces.
    processes.stop(recorded.values(), _LEFT_BEHIND_GRACE_S)
    # Pods whose agent, and whose guard after it, had no time to clear up.
    for pod in (folder.root / "node" / "pods").glob("*"):
        scratch.remove_all(pod)
    if state is not None:
        if state.options.kubelets:
            nodes.clear_up(state)
        folder.save(state.model_copy(update={"processes": {}}))


def _stop_unrecorded(folder: ClusterFolder, recorded: Mapping[str, ProcessRecord]) -> None:
    """What a killed process left, and what a killed `up` had not yet recorded."""
    known = set(recorded.values())
    for _ in range(_MOST_SWEEPS):  # one that ends may have started another
        found = [each for each in processes.left_behind(folder.root) if each not in known]
        if not found:
            return
        processes.stop(found, _LEFT_BEHIND_GRACE_S)


def delete(folder: ClusterFolder, name: str) -> None:
    """Remove what ``up`` made, and nothing else that lies in the folder."""
    # The state goes last: while it is there, `down` can be repeated.
    names = sorted(ClusterFolder.owned() - {"state.json", "lock"})
    for path in [folder.root / each for each in names]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    forget(name, folder.root)
    folder.state_file.unlink(missing_ok=True)
    folder.remove_if_empty()
