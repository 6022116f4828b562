"""The accelerator table: what each kind of device is called and what llama.cpp runs on it.

Owns: the types of a row, reading and merging tables, what a row refuses. Does not own: the facts
(``accelerators.yaml``, and a file of the user's), labels of nodes (``device_labels.py``). Pure but
for reading our own file once. Next: ``rooms.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from terrace.api.quantity import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from terrace.api.offload import KvTypes

CPU = "cpu"
MAX_TABLE_BYTES = 1 << 20
"""Most bytes of a user's table: a ConfigMap holds no more."""


class BadTableError(Exception):
    """A table cannot be used; the message names each row and field."""


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return text


def _size(text: str) -> str:
    if parse_bytes(text) < 0:
        raise ValueError("must not be negative")
    return text


Pattern = Annotated[str, AfterValidator(_pattern), Field(max_length=512)]
Size = Annotated[str, AfterValidator(_size)]
Unit = Literal["B", "MiB", "GB", "GiB"]


class Row(BaseModel):
    """camelCase in the file; unknown fields are mistakes."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid"
    )


class MemorySource(Row):
    """One place that may tell the memory of one device; exactly one of the first five."""

    label: str = ""
    """Its key; ``{resource}`` stands for the requested resource."""
    label_prefix: str = ""
    """The size is the rest of a key that begins so: ``beta.amd.com/gpu.vram.16G``."""
    products: dict[Pattern, Size] | None = None
    """Size by what the product's label holds; the first pattern found in it counts."""
    resource: Pattern = ""
    """The size is the first group of this, found in the resource's name."""
    resource_products: dict[Pattern, Size] | None = None
    """Size by a product that the resource's name holds."""
    unit: Unit = "B"
    """What a number without a letter counts, and whether G is 1000 or 1024 cubed."""
    divided_by: str = ""
    """Label with the number of devices, where the size is that of all of them."""
    only: Pattern = ""
    """Holds for resources that match this alone."""

    @model_validator(mode="after")
    def _tells_one_way(self) -> MemorySource:
        ways = (self.label, self.label_prefix, self.resource, self.products, self.resource_products)
        if sum(bool(way) for way in ways) != 1:
            raise ValueError(
                "set exactly one of label, labelPrefix, products, resource, resourceProducts"
            )
        if self.resource and not re.compile(self.resource).groups:
            raise ValueError("resource: the pattern needs a group around the size")
        return self


class ReplicasSource(Row):
    """One place that may tell how many clients a device has."""

    label: str = ""
    """Holds the number; 0 and 1 are none but one."""
    devices_label: str = ""
    """Holds the number of real devices: clients are what the node offers divided by it."""
    only: Pattern = ""

    @model_validator(mode="after")
    def _tells_one_way(self) -> ReplicasSource:
        if bool(self.label) == bool(self.devices_label):
            raise ValueError("set exactly one of label and devicesLabel")
        return self


class PodDetails(Row):
    """What replicas on such a device need beside the resource."""

    env: dict[str, str] = Field(default_factory=dict)
    supplemental_groups: tuple[int, ...] = ()
    runtime_class_name: str = ""


class Backend(Row):
    """One of llama.cpp's backends."""

    title: str
    image_suffix: str | None
    """What the tag of its image ends with; null: there is none."""
    weight_types: tuple[str, ...]
    """Types of tensors that its kernels multiply."""
    kv_types: tuple[str, ...]
    kv_mixed: bool = True
    """Whether keys and values may have different types."""
    margin: Size = "0"
    """Kept free on each device."""


class Accelerator(Row):
    """One kind of device."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=32)
    title: str
    resources: tuple[str, ...] = ()
    """Extended resources of whole devices; the first that a node offers is requested."""
    shared_resources: tuple[str, ...] = ()
    """Extended resources that are never a whole device; asked for first with sharing Shared."""
    resource_pattern: Pattern = ""
    """All names that this vendor's plugins use."""
    product: tuple[str, ...] = ()
    """Labels with the product's name, the first that is there counts."""
    memory: tuple[MemorySource, ...] = ()
    replicas: tuple[ReplicasSource, ...] = ()
    shared_by: str = ""
    """Label with the way of sharing: ``time-slicing``, ``mps``."""
    one_per_process: Pattern = ""
    """Resources, or products, of which a process can use one alone."""
    backend: str = ""
    """Name of one of the table's backends; empty: llama.cpp has none, see ``reason``."""
    reason: str = ""
    """Why llama.cpp cannot use it."""
    image_suffix: str | None = None
    """Instead of the backend's."""
    weight_types: tuple[str, ...] | None = None
    """Instead of the backend's."""
    kv_types: tuple[str, ...] | None = None
    """Instead of the backend's."""
    margin: Size | None = None
    """Instead of the backend's."""
    is_unified: bool = False
    """The device computes in the host's memory."""
    is_standalone: bool = False
    """Never a node's: for ``terrace plan`` and runtimes outside of Kubernetes."""
    max_parallel: int | None = Field(default=None, ge=1)
    """Most sequences at a time, where kernels have a limit."""
    pod: PodDetails = PodDetails()
    gigabytes_per_second: dict[Pattern, float] = Field(default_factory=dict)
    """How fast one device reads its memory, by product; the first pattern found counts."""
    default_gigabytes_per_second: float = Field(default=100.0, gt=0)

    @model_validator(mode="after")
    def _runs_or_says_why(self) -> Accelerator:
        if bool(self.backend) == bool(self.reason):
            raise ValueError("set backend, or reason where llama.cpp has none")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class AcceleratorTable:
    """All rows, and the backends they name. Compared by identity: it is read once."""

    backends: Mapping[str, Backend]
    accelerators: Mapping[str, Accelerator]
    without_image: frozenset[str] = frozenset()
    """Names of rows that the installation has no image for."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a flavor may have."""
        return tuple(name for name, row in self.accelerators.items() if not row.is_standalone)

    def backend_of(self, row: Accelerator) -> Backend:
        """The row's backend, with what the row says instead; the row has one."""
        own = {
            field: value
            for field in ("image_suffix", "weight_types", "kv_types", "margin")
            if (value := getattr(row, field)) is not None
        }
        return self.backends[row.backend].model_copy(update=own)


