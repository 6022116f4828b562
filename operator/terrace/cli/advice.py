"""The next command to type, by a condition's reason.

Owns: the commands. Does not own: the messages, which say what is wrong and the way out in words
(``controller/conditions.py``, ``planner``). Pure.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from terrace.api import names
from terrace.api.conditions import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class About:
    """The model that a command is about."""

    namespace: str
    name: str
    pool: str
    uri: str = ""
    options: str = ""
    """Of ``terrace plan``, for what the spec asks for."""

    @property
    def edit(self) -> str:
        """Change the model."""
        return f"kubectl edit im {self.name} -n {self.namespace}"

    @property
    def edit_pool(self) -> str:
        """Change its pool."""
        return f"kubectl edit ipool {self.pool} -n {self.namespace}"

    @property
    def watch(self) -> str:
        """See it go on."""
        return f"kubectl get im {self.name} -n {self.namespace} --watch"

    @property
    def fetch_log(self) -> str:
        """What the fetch Job says."""
        return f"kubectl logs -n {self.namespace} job/{names.fetch_job_name(self.name)} --tail=20"

    @property
    def replan(self) -> str:
        """Every profile on the live nodes; a file that only the cluster can read is not planned."""
        if not self.uri.startswith(("hf://", "https://", "oci://", "demo://")):
            return self.nodes
        where = f"--pool {self.namespace}/{self.pool}"
        return f"terrace plan {shlex.quote(self.uri)} {where} {self.options}".rstrip()

    @property
    def nodes(self) -> str:
        """What the nodes have left."""
        return "kubectl describe nodes | grep -A 8 'Allocated resources'"

    def take_pending(self, digest: str) -> str:
        """Replace the replicas, one by one, by ones with the plan that waits."""
        wish = f"{names.ANNOTATION_TAKE_PLAN}={digest[: names.MIN_DIGEST_DIGITS]}"
        return f"kubectl annotate im -n {self.namespace} {self.name} --overwrite {wish}"


def plan_options(spec: Mapping[str, Any]) -> str:
    """Options of ``terrace plan`` that ask for what a stored spec does; it may not even parse."""
    context, offload = _map(spec, "context"), _map(spec, "offload")
    kv_types = _map(offload, "kvTypes")
    written = {
        "--context": context.get("length"),
        "--parallel": context.get("parallel"),
        "--profile": offload.get("profile"),
        "--kv-types": ",".join(str(kv_types.get(each, "f16")) for each in ("key", "value")),
        "--max-disk": offload.get("maxDisk"),
        "--spill-threshold": offload.get("spillThreshold"),
        "--projector": _map(spec, "projector").get("uri"),
        "--draft": _map(spec, "draft").get("uri"),
    }
    if not kv_types:
        written["--kv-types"] = None
    words = [
        f"{name} {shlex.quote(str(each))}" for name, each in written.items() if each is not None
    ]
    return " ".join(words)


def _map(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


_EDIT: Final = frozenset(
    {
        Reason.CONTEXT_TOO_LONG,
        Reason.UNSUPPORTED_KV_TYPE,
        Reason.INVALID_OFFLOAD,
        Reason.INVALID_PROJECTOR,
        Reason.INVALID_SPEC,
        Reason.NAME_CONFLICT,
        "Unauthorized",
    }
)
_EDIT_POOL: Final = frozenset(
    {
        Reason.NO_DEVICE,
        Reason.UNSUPPORTED_ACCELERATOR,
        Reason.UNKNOWN_DEVICE_MEMORY,
        "AddressRefused",
        "DiskFull",
    }
)
_FETCH: Final = frozenset(
    {
        "NotFound",
        "DownloadFailed",
        "ChecksumMismatch",
        "ChecksumRequired",
        "UnsupportedFormat",
        "Truncated",
        "InvalidModel",
        Reason.UNSUPPORTED_WEIGHT_TYPE,
    }
)


def command_for(reason: str, about: About) -> str:
    """What to type when a condition of the model has this reason."""
    if reason in _EDIT:
        return about.edit
    if reason in _EDIT_POOL:
        return about.edit_pool
    if reason in _FETCH:
        return about.fetch_log
    commands = {
        Reason.POOL_NOT_FOUND: f"kubectl get ipool -n {about.namespace}",
        Reason.NO_NODE_FITS: about.replan,
        Reason.PREEMPTED: (
            "kubectl get im -A -o custom-columns="
            "NS:.metadata.namespace,NAME:.metadata.name,PRIORITY:.spec.priority,"
            "FLAVOR:.status.placement.flavor"
        ),
        Reason.FETCHING: about.fetch_log,
        Reason.FETCH_PENDING: (
            f"kubectl describe pod -n {about.namespace} "
            f"-l job-name={names.fetch_job_name(about.name)}"
        ),
        Reason.SCALED_TO_ZERO: (f"kubectl scale im/{about.name} -n {about.namespace} --replicas=1"),
        Reason.FOREIGN_OBJECT: f"kubectl describe im {about.name} -n {about.namespace}",
        Reason.REFUSED: f"kubectl describe im {about.name} -n {about.namespace}",
    }
    return {str(key): command for key, command in commands.items()}.get(reason, about.watch)
