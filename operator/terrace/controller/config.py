"""The operator's own settings, from its environment.

Owns: names, defaults and validation of the variables. Does not own: settings of pools and models
(``terrace.api``). Read once at start.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from terrace.planner.accelerators import (
    CPU,
    MAX_TABLE_BYTES,
    BadTableError,
    built_in,
    read_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.planner.accelerators import Accelerator, AcceleratorTable


class OperatorConfig(BaseModel):
    """Every setting; the environment variable is the upper-case field with TERRACE_."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pod_name: str = Field(min_length=1)
    """POD_NAME: who holds the Lease."""
    pod_namespace: str = Field(min_length=1)
    """POD_NAMESPACE: where the Lease and the trust Secret live."""
    runtime_image: str = Field(min_length=1)
    """Image of replicas without devices and of fetch Jobs. One for devices is called the same with
    the suffix of its backend, as in runtime:1.0-cuda."""
    runtime_images: dict[str, str] = Field(default_factory=dict)
    """Images by llama.cpp's backend or by accelerator instead, as JSON: needed where runtime_image
    has a digest."""
    accelerators: str = ""
    """Path of a file whose rows add to the accelerator table or replace rows of it."""
    gateway_url: str = ""
    """Base URL of the gateway, shown in status.url."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces to work in; empty: all."""
    metrics_host: str = "0.0.0.0"  # noqa: S104 -- probes come from the node, scrapes from pods
    """POD_IP: address of /metrics, /healthz and /readyz."""
    metrics_port: int = Field(default=8080, ge=0, le=65535)
    """Port of /metrics, /healthz and /readyz; 0 takes a free one."""
    leader_election: bool = True
    """Whether several operators agree by a Lease on the one that works."""
    workers: int = Field(default=16, ge=1, le=256)
    """Reconciles at the same time."""
    resync_s: float = Field(default=300.0, gt=0)
    """Seconds between full lists, plus up to a quarter at random."""
    report_s: float = Field(default=600.0, gt=0)
    """Seconds between reads of a ready replica's report."""
    progress_s: float = Field(default=2.0, gt=0)
    """Seconds between reads of a running download's progress."""
    fetch_retry_s: float = Field(default=60.0, gt=0)
    """Seconds before a failed fetch Job is made again, unless its failure is permanent."""
    pending_s: float = Field(default=300.0, gt=0)
    """Seconds that replicas wait for a node before the pool's other flavors are tried."""
    lease_s: float = Field(default=15.0, gt=0)
    """Seconds after which a silent leader is replaced."""
    renew_s: float = Field(default=10.0, gt=0)
    """Seconds without a renewal after which the leader ends itself."""
    retry_s: float = Field(default=2.0, gt=0)
    """Seconds between tries to take or renew the Lease."""

    @property
    def namespaces(self) -> tuple[str | None, ...]:
        """Scopes to list and watch: names, or one None for the whole cluster."""
        return self.watch_namespaces or (None,)


class BadConfigError(Exception):
    """A variable is missing or wrong; the message names each of them."""


def read_accelerators(config: OperatorConfig) -> str | None:
    """The file that ``config.accelerators`` names; None without one. Raises BadConfigError."""
    if not config.accelerators:
        return None
    try:
        with Path(config.accelerators).open(encoding="utf-8") as file:
            return file.read(MAX_TABLE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfigError(f"TERRACE_ACCELERATORS: {error}") from error


def accelerator_table(config: OperatorConfig, text: str | None) -> AcceleratorTable:
    """Our table with the rows of ``text``, the content of ``config.accelerators``, if there is one.

    Raises BadConfigError.
    """
    try:
        table = built_in() if text is None else read_table(text, built_in())
    except BadTableError as error:
        raise BadConfigError(f"TERRACE_ACCELERATORS {config.accelerators}: {error}") from error
    known = {**table.backends, **table.accelerators}
    unknown = sorted(set(config.runtime_images) - set(known))
    if unknown:
        raise BadConfigError(
            f"TERRACE_RUNTIME_IMAGES: no backend or accelerator is called {unknown[0]!r}; known "
            f"are {', '.join(known)}"
        )
    if "@" not in config.runtime_image:
        return table
    # A suffix cannot be put behind a digest.
    rows = table.accelerators.values()
    without = {row.name for row in rows if row.backend and not images_of(config, row)}
    return replace(table, without_image=table.without_image | (without - {CPU}))


def images_of(config: OperatorConfig, row: Accelerator) -> str:
    """The image that the settings name for a row of the table; empty when they do not."""
    images = config.runtime_images
    return images.get(row.name) or images.get(row.backend) or ""


def _json_map(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text  # Refused with the other problems.


_PLAIN = {"POD_NAME": "pod_name", "POD_NAMESPACE": "pod_namespace", "POD_IP": "metrics_host"}


def variables() -> dict[str, str]:
    """Environment variable -> field of OperatorConfig."""
    return _PLAIN | {
        f"TERRACE_{field.upper()}": field
        for field in OperatorConfig.model_fields
        if field not in _PLAIN.values()
    }


def config_from_env(environ: Mapping[str, str] = os.environ) -> OperatorConfig:
    """Parse the environment; unknown TERRACE_ variables are other programs' business."""
    given: dict[str, object] = {
        field: environ[variable]
        for variable, field in variables().items()
        if environ.get(variable, "") != ""
    }
    if "watch_namespaces" in given:
        wanted = str(given["watch_namespaces"]).split(",")
        given["watch_namespaces"] = tuple(name.strip() for name in wanted if name.strip())
    if "runtime_images" in given:
        given["runtime_images"] = _json_map(str(given["runtime_images"]))
    try:
        return OperatorConfig.model_validate(given)
    except ValidationError as error:
        by_field = {field: variable for variable, field in variables().items()}
        problems = [f"{by_field[str(e['loc'][0])]}: {e['msg']}" for e in error.errors()]
        raise BadConfigError("; ".join(problems)) from error
