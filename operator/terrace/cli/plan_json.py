"""``terrace plan --json``: a document for programs; docs/cli.md names its fields.

Owns: its shape, which only grows within ``VERSION``. A fitting profile's ``plan`` has the fields of
``status.plan``. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from terrace.cli.bytes_by_place import places
from terrace.controller.placing import Decision
from terrace.controller.plan_status import plan_status
from terrace.planner.placement import Placement

if TYPE_CHECKING:
    from terrace.cli.profiles import Row, Target
    from terrace_runtime.contract import ModelFacts, ProjectorFacts

VERSION = "terrace.plan/v1"


def plan_document(
    source: str,
    facts: ModelFacts,
    target: Target,
    rows: tuple[Row, ...],
    projector: ProjectorFacts | None = None,
) -> dict[str, Any]:
    """The whole answer."""
    return {
        "version": VERSION,
        "source": source,
        "target": {"title": target.title, "pool": str(target.pool_key), "notes": [*target.notes]},
        "model": {
            "architecture": facts.architecture,
            "name": facts.name,
            "quantization": facts.quantization,
            "parameters": facts.parameters,
            "layers": facts.layer_count,
            "contextLength": facts.context_length,
            "fileBytes": facts.file_bytes,
            "digest": facts.digest,
        },
        "projector": projector and _projector(projector),
        "profiles": [_profile(row) for row in rows],
    }


def _projector(facts: ProjectorFacts) -> dict[str, Any]:
    return {
        "type": facts.projector_type,
        "name": facts.name,
        "quantization": facts.quantization,
        "parameters": facts.parameters,
        "imageSize": facts.image_size,
        "maxPieces": facts.max_pieces,
        "outputLength": facts.output_length,
        "fileBytes": facts.file_bytes,
        "digest": facts.digest,
    }


def _profile(row: Row) -> dict[str, Any]:
    head = {"profile": row.profile, "chosen": row.is_chosen, "fits": row.fits}
    result = row.result
    if not isinstance(result, Placement):
        problem = {
            "reason": str(result.reason),
            "message": result.message,
            "missingBytes": result.missing_bytes,
        }
        return {**head, "problem": problem}
    status = plan_status(Decision(result.flavor, result.plan))
    plan = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        **head,
        "flavor": result.flavor.name,
        "tokensPerSecond": round(result.tokens_per_second, 1) or None,
        "plan": plan,
        "places": [
            {
                "place": place.name,
                "weightsBytes": place.weights_bytes,
                "kvBytes": place.kv_bytes,
                "computeBytes": place.compute_bytes,
                "tiersBytes": place.tiers_bytes,
                "otherBytes": place.other_bytes,
                "totalBytes": place.total_bytes,
            }
            for place in places(result.plan)
        ],
    }
