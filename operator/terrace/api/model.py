"""InferenceModel: what to serve, under which names, from which pool.

Owns: the types of ``spec`` and their bounds. Does not own: CRD generation (``crd.py``), planning.
Pure. A field stands here only if it has an effect; its docstring is its ``kubectl explain`` text.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from terrace.api.markers import SET, list_map, looks_like, rule, rules
from terrace.api.names import MAX_NAME_LENGTH
from terrace.api.offload import Offload
from terrace.api.values import ApiValue

ServedName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$",
        max_length=128,
        json_schema_extra=looks_like(
            "must start with a letter or digit and hold only letters, digits and . _ : / -"
        ),
    ),
]


class PoolRef(ApiValue):
    """A pool in the same namespace."""

    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH)
    """Name of the InferencePool."""


class SecretRef(ApiValue):
    """A Secret in the same namespace."""

    name: str = Field(min_length=1, max_length=253)
    """Name of the Secret."""


_PLAIN_HTTP = rule(
    "!self.uri.startsWith('http://') || has(self.sha256)",
    "http:// can be tampered with on its way: set sha256, or use https://",
    field=".sha256",
)
_SECRET = rule(
    "!has(self.secretRef) || self.uri.matches('^(https|hf|s3|oci)://')",
    "only https://, hf://, s3:// and oci:// take a secret: change uri, or drop secretRef",
    field=".secretRef",
)


_Uri = Annotated[
    str,
    Field(
        pattern=(
            r"^(demo://[a-z0-9-]+|pvc://[a-z0-9.-]+/.+|hf://[^/]+/.+|s3://[^/]+/.+|oci://[^/]+/.+"
            r"|https?://[^/]+/.+)$"
        ),
        max_length=2048,
        json_schema_extra=looks_like(
            "must be demo://NAME, hf://OWNER/REPO[/FILE], s3://BUCKET/KEY, oci://REGISTRY/NAME, "
            "pvc://CLAIM/PATH, https://HOST/PATH or http://HOST/PATH"
        ),
    ),
]


class File(ApiValue):
    """Where a file comes from."""

    model_config = ConfigDict(json_schema_extra=rules(_PLAIN_HTTP, _SECRET))

    uri: _Uri
    """The GGUF file, named as in spec.source.uri."""
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        max_length=64,
        json_schema_extra=looks_like("must be 64 lower-case hex digits, as sha256sum prints them"),
    )
    """SHA-256 of the file, lower-case hex. Checked after the download."""
    secret_ref: SecretRef | None = None
    """What the source asks for, with the keys of spec.source.secretRef."""

    @model_validator(mode="after")
    def _plain_http_has_a_checksum(self) -> Self:
        if self.uri.startswith("http://") and self.sha256 is None:
            raise ValueError("uri: http:// needs sha256")
        return self


class Source(File):
    """Where the model file comes from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.uri == oldSelf.uri && has(self.sha256) == has(oldSelf.sha256)"
                " && (!has(self.sha256) || self.sha256 == oldSelf.sha256)",
                "spec.source is immutable; make a new InferenceModel for another file",
            ),
            _PLAIN_HTTP,
            _SECRET,
        )
    )

    uri: _Uri
    """The GGUF file: demo://chat (shipped in the runtime image), hf://OWNER/REPO/FILE or
    hf://OWNER/REPO:Q4_K_M (@REVISION after REPO), s3://BUCKET/KEY, oci://REGISTRY/NAME:TAG,
    oci://REGISTRY/NAME:TAG#PATH (a file in an image, mounted by the kubelet), pvc://CLAIM/PATH (a
    claim in the same namespace, used in place), https://HOST/PATH, or http:// with sha256. Of a
    file in parts, name the first."""
    secret_ref: SecretRef | None = None
    """What the source asks for, one key each: token (hf, https, oci), AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (s3), username and password or .dockerconfigjson
    (oci); ca.crt, an authority of one's own. Only what fetches reads it. For a file in an image it
    is an imagePullSecret."""


class Adapter(ApiValue):
    """A LoRA adapter, called by its name in the model field of a request."""

    name: ServedName
    """Name that clients call it by."""
    source: File
    """Where the adapter's GGUF file comes from."""
    scale: float | None = Field(default=None, ge=-10, le=10)
    """How strongly it counts. Default: 1."""


