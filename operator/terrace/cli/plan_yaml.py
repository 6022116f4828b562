"""``terrace plan -o yaml``: the objects that would get the plan, to apply.

Owns: their text. Does not own: the specs (``plan_spec.py``, ``target.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from terrace.api import names

if TYPE_CHECKING:
    from pydantic import BaseModel

    from terrace.api.model import ModelSpec
    from terrace.api.names import Key
    from terrace.api.pool import PoolSpec


def manifests(
    model: Key, spec: ModelSpec, pool: Key, pool_spec: PoolSpec | None
) -> list[dict[str, Any]]:
    """The InferencePool, where it is wanted, and the InferenceModel."""
    found = [_manifest(names.POOL_KIND, pool, pool_spec)] if pool_spec is not None else []
    return [*found, _manifest(names.MODEL_KIND, model, spec)]


def as_yaml(objects: list[dict[str, Any]], comments: list[str]) -> str:
    """``objects`` as one stream of documents below ``comments``."""
    head = "".join(f"# {line}\n" for line in comments)
    bodies = (yaml.safe_dump(each, sort_keys=False, allow_unicode=True) for each in objects)
    return head + "---\n".join(bodies)


def _manifest(kind: str, key: Key, spec: BaseModel) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "spec": spec.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude_none=True
        ),
    }
