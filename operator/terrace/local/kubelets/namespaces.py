"""The room of a cluster with real nodes: namespaces that one process holds, and that end with it.

Owns: making them, everything mounted and joined inside, starting a process in them. Does not own:
which addresses (``network.py``) and what runs there (``components.py``).

The outer process is unshare(1). Its only child is the first process of the inner PID namespace
and dies with it, however it ends; with that one the kernel ends every process inside, and with
the last of them go mounts, interfaces, routes and firewall rules.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

from terrace.local import processes
from terrace.local.errors import LocalClusterError
from terrace.local.kubelets.network import inner_commands, is_free, outer_commands, route_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from terrace.local.kubelets.network import NodeNetwork
    from terrace.local.state import ProcessRecord

RUN = "/run/terrace"
"""Inside: what must not outlive the nodes. A short path, for the sake of socket addresses."""
HIDDEN = ("/run", "/var/log", "/var/lib/kubelet", "/var/lib/cni")
"""Inside, these are empty at first and gone at the end."""
_TIMEOUT_S = 180.0
_TUNABLES = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""What kubelet sets for the whole machine, unless it finds it so."""


def outer_argv(unshare: Path, pause: Path) -> list[str]:
    """The command line of the process that owns the namespaces."""
    # A mount that this machine gives up later shall not live on inside: hence slave.
    return [str(unshare), "--net", "--mount", "--propagation=slave", "--pid", "--fork",
            "--kill-child", "--mount-proc", str(pause)]  # fmt: skip


def program(name: str) -> str:
    """The path of a program of this machine, root's folders included."""
    path = shutil.which(name, path=search_path())
    if path is None:
        raise LocalClusterError(f"{name} is not on this machine")
    return path


def search_path() -> str:
    """PATH with the folders that an ordinary user's lacks."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/local/sbin:/usr/sbin:/sbin"


def setup_script(network: NodeNetwork, binds: Mapping[str, Path]) -> str:
    """What is mounted and joined inside, as a shell script.

    ``binds``: for each node a path inside that is short, as addresses of sockets must be -> folder.
    """
    lines = [
        "set -eu",
        # Among themselves, kubelet and containerd must see each other's mounts.
        "mount --make-rshared /",
        # Plugins, kubelets and shims leave files in these; the machine's own stay as they are.
        f"mkdir -p {' '.join(HIDDEN)}",
        *(f"mount -t tmpfs -o mode=755 tmpfs {path}" for path in HIDDEN),
        f"mkdir -p {RUN}/tunables /run/lock",
    ]  # fmt: skip
    for path, value in _TUNABLES.items():
        stand_in = f"{RUN}/tunables/{path.replace('/', '.')}"
        lines.append(f"echo {value} > {stand_in}")
        lines.append(f"mount --bind {stand_in} /proc/sys/{path}")
    for inside, folder in binds.items():
        lines += [f"mkdir -p {inside}", f"mount --bind {shlex.quote(str(folder))} {inside}"]
    lines += [f"ip {' '.join(words)}" for words in inner_commands(network, len(binds))]
    lines.append("echo 1 > /proc/sys/net/ipv4/ip_forward")
    return "\n".join(lines) + "\n"


def prepare(outer: ProcessRecord, network: NodeNetwork, binds: Mapping[str, Path]) -> None:
    """Wait until the namespaces are there, then furnish them."""
    made = processes.wait_until(lambda: _is_made(outer), _TIMEOUT_S)
    if not made:
        raise LocalClusterError(f"no namespaces were made within {_TIMEOUT_S:.0f} s")
    ip = program("ip")
    remove_link(network)
    for words in outer_commands(network, outer.pid):
        _run([ip, *words])
    _run([*enter(outer), "/bin/sh", "-c", setup_script(network, binds)])
    _run([ip, *route_command(network)])


def remove_link(network: NodeNetwork) -> None:
    """Make sure that no interface of an earlier run is left: the kernel takes a moment for it."""
    subprocess.run(  # noqa: S603 - our own arguments, no shell
        [program("ip"), "link", "delete", network.name], capture_output=True, check=False
    )


def enter(outer: ProcessRecord, *, fork: bool = True) -> list[str]:
    """The words before a command line that shall run inside."""
    names = f"/proc/{outer.pid}/ns"
    return [program("nsenter"), f"--net={names}/net", f"--mount={names}/mnt",
            f"--pid={names}/pid_for_children", *([] if fork else ["--no-fork"])]  # fmt: skip


def spawn(
    outer: ProcessRecord, argv: Sequence[str], log: Path, env: Mapping[str, str]
) -> ProcessRecord:
    """Start a process inside, in a session of its own, that outlives us.

    The shell stays in our PID namespace, so that it tells the child's id as this machine has it.
    """
    script = 'log=$0; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!'
    said = _run([*enter(outer, fork=False), "/bin/sh", "-c", script, str(log), *argv], env)
    return processes.record_of(int(said))


def is_free_here(network: NodeNetwork) -> bool:
    """Whether this machine has no route into the cluster's addresses."""
    said = json.loads(_run([program("ip"), "-json", "-4", "route", "show", "table", "all"]))
    return is_free(network, [(route["dst"], route.get("dev", "")) for route in said])


def _is_made(outer: ProcessRecord) -> bool:
    """Whether the first process inside has its own /proc and runs."""
    if not processes.is_alive(outer):
        raise LocalClusterError("unshare ended: no namespaces could be made")
    test = [*enter(outer), "/bin/sh", "-c", '[ "$(cat /proc/1/comm)" = pause ]']
    done = subprocess.run(test, capture_output=True, check=False)  # noqa: S603 - as in _run
    return done.returncode == 0


def _run(argv: list[str], env: Mapping[str, str] | None = None) -> str:
    environment = {**(env or os.environ), "PATH": search_path()}
    done = subprocess.run(  # noqa: S603 - our own arguments, no shell of the user's making
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise LocalClusterError(f"{' '.join(argv[:8])} failed: {done.stderr.strip()}")
    return done.stdout
