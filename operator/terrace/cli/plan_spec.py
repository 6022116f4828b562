"""The InferenceModel that ``terrace plan`` plans, out of its options.

Owns: which option is which field, and saying which option is wrong. Does not own: the fields
(``terrace.api``). Pure. Next: ``profiles.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, get_args
from urllib.parse import quote

from pydantic import ValidationError

from terrace.api.model import ModelSpec
from terrace.api.names import MAX_NAME_LENGTH
from terrace.api.offload import MIN_MAX_DISK, MIN_SPILL, Profile
from terrace.api.quantity import parse_bytes
from terrace.cli.errors import InputError
from terrace.cli.model_file import REMOTE

_OPTIONS = {
    "context.length": "--context",
    "context.parallel": "--parallel",
    "offload.profile": "--profile",
    "offload.kvTypes": "--kv-types",
    "offload.maxDisk": "--max-disk",
    "offload.spillThreshold": "--spill-threshold",
    "source": "--uri",
    "projector": "--projector",
    "draft": "--draft",
}
_LEAST = {"--max-disk": MIN_MAX_DISK, "--spill-threshold": MIN_SPILL}
NO_DIGEST = "0" * 64
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options of ``terrace plan`` say about the model."""

    source: str
    uri: str | None = None
    """``spec.source.uri`` where ``source`` is a local path."""
    context: int | None = None
    parallel: int | None = None
    profile: str | None = None
    kv_types: str | None = None
    max_disk: str | None = None
    spill_threshold: str | None = None
    projector: str | None = None
    draft: str | None = None


def model_spec(wanted: Wanted, pool: str, digest: str = NO_DIGEST) -> ModelSpec:
    """The spec that the plan is for. Raises InputError, which names the option.

    ``digest``: of the file, once it is known; only http:// has to be told with it.
    """
    _check_least("--max-disk", wanted.max_disk)
    _check_least("--spill-threshold", wanted.spill_threshold)
    values: dict[str, Any] = {
        "poolRef": {"name": pool},
        "source": _file(wanted.uri or source_uri(wanted.source), digest),
        "context": _written(length=wanted.context, parallel=wanted.parallel),
        "offload": _written(
            profile=_profile(wanted.profile),
            kvTypes=_kv_types(wanted.kv_types),
            maxDisk=wanted.max_disk,
            spillThreshold=wanted.spill_threshold,
        ),
    }
    if wanted.projector is not None:
        values["projector"] = {"uri": source_uri(wanted.projector)}
    if wanted.draft is not None:
        values["draft"] = {"uri": source_uri(wanted.draft)}
        values["speculation"] = {"mode": "Draft"}
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=True)[0]
        where = ".".join(str(part) for part in first["loc"])
        option = next((o for field, o in _OPTIONS.items() if where.startswith(field)), where)
        raise InputError(f"{option} {first['input']}: {first['msg']}") from None


def source_uri(source: str) -> str:
    """``source`` as a URI; a local file stands for one of that name on a claim ``models``."""
    if source.startswith(REMOTE):
        return source
    return f"pvc://models/{quote(PurePath(source).name)}"


def is_local(source: str) -> bool:
    """Whether ``source`` is a path of this machine."""
    return not source.startswith(REMOTE)


def model_name(source: str) -> str:
    """A name for the InferenceModel: the file's, as far as Kubernetes takes it."""
    last = source.rstrip("/").rpartition("/")[2].partition("?")[0]
    stem = re.sub(r"\.gguf$", "", last, flags=re.IGNORECASE).lower()
    # Of the first of several parts, the parts are no name.
    stem = re.sub(r"-0*1-of-\d+$", "", stem)
    clean = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")
    clean = clean if clean[:1].isalpha() else f"model-{clean}".rstrip("-")
    return clean[:MAX_NAME_LENGTH].rstrip("-")


def is_name(text: str) -> bool:
    """Whether Kubernetes takes ``text`` as the name of an InferenceModel."""
    return bool(_NAME.fullmatch(text)) and len(text) <= MAX_NAME_LENGTH


def _file(uri: str, digest: str) -> dict[str, str]:
    return {"uri": uri, "sha256": digest} if uri.startswith("http://") else {"uri": uri}


def _profile(text: str | None) -> str | None:
    known = {name.lower(): name for name in get_args(Profile)}
    return text if text is None else known.get(text.lower(), text)


def _kv_types(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    key, comma, value = (part.strip() for part in text.partition(","))
    return {"key": key, "value": value if comma else key}


def _check_least(option: str, text: str | None) -> None:
    """What the API server would refuse; pydantic checks the rest."""
    if text is None:
        return
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise InputError(f"{option}: {error}") from None
    if 0 < size < parse_bytes(_LEAST[option]):
        raise InputError(f"{option} {text}: must be at least {_LEAST[option]}, or 0 for none")


def _written(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