class Context(ApiValue):
    """How much a replica keeps in mind."""

    length: int | None = Field(default=None, ge=64, le=16777216)
    """Tokens of one conversation, prompt and answer. Default: the model's own length, at most
    8192. More than the model was trained for is refused."""
    parallel: int | None = Field(default=None, ge=1, le=255)
    """Conversations that run at the same time in one replica. Default: 4; on devices as many as
    have room, up to 16."""


class Sampling(ApiValue):
    """Used where a request leaves the field out."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    """0 always takes the likeliest token. Default: 0.8."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling; 1 is off. Default: 0.95."""
    top_k: int | None = Field(default=None, ge=0, le=10000)
    """Take among the k likeliest tokens; 0 is off. Default: 40."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Drop tokens less likely than this share of the likeliest. Default: 0.05."""
    repeat_penalty: float | None = Field(default=None, ge=0.1, le=10)
    """Above 1 makes repetition less likely. Default: 1."""


class Speculation(ApiValue):
    """Tokens guessed ahead and verified in the next step; answers are the same without."""

    mode: Literal["Off", "NGram", "Draft"] = "Off"
    """NGram guesses what followed the last words where they stood before, in the prompt or the
    answer: fast where answers quote. Draft lets spec.draft guess. Either rests by itself where it
    loses time. Default: Off."""
    max_tokens: int = Field(default=4, ge=1, le=16)
    """Most tokens guessed ahead per conversation and step. Default: 4."""


class Limits(ApiValue):
    """What one request may ask for."""

    max_tokens: int | None = Field(default=None, ge=1, le=16777216)
    """Most tokens of one answer. Default: as the context allows."""


_MODE = "(has(self.speculation) && has(self.speculation.mode) ? self.speculation.mode : 'Off')"


class ModelSpec(ApiValue):
    """What to serve."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"{_MODE} != 'Draft' || has(self.draft)",
                "speculation.mode Draft needs spec.draft, the model that guesses",
                field=".draft",
            ),
            rule(
                f"!has(self.draft) || {_MODE} == 'Draft'",
                "spec.draft has no effect without speculation.mode Draft; set it, or drop draft",
                field=".speculation",
            ),
            rule(
                "!has(self.projector) || self.projector.uri != self.source.uri"
                " || !self.projector.uri.endsWith('.gguf')",
                "spec.projector names the model's own file; name the mmproj file beside it",
                field=".projector",
            ),
            rule(
                "!has(self.adapters) || !has(self.servedNames)"
                " || self.adapters.all(a, !(a.name in self.servedNames))",
                "an adapter needs a name of its own, not one of spec.servedNames",
                field=".adapters",
            ),
        )
    )

    pool_ref: PoolRef
    """The pool it runs in. A model can move: the file is fetched into the other pool's cache."""
    source: Source
    """Where the model file comes from. Immutable: a new file is a new InferenceModel."""
    projector: File | None = None
    """A multimodal projector (mmproj) of this model: requests may hold images. hf://OWNER/REPO:TAG
    takes the one beside the model."""
    draft: File | None = None
    """A small model of the same vocabulary that guesses ahead, with speculation.mode Draft."""
    adapters: list[Adapter] = Field(
        default_factory=list, max_length=16, json_schema_extra=list_map("name")
    )
    """LoRA adapters."""
    served_names: list[ServedName] = Field(
        default_factory=list, max_length=16, json_schema_extra=SET
    )
    """Names that clients may use in the model field. Default: the name of this object.
    NAMESPACE/NAME always works."""
    context: Context = Context()
    """How much a replica keeps in mind."""
    offload: Offload = Offload()
    """Overrides of the pool's settings, field by field."""
    speculation: Speculation = Speculation()
    """Tokens guessed ahead and verified in the next step."""
    sampling: Sampling = Sampling()
    """Used where a request leaves the field out."""
    limits: Limits = Limits()
    """What one request may ask for."""
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    """Where devices do not suffice for all models, the higher one gets them, also from one that
    runs. Default: 0."""
    replicas: int | None = Field(default=None, ge=0, le=1000)
    """How many replicas run. Absent means 1. `kubectl scale --replicas` works either way; an
    HPA and `kubectl scale --current-replicas` need it set."""

    @model_validator(mode="after")
    def _adapters_have_names_of_their_own(self) -> Self:
        names = [adapter.name for adapter in self.adapters]
        if len({*names}) < len(names) or {*names} & {*self.served_names}:
            raise ValueError("adapters: a name is taken; give each one of its own")
        return self
