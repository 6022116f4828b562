"""What a manifest asks for and a plain host process does not get. Pure.

Owns: the sentences shown as events, so that nothing is ignored in silence. Next: ``pod.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrace.local.pods.spec import Pod

_POD_FIELDS = ("hostNetwork", "hostPID", "hostIPC", "hostAliases", "dnsConfig", "runtimeClassName")
_WRITABLE = ("persistentVolumeClaim", "hostPath", "emptyDir")


def unheeded(pod: Pod) -> list[str]:
    """One sentence per kind of thing that this runner does not enforce for ``pod``."""
    spec = pod.manifest["spec"]
    entries = (spec.get("initContainers") or []) + spec["containers"]
    notes = []
    fields = {f"securityContext.{name}" for name in spec.get("securityContext") or ()}
    for entry in entries:
        fields |= {f"securityContext.{name}" for name in entry.get("securityContext") or ()}
    fields |= {name for name in _POD_FIELDS if spec.get(name)}
    if fields:
        notes.append(
            "runs as plain host processes of the node agent's user; not enforced: "
            + ", ".join(sorted(fields))
        )
    mounted = {
        mount.volume for one in pod.all_containers for mount in one.mounts if mount.is_read_only
    }
    if any(kind in pod.volumes.get(name, {}) for name in mounted for kind in _WRITABLE):
        notes.append("readOnly mounts are folders of this machine and not write-protected")
    if any("cpu" in one.limits for one in pod.all_containers):
        notes.append("limits.cpu is not enforced: there are no cgroups")
    bounded = [
        name
        for name, volume in pod.volumes.items()
        if (volume.get("emptyDir") or {}).get("sizeLimit")
    ]
    if bounded:
        notes.append(f"emptyDir.sizeLimit is not enforced: {', '.join(bounded)}")
    return notes
