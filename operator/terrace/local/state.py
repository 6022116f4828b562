"""The cluster's folder: what lies where, and the state file that outlives every process.

Owns: paths, names, the state file's format, the lock that lets one command at a time change a
cluster. Does not own: the processes it names (``processes.py``). Next: ``cluster.py``.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from terrace.local.errors import LocalClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_TRIES = 100
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClusterOptions(_Value):
    """How a cluster is made; kept with it, so that a repair starts what was there."""

    nodes: Literal[0, 1] = 1
    """1: the host node runs pods as processes of this machine; 0: no pod ever starts."""
    kubelets: int = Field(default=0, ge=0, le=3)
    """So many real nodes, each with kubelet and containerd, in place of the host node."""
    emulated_version: str | None = Field(default=None, pattern=r"^1\.\d\d$")
    """An older API (such as ``1.33``) from the same binaries."""
    audit: bool = False
    """Write every request to the audit log, at the level Metadata."""
    fsync: bool = True
    """False: etcd does not wait for the disk. Faster, for tests; a power cut loses data."""
    images: str | None = None
    """A JSON file for the node agent: image -> argv prefix that stands for its ENTRYPOINT."""
    extra_args: dict[str, tuple[str, ...]] = {}
    """Component -> arguments appended to its command line."""

    @model_validator(mode="after")
    def _one_kind_of_node(self) -> ClusterOptions:
        if self.kubelets and self.nodes:
            raise ValueError("kubelets take the place of the host node: set nodes to 0")
        return self


class ProcessRecord(_Value):
    """One started process; pid, start time and boot together are never used twice."""

    pid: int
    start_ticks: int
    """Field 22 of /proc/PID/stat: clock ticks after boot."""
    boot_id: str


class ClusterState(_Value):
    """What ``state.json`` holds."""

    version: Literal["v1"] = "v1"
    name: str
    options: ClusterOptions
    block: int
    """N of the cluster's addresses 127.N.0.0/16."""
    ports: dict[str, int]
    processes: dict[str, ProcessRecord] = {}


class ClusterFolder:
    """The paths below a cluster's folder. Creates folders as 0700 and files as 0600."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state_file = root / "state.json"
        self.lock_file = root / "lock"
        self.pki = root / "pki"
        self.kubeconfig = root / "kubeconfig"
        self.kubeconfigs = root / "kubeconfigs"
        self.logs = root / "logs"
        self.etcd = root / "etcd"
        self.node = root / "node"
        self.audit_policy = root / "audit" / "policy.json"
        self.audit_log = root / "audit" / "audit.log"
        self.tools = root / "tools"
        """Caches of kubectl and helm, so that clusters never see each other's."""

    def check(self) -> None:
        """Refuse a folder that holds something else's files."""
        if self.root.is_dir() and not self.state_file.exists():
            foreign = [path.name for path in self.root.iterdir() if path.name not in self.owned()]
            if foreign:
                raise LocalClusterError(
                    f"{self.root} is not empty and holds no cluster (found {foreign[0]}); "
                    "name an empty or a new folder with --dir"
                )

    def make(self) -> None:
        """Create the folders."""
        for folder in (self.root, self.pki, self.kubeconfigs, self.logs, self.etcd, self.node,
                       self.audit_log.parent, self.tools):  # fmt: skip
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    def remove_if_empty(self) -> None:
        """Give the lock file up, and the folder if nothing else is in it."""
        self.lock_file.unlink(missing_ok=True)
        with suppress(OSError):
            self.root.rmdir()

    @staticmethod
    def owned() -> frozenset[str]:
        """Names directly below the folder that are ours, and go when the cluster is deleted."""
        return frozenset(
            {"state.json", "lock", "pki", "kubeconfig", "kubeconfigs", "logs", "etcd", "node",
             "audit", "tools"}
        )  # fmt: skip

    def log(self, component: str) -> Path:
        """The log of one component."""
        return self.logs / f"{component}.log"

    def load(self) -> ClusterState | None:
        """The recorded state, or None where there is no cluster."""
        try:
            return ClusterState.model_validate_json(self.state_file.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise LocalClusterError(
                f"{self.state_file} cannot be read ({error.error_count()} errors; the first: "
                f"{error.errors()[0]['msg']}); if it is from another version of terrace, stop "
                "that cluster with that version, or delete the folder"
            ) from error

    def save(self, state: ClusterState) -> None:
        """Replace the state file in one step."""
        write_private(self.state_file, state.model_dump_json(indent=2).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait for, then hold, the right to change this cluster."""
        while True:
            fd = self._open_lock()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Whoever held the lock before may have deleted the folder: then we hold nothing.
                if _same_file(fd, self.lock_file):
                    yield
                    return
            finally:
                os.close(fd)

    def _open_lock(self) -> int:
        """The lock file, open; it and the folder are made where they are missing."""
        for tries_left in reversed(range(_LOCK_TRIES)):
            try:
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                return os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except (FileExistsError, FileNotFoundError):
                # Whoever held the lock deleted the folder between two of our steps.
                if not tries_left:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def clusters_home() -> Path:
    """The folder of this user's clusters: ``$XDG_STATE_HOME/terrace/clusters``."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "terrace" / "clusters"


def cluster_path(name: str, directory: Path | None = None) -> Path:
    """Where the cluster ``name`` lies or would lie; a name is a DNS label of up to 40 letters."""
    if not _NAME.fullmatch(name):
        raise LocalClusterError(
            f"{name!r} is no cluster name: use up to 40 lower-case letters, digits and '-'"
        )
    if directory is not None:
        return directory.absolute()
    link = clusters_home() / name
    return link.resolve() if link.is_symlink() else link


def register(name: str, root: Path) -> None:
    """Let a cluster in a folder of the user's choice be found by its name."""
    link = clusters_home() / name
    if root == link or (link.is_symlink() and link.resolve() == root):
        return
    if link.is_symlink() and not (link.resolve() / "state.json").exists():
        link.unlink()
    if link.exists():
        raise LocalClusterError(
            f"a cluster {name!r} exists in {link.resolve()}; choose another --name"
        )
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    link.symlink_to(root)


def forget(name: str, root: Path) -> None:
    """Undo ``register``."""
    link = clusters_home() / name
    if link.is_symlink() and link.resolve() == root:
        link.unlink()


def known_clusters() -> list[str]:
    """The names of this user's clusters, sorted."""
    home = clusters_home()
    if not home.is_dir():
        return []
    return sorted(path.name for path in home.iterdir() if (path / "state.json").exists())
