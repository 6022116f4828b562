"""What a cluster's operator was installed with, and what it has learned: both change plans.

Owns: reading images and accelerators off its pods and ConfigMap, and corrections off models. Does
not own: what they mean (``controller/config.py``, ``controller/corrections.py``). Next:
``target.py`` and ``explain_scene.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api import names
from terrace.controller.config import BadConfigError, OperatorConfig, accelerator_table
from terrace.controller.corrections import corrections_for
from terrace.controller.kinds import CONFIGMAP, MODEL, POD
from terrace.controller.manifests import Subject
from terrace.planner.accelerators import AcceleratorTable, built_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.api.model import ModelSpec
    from terrace.api.pool import PoolSpec
    from terrace.cli.snapshot import Snapshot
    from terrace.controller.cache import Cache
    from terrace.controller.kinds import Manifest
    from terrace.planner.inputs import Correction

PARTS = f"{names.NAME}=terrace"
OPERATOR = f"{PARTS},{names.COMPONENT}=operator"


@dataclass(frozen=True, slots=True)
class Installation:
    """Of one cluster, as far as it may be read."""

    table: AcceleratorTable = field(default_factory=built_in)
    runtime_image: str = ""
    images: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Manifest, ...] | None = None
    """Pods of Terrace itself; None: they may not be read."""

    def component(self, name: str) -> tuple[Manifest, ...] | None:
        """Pods of the operator or the gateway."""
        if self.parts is None:
            return None
        return tuple(pod for pod in self.parts if _component_of(pod) == name)

    def corrections(
        self, cache: Cache, digest: str, spec: ModelSpec, pool: PoolSpec
    ) -> Mapping[str, Correction]:
        """What plans of that file must add, by what replicas of any model took."""
        subject = Subject({}, spec, "", pool, self.runtime_image, "", self.images)
        return corrections_for(cache.models_exceeding(digest), digest, subject)


def read_installation(seen: Snapshot) -> Installation:
    """What can be seen of it; what cannot is a gap. All models are read too."""
    before = len(seen.gaps)
    parts = seen.read(POD, None, labels=PARTS)
    is_known = bool(parts) or len(seen.gaps) == before
    seen.read(MODEL, None)
    variables = _variables(next((pod for pod in parts if _component_of(pod) == "operator"), {}))
    text = _own_rows(seen)
    image = variables.get("TERRACE_RUNTIME_IMAGE", "")
    try:
        images = json.loads(variables.get("TERRACE_RUNTIME_IMAGES") or "{}")
        config = OperatorConfig(
            pod_name="-", pod_namespace="-", runtime_image=image or "-", runtime_images=images
        )
        table = accelerator_table(config, text)
    except (ValueError, ValidationError, BadConfigError) as error:
        seen.gaps.append(f"what the operator was installed with: {error}")
        return Installation(parts=tuple(parts) if is_known else None)
    return Installation(table, image, config.runtime_images, tuple(parts) if is_known else None)


def _own_rows(seen: Snapshot) -> str | None:
    """Rows that the chart was given for the accelerator table."""
    gap = "the accelerators that the operator was given, if it was given any"
    for config in seen.quietly(CONFIGMAP, OPERATOR, gap):
        text = (config.get("data") or {}).get("accelerators.yaml")
        if text:
            return str(text)
    return None


def _variables(pod: Manifest) -> dict[str, str]:
    containers = (pod.get("spec") or {}).get("containers") or ()
    return {
        str(each.get("name")): str(each.get("value") or "")
        for container in containers
        for each in container.get("env") or ()
    }


def _component_of(pod: Manifest) -> str:
    return str((pod["metadata"].get("labels") or {}).get(names.COMPONENT, ""))
