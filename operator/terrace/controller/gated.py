"""Features of Kubernetes that an API server may have switched off, and what we use of them.

Owns: which fields those are, and the words for a server that drops them. Does not own: asking the
server (``apply.py``). Pure. A server removes fields of features that are off and says nothing: a
replica would come up without its devices, a Job with an empty folder for a model's image.
docs/compatibility.md is the same list for users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terrace.controller.kinds import Manifest

CLAIMS = "resourceClaims"
IMAGE_VOLUMES = "image volumes"

_ADVICE = {
    CLAIMS: "replicas would have no devices. Dynamic resource allocation is on from Kubernetes "
    "1.34; give the flavor resourceName instead of resourceClaimTemplateName",
    IMAGE_VOLUMES: "there would be no model in it. They are on from Kubernetes 1.35 (before, with "
    "the feature gate ImageVolume); take the file from a source that is no image",
}


def gated(manifest: Manifest) -> set[str]:
    """What the pods of a Job or StatefulSet use that an older API server may not know."""
    template = (manifest.get("spec") or {}).get("template") or {}
    pod = template.get("spec") or {}
    used = {CLAIMS} if pod.get("resourceClaims") else set[str]()
    if any("image" in volume for volume in pod.get("volumes") or ()):
        used.add(IMAGE_VOLUMES)
    return used


def dropped(wanted: Manifest, kept: Manifest) -> str:
    """What of ``wanted`` the server would not keep, and what to do; empty when it keeps all."""
    lost = sorted(gated(wanted) - gated(kept))
    return "; ".join(f"this API server ignores {name}, so {_ADVICE[name]}" for name in lost)
