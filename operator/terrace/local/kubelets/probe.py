"""Whether this machine can run real nodes, and what is missing where it cannot.

Owns: the question, asked before anything is made. Does not own: the answer's consequences.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from terrace.local.kubelets import cgroups
from terrace.local.kubelets.configs import Machine
from terrace.local.kubelets.namespaces import search_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PACKAGES = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "conntrack": "conntrack",
}
"""Program -> Debian package."""
_CNI_PACKAGE = "containernetworking-plugins"
CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")
_CNI_PLUGINS = ("ptp", "host-local", "portmap", "loopback")
_CAP_SYS_RESOURCE = 1 << 24
_TIMEOUT_S = 180.0
_WATCHERS, _WATCHERS_PER_NODE = 14, 10
"""Inotify instances that a cluster was seen to hold (11 and 7), and a few more."""
_KERNEL_STEPS = (
    ("tmpfs mounts", "mount -t tmpfs tmpfs /mnt"),
    ("pairs of virtual interfaces (veth)", "ip link add probe0 type veth peer name probe1"),
    (
        "nftables with address translation",
        (
            "nft 'table ip t { chain p { type nat hook prerouting priority 0; "
            "fib daddr type local ip daddr 10.0.0.1 dnat to 10.0.0.2; }; "
            "chain q { type nat hook postrouting priority 0; ct state new masquerade; }; }'"
        ),
    ),
)
"""What is missing if it fails -> a command to try in namespaces that end with it."""


@cache
def why_not() -> str | None:
    """One line that says why this machine cannot run real nodes, or None where it can."""
    return (
        wrong_place(sys.platform, os.geteuid())
        or missing_programs(search_path(), CNI_FOLDERS)
        or cgroups.obstacle(cgroups.mounted_here())
        or _missing_ability()
    )


def wrong_place(platform: str, user: int) -> str | None:
    """Why neither packages nor a kernel could help. Pure."""
    if platform != "linux":
        return f"real nodes need Linux; this is {platform}"
    if user != 0:
        return "real nodes need root: they make namespaces, mounts and network interfaces"
    return None


def new_watcher() -> int:
    """The descriptor of a new inotify instance, or a negative number."""
    return int(ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC))


def short_of_watchers(nodes: int, new: Callable[[], int] = new_watcher) -> str | None:
    """Why so many more nodes could not watch their files, or None.

    Without this, one of the processes ends with "too many open files".
    """
    wanted = _WATCHERS + _WATCHERS_PER_NODE * nodes
    with contextlib.ExitStack() as held:
        for _ in range(wanted):
            descriptor = new()
            if descriptor < 0:
                return (
                    "too few inotify instances are free on this machine: stop other clusters, or "
                    "raise the limit with `sysctl -w fs.inotify.max_user_instances=1024`"
                )
            held.callback(os.close, descriptor)
    return None


def machine(folder: Path) -> Machine:
    """What the nodes' files depend on; ``folder`` is where images will lie."""
    return Machine(
        cni_dir=_cni_dir(CNI_FOLDERS) or CNI_FOLDERS[0],
        snapshotter="overlayfs" if _can_overlay(folder) else "native",
        may_lower_oom_score=bool(_capabilities() & _CAP_SYS_RESOURCE),
    )


def missing_programs(path: str, cni_folders: Sequence[str]) -> str | None:
    """Which Debian packages to install, or None where all programs are in these folders."""
    missing = {package for name, package in PACKAGES.items() if not shutil.which(name, path=path)}
    if _cni_dir(cni_folders) is None:
        missing.add(_CNI_PACKAGE)
    if not missing:
        return None
    return f"real nodes need more programs: apt-get install {' '.join(sorted(missing))}"


def _cni_dir(folders: Sequence[str]) -> str | None:
    for folder in folders:
        if all(os.access(f"{folder}/{name}", os.X_OK) for name in _CNI_PLUGINS):
            return folder
    return None


def _missing_ability() -> str | None:
    steps = [f"echo '{what}'; {command} >/dev/null" for what, command in _KERNEL_STEPS]
    done = _try_out("\n".join(["set -e", *steps]))
    if done.returncode == 0:
        return None
    begun = done.stdout.splitlines()
    what = begun[-1] if begun else "namespaces (unshare)"
    said = done.stderr.strip().splitlines()
    return f"this kernel gives us no {what}: {said[-1] if said else done.returncode}"


def _can_overlay(folder: Path) -> bool:
    """Whether an overlay can be mounted over that file system."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name in ("lower", "upper", "work", "merged"):
            (Path(place) / name).mkdir()
        options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        script = f"mount -t overlay -o '{options}' overlay '{place}/merged'"
        return _try_out(script).returncode == 0


def _try_out(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script as root of namespaces that end with it."""
    argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            "/bin/sh", "-c", script]  # fmt: skip
    return subprocess.run(  # noqa: S603 - a program of util-linux and our own script
        argv, env={**os.environ, "PATH": search_path()}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
