"""What a change of each field of both specs does to running replicas, as a table.

Owns: the table and its page. Does not own: making it true: ``sticky.inputs_digest`` does, and a
test holds one against the other for every field. Pure but for ``main``.
``python -m terrace.planner.disruption docs/disruption.md`` writes the page, ``--check`` compares.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from terrace.planner.page_file import keep_page

if TYPE_CHECKING:
    from collections.abc import Sequence

Disruption = Literal["in place", "rolling", "new set", "refused"]

MEANINGS: dict[Disruption, str] = {
    "in place": "Replicas go on as they are.",
    "rolling": "Replicas are replaced one by one; the model keeps answering with two or more.",
    "new set": (
        "Another StatefulSet is made, and the old one goes when the new one is ready; sooner where "
        "the new one found no node for `operator.pendingSeconds` and needs what the old one has."
    ),
    "refused": "The API server refuses the change; the message says what to do instead.",
}
_CELLS = "The KV cells are made when a replica starts."
_TIERS = "The tiers are made when a replica starts."
_BLOCKS = "Blocks that were kept are of no use to the new replicas, and go."
_CLAIMS = (
    "Claim templates cannot change: the StatefulSet is made anew around its pods, which go on "
    "until they are replaced."
)
_OFFLOAD: dict[str, str] = {
    "profile": _TIERS,
    "spillThreshold": _TIERS,
    "maxDisk": f"Claims grow where their class allows it; they never shrink. {_CLAIMS}",
    "prefetchWindow": _TIERS,
    "kvBlockTokens": f"{_TIERS} {_BLOCKS}",
    "checkpointTokens": _TIERS,
    "checkpointCount": _TIERS,
    "kvTypes.key": f"{_CELLS} {_BLOCKS}",
    "kvTypes.value": f"{_CELLS} {_BLOCKS}",
    "kvLayout": _CELLS,
    "disk.storageClassName": f"Claims that exist keep their class. {_CLAIMS}",
    "disk.claimName": _CLAIMS,
    "disk.ephemeral": _CLAIMS,
}
"""A model's field restarts its replicas, a pool's those of models that leave it out."""
_MODEL: dict[str, tuple[Disruption, str]] = {
    "poolRef.name": (
        "new set",
        (
            "All files are fetched into the other pool's cache first. A flavor of the same name "
            "keeps its set, and replicas are replaced one by one."
        ),
    ),
    "source.uri": ("refused", "A new file is a new InferenceModel."),
    "source.sha256": ("refused", "A new file is a new InferenceModel."),
    "source.secretRef.name": ("in place", "It holds for the next fetch."),
    "projector.uri": ("rolling", "The new file is fetched first."),
    "projector.sha256": ("rolling", "The new file is fetched first."),
    "projector.secretRef.name": ("in place", "It holds for the next fetch."),
    "draft.uri": ("rolling", "The new file is fetched first."),
    "draft.sha256": ("rolling", "The new file is fetched first."),
    "draft.secretRef.name": ("in place", "It holds for the next fetch."),
    "adapters[].name": ("rolling", "A new adapter's file is fetched first."),
    "adapters[].source.uri": ("rolling", "The new file is fetched first."),
    "adapters[].source.sha256": ("rolling", "The new file is fetched first."),
    "adapters[].source.secretRef.name": ("in place", "It holds for the next fetch."),
    "adapters[].scale": ("rolling", "A replica reads its settings once."),
    "servedNames": (
        "in place",
        "A replica asked without the gateway learns them at its next start.",
    ),
    "context.length": ("rolling", _CELLS),
    "context.parallel": ("rolling", _CELLS),
    **{f"offload.{field}": ("rolling", why) for field, why in _OFFLOAD.items()},
    "speculation.mode": ("rolling", "A replica reads its settings once."),
    "speculation.maxTokens": ("rolling", "A replica reads its settings once."),
    "sampling.temperature": ("rolling", "A replica reads its settings once."),
    "sampling.topP": ("rolling", "A replica reads its settings once."),
    "sampling.topK": ("rolling", "A replica reads its settings once."),
    "sampling.minP": ("rolling", "A replica reads its settings once."),
    "sampling.repeatPenalty": ("rolling", "A replica reads its settings once."),
    "limits.maxTokens": ("rolling", "A replica reads its settings once."),
    "priority": ("in place", "It holds when a device is wanted by two."),
    "replicas": ("in place", "Replicas are added, or the last ones stop after their drain."),
}
_POOL: dict[str, tuple[Disruption, str]] = {
    "flavors[].name": ("new set", "For models on a flavor that is gone; a new one moves nobody."),
    "flavors[].accelerator": ("rolling", "For models on this flavor."),
    "flavors[].count": ("rolling", "For models on this flavor."),
    "flavors[].memoryPerDevice": ("rolling", "For models on this flavor."),
    "flavors[].sharing": ("rolling", "For models on this flavor."),
    "flavors[].resourceName": ("rolling", "For models on this flavor."),
    "flavors[].resourceClaimTemplateName": ("rolling", "For models on this flavor."),
    "flavors[].deviceSampling": ("rolling", "For models on this flavor."),
    "flavors[].minResidenceSeconds": ("in place", "It holds when a device is wanted by two."),
    "flavors[].packing": ("in place", "It holds for models that are placed from then on."),
    "flavors[].nodeSelector": ("rolling", "For models on this flavor."),
    "flavors[].tolerations[].key": ("rolling", "For models on this flavor."),
    "flavors[].tolerations[].operator": ("rolling", "For models on this flavor."),
    "flavors[].tolerations[].value": ("rolling", "For models on this flavor."),
    "flavors[].tolerations[].effect": ("rolling", "For models on this flavor."),
    "flavors[].tolerations[].tolerationSeconds": ("rolling", "For models on this flavor."),
    "flavors[].host.cpu": ("rolling", "For models on this flavor."),
    "flavors[].host.memory": ("rolling", "For models on this flavor."),
    "flavors[].runtimeImage": ("rolling", "For models on this flavor."),
    **{
        f"offload.{field}": ("rolling", f"For models that do not set it themselves. {why}")
        for field, why in _OFFLOAD.items()
    },
    "modelCache.sharing": ("refused", "Files would have to move; make a new InferencePool."),
    "modelCache.claimName": ("refused", "Another claim is a new InferencePool."),
    "modelCache.size": ("in place", "It can only grow, where the storage class allows it."),
    "modelCache.storageClassName": ("refused", "A claim cannot change its class."),
    "modelCache.accessMode": ("refused", "A claim cannot change its access mode."),
    "modelCache.deleteUnusedAfterSeconds": ("in place", "Unused files go when their time is up."),
    "sources.huggingFaceEndpoint": ("in place", "It holds for the next fetch."),
    "sources.s3Endpoint": ("in place", "It holds for the next fetch."),
    "sources.s3Region": ("in place", "It holds for the next fetch."),
    "sources.ociEndpoint": ("in place", "It holds for the next fetch."),
    "access.allowedNetworks": ("in place", "It holds for the next fetch."),
    "access.cacheIsolation": ("rolling", f"A replica reads its settings once. {_BLOCKS}"),
    "queue.maxRequests": ("rolling", "A replica reads its settings once."),
    "streams.readerTokensPerSecond": ("rolling", "A replica reads its settings once."),
    "streams.intervalMilliseconds": ("rolling", "A replica reads its settings once."),
    "drainTimeoutSeconds": ("rolling", "A pod's grace period cannot change."),
}
DISRUPTION: dict[str, Disruption] = {
    f"{kind}.spec.{field}": what
    for kind, table in (("InferenceModel", _MODEL), ("InferencePool", _POOL))
    for field, (what, _) in table.items()
}
"""Field path -> what its change does; ``[]`` stands for the items of a list."""

_INTRODUCTION = """\
<!-- Generated by `python -m terrace.planner.disruption docs/disruption.md`. Do not edit. -->
# What a change does to running replicas

Plans are sticky: a healthy replica restarts only for the changes that this page calls *rolling* or
*new set*, and when it was killed for its memory. A node that joins or leaves, another order of
flavors, a measurement and an upgrade of the operator restart nothing. If the operator would plan
differently today, `status.plan.pending` says so, and replicas are replaced one by one with that
plan when you ask for it by its digest (the first twelve digits are enough):

    kubectl annotate im NAME --overwrite terrace.dev/take-plan=DIGEST

"""


def page() -> str:
    """The table for people, as Markdown."""
    lines = [_INTRODUCTION, "| | |\n|---|---|\n"]
    lines += [f"| {what} | {meaning} |\n" for what, meaning in MEANINGS.items()]
    for kind, table in (("InferenceModel", _MODEL), ("InferencePool", _POOL)):
        lines.append(f"\n## {kind}\n\n| field of spec | a change is | |\n|---|---|---|\n")
        lines += [f"| `{field}` | {what} | {why} |\n" for field, (what, why) in table.items()]
    return "".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page or, with ``--check``, say whether it differs. Returns the exit status."""
    return keep_page("terrace.planner.disruption", "docs/disruption.md", page(), arguments)


if __name__ == "__main__":
    sys.exit(main())