def missing_weight_types(backend: Backend, weight_types: Iterable[str]) -> tuple[str, ...]:
    """Types of a model file that the backend's kernels lack; integer tables run anywhere."""
    run = {*backend.weight_types, "I8", "I16", "I32", "I64"}
    return tuple(sorted(set(weight_types) - run))


def runs_kv(backend: Backend, kv: KvTypes) -> bool:
    """Whether the backend's kernels run this pair of KV types."""
    is_known = kv.key in backend.kv_types and kv.value in backend.kv_types
    return is_known and (backend.kv_mixed or kv.key == kv.value)


def read_table(text: str, base: AcceleratorTable | None = None) -> AcceleratorTable:
    """A table from YAML; with ``base``, its rows are added to those of ``base`` or replace them.

    Raises BadTableError.
    """
    if len(text) > MAX_TABLE_BYTES:
        raise BadTableError(f"is larger than {MAX_TABLE_BYTES} bytes")
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadTableError(f"is no YAML: {error}") from error
    parsed = {} if parsed is None else parsed
    if not isinstance(parsed, dict) or not {*parsed} <= {"backends", "accelerators"}:
        raise BadTableError("must be a map with backends and accelerators, and nothing else")
    problems: list[str] = []
    backends = dict(base.backends) if base else {}
    for name, row in _named(parsed.get("backends"), problems):
        backends[name] = _checked(Backend, row, f"backends.{name}", problems, backends.get(name))
    accelerators = dict(base.accelerators) if base else {}
    for raw in _listed(parsed.get("accelerators"), problems):
        _add(raw, accelerators, backends, problems)
    if problems:
        raise BadTableError("; ".join(problems))
    return AcceleratorTable(backends, accelerators)


@cache
def built_in() -> AcceleratorTable:
    """Our own table."""
    return read_table(files(__package__).joinpath("accelerators.yaml").read_text(encoding="utf-8"))


def _add(
    raw: dict[str, Any],
    accelerators: dict[str, Accelerator],
    backends: Mapping[str, Backend],
    problems: list[str],
) -> None:
    where = f"accelerators.{raw.get('name', '(without name)')}"
    parent = raw.pop("extends", None)
    if parent is not None and parent not in accelerators:
        problems.append(f"{where}: extends: no row is called {parent!r}")
        return
    row = _checked(Accelerator, raw, where, problems, accelerators.get(parent) if parent else None)
    if row is None:
        return
    if row.backend and row.backend not in backends:
        problems.append(f"{where}.backend: no backend is called {row.backend!r}")
    if row.name == CPU and row.backend != CPU:
        problems.append(f"{where}: cpu is what a flavor without devices is called")
    accelerators[row.name] = row


def _checked(
    kind: type[Any], raw: object, where: str, problems: list[str], parent: Any = None
) -> Any:
    """``raw`` as a row, over the fields of ``parent``; None, and the problems, when it is bad."""
    given = dict(raw) if isinstance(raw, dict) else raw
    if parent is not None and isinstance(given, dict):
        inherited = parent.model_dump(by_alias=True, exclude_unset=True)
        if given.get("backend"):
            inherited.pop("reason", None)
        given = inherited | given
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        for each in error.errors():
            path = ".".join(str(part) for part in (where, *each["loc"]))
            problems.append(f"{path}: {each['msg'].removeprefix('Value error, ')}")
    return None


def _named(section: object, problems: list[str]) -> list[tuple[str, object]]:
    if section is None:
        return []
    if not isinstance(section, dict):
        problems.append("backends: must be a map of names")
        return []
    return [(str(name), row) for name, row in section.items()]


def _listed(section: object, problems: list[str]) -> list[dict[str, Any]]:
    if section is None:
        return []
    if not isinstance(section, list) or not all(isinstance(each, dict) for each in section):
        problems.append("accelerators: must be a list of maps")
        return []
    return [dict(each) for each in section]
