"""OCI registries: from ``oci://`` to the GGUF layers of an artifact, each a blob with its digest.

Owns: manifests and indexes (OCI distribution 1.1), which layers are model files (Docker's model
format, CNCF ModelPack, Ollama's and plain ORAS pushes). Does not own: logging in
(``registry_access``), requests (``web``).
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, Field, ValidationError

from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.registry_access import RegistryAccess
from terrace_runtime.models.remote import Remote, RemoteFile
from terrace_runtime.models.sources import OciSource, endpoint_url
from terrace_runtime.models.split import part_paths, split_name

if TYPE_CHECKING:
    from terrace_runtime.contract import FetchSpec, FileRole
    from terrace_runtime.models.secrets import Secrets
    from terrace_runtime.models.web import Web

_ACCEPT: Final = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)
_LORA: Final = "application/vnd.docker.ai.gguf.v3.lora"
_MODELS: Final = frozenset(
    {
        "application/vnd.docker.ai.gguf.v3",
        "application/vnd.ollama.image.model",
        "application/vnd.cncf.model.weight.v1.gguf",
        "application/gguf",
        "application/x-gguf",
    }
)
_ADAPTERS: Final = frozenset({_LORA, "application/vnd.ollama.image.adapter"})
_PROJECTORS: Final = frozenset(
    {"application/vnd.docker.ai.mmproj", "application/vnd.ollama.image.projector"}
)
_TITLES: Final = ("org.opencontainers.image.title", "org.cncf.model.filepath")
_ASIDE: Final = re.compile(r"(^|[-_./])mmproj", re.IGNORECASE)
_MAX_LAYERS: Final = 4096
_MAX_MANIFESTS: Final = 8
_SHOWN: Final = 8

_Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Descriptor(BaseModel):
    media_type: str = Field(default="", alias="mediaType", max_length=255)
    digest: _Sha256
    size: int = Field(ge=0)
    annotations: dict[str, str] | None = None

    @property
    def title(self) -> str:
        """The file's name, where the one who pushed it said it."""
        notes = self.annotations or {}
        return next((notes[key] for key in _TITLES if key in notes), "")


class _Manifest(BaseModel):
    layers: list[_Descriptor] = Field(default_factory=list, max_length=_MAX_LAYERS)
    manifests: list[_Descriptor] = Field(default_factory=list, max_length=_MAX_LAYERS)


async def resolve_oci(source: OciSource, spec: FetchSpec, web: Web, secrets: Secrets) -> Remote:
    """The GGUF layers of the artifact that ``source`` names; raises FetchError."""
    registry = source.registry.lower()
    is_docker_hub = registry in {"docker.io", "index.docker.io", "registry-1.docker.io"}
    host = "registry-1.docker.io" if is_docker_hub else registry
    base = endpoint_url(spec.oci_endpoint or f"https://{host}", "sources.ociEndpoint")
    name = f"library/{source.name}" if is_docker_hub and "/" not in source.name else source.name
    access = RegistryAccess(base, name, registry, secrets)
    manifest = await _manifest(web, access, f"{base}/v2/{name}", source.reference)
    layers = _model_layers(manifest, spec.role)
    for entry in manifest.manifests[:_MAX_MANIFESTS]:
        if layers:
            break
        manifest = await _manifest(web, access, f"{base}/v2/{name}", entry.digest)
        layers = _model_layers(manifest, spec.role)
    if not layers:
        raise FetchError("UnsupportedFormat", _no_model(manifest, spec.role))
    files = (
        RemoteFile(
            f"{base}/v2/{name}/blobs/{layer.digest}", layer.size, layer.digest.partition(":")[2]
        )
        for layer in layers
    )
    return Remote(tuple(files), access)


async def _manifest(web: Web, access: RegistryAccess, base: str, reference: str) -> _Manifest:
    body, _ = await web.document(f"{base}/manifests/{reference}", access, {"Accept": _ACCEPT})
    if reference.startswith("sha256:"):
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if found != reference:
            raise FetchError(
                "ChecksumMismatch", f"the registry's manifest is {found}, not {reference}"
            )
    try:
        return _Manifest.model_validate_json(body)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise FetchError(
            "DownloadFailed", f"{base} gives no OCI manifest ({where or 'no JSON'})"
        ) from None


def _model_layers(manifest: _Manifest, role: FileRole) -> list[_Descriptor]:
    """The layers of one model in order of their parts; raises FetchError for several models."""
    found = _candidates(manifest, role)
    if len(found) <= 1:
        return found
    titles = {layer.title: layer for layer in found}
    first = [title for title in titles if (part := split_name(title)) is None or part.number == 1]
    if len(first) == 1 and len(titles) == len(found):
        wanted = part_paths(first[0])
        if len(wanted) == len(found) and all(title in titles for title in wanted):
            return [titles[title] for title in wanted]
    if titles.keys() == {""} and role not in {"adapter", "projector"}:
        return found  # Parts in the order they were pushed; their headers say whether it is so.
    raise FetchError(
        "NotFound",
        f"the artifact holds {len(found)} GGUF files and not one model: "
        f"{', '.join((layer.title or layer.digest)[-80:] for layer in found[:_SHOWN])}; "
        "push one model per tag",
    )


def _candidates(manifest: _Manifest, role: FileRole) -> list[_Descriptor]:
    """The layers of the type that ``role`` asks for, else GGUF files of a fitting name."""
    wanted = {"adapter": _ADAPTERS, "projector": _PROJECTORS}.get(role, _MODELS)
    typed = [layer for layer in manifest.layers if layer.media_type in wanted]
    if wanted is _MODELS:
        # Pushed as plain GGUF files, a model and its projector differ by their names alone.
        typed = [layer for layer in typed if not _ASIDE.search(layer.title)]
    is_aside = role == "projector"
    return typed or [
        layer
        for layer in manifest.layers
        if _is_titled_gguf(layer) and bool(_ASIDE.search(layer.title)) == is_aside
    ]


def _is_titled_gguf(layer: _Descriptor) -> bool:
    is_archive = layer.media_type.endswith(("tar", "gzip", "zstd"))
    return layer.title.endswith(".gguf") and not is_archive


def _no_model(manifest: _Manifest, role: FileRole) -> str:
    kinds = sorted({layer.title or layer.media_type for layer in manifest.layers})
    whats = {"adapter": "LoRA adapter", "projector": "multimodal projector (mmproj)"}
    what = whats.get(role, "GGUF model")
    found = ", ".join(kind[:80] for kind in kinds[:_SHOWN]) or "no layers"
    return (
        f"the artifact holds no layer that is a {what}; it holds {found}. Push one with "
        "docker model package, or oras push REGISTRY/NAME:TAG model.gguf:application/gguf"
    )
