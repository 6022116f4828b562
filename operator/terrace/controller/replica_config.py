"""What each replica is told: a plan and the settings of model and pool as a RuntimeConfig.

Owns: the translation. Does not own: the numbers (``planner``), the ConfigMap around it
(``manifests.py``), what the settings do (``terrace_runtime``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from terrace.controller.model_volumes import replica_path
from terrace.controller.replica_offload import replica_offload
from terrace_runtime.contract import (
    KV_DIR,
    Adapter,
    KvTiers,
    RuntimeConfig,
    SamplingDefaults,
    Speculation,
)

if TYPE_CHECKING:
    from terrace.controller.facts import KnownModel
    from terrace.controller.files import Extras
    from terrace.controller.manifests import Subject
    from terrace.planner.plan import OffloadPlan

PINNED_SHARE = 4
"""Pinned prefixes hold at most one PINNED_SHARE-th of the host tier."""
_SPECULATION_MODES: dict[str, Literal["off", "ngram", "draft"]] = {
    "Off": "off",
    "NGram": "ngram",
    "Draft": "draft",
}

_DEVICE_SAMPLING: dict[str, Literal["off", "auto", "on"]] = {
    "Off": "off",
    "Auto": "auto",
    "On": "on",
}


def runtime_config(
    subject: Subject, known: KnownModel, extras: Extras, plan: OffloadPlan
) -> RuntimeConfig:
    """What each replica is told, once all files are in place."""
    spec = subject.spec
    return RuntimeConfig(
        namespace=subject.key.namespace,
        model=subject.key.name,
        # All names it asks for: who serves a contested one is decided at the gateway, so that
        # another model's end restarts nothing here.
        served_names=tuple(dict.fromkeys(spec.served_names)) or (subject.key.name,),
        model_path=known.path,
        model_digest=known.facts.digest,
        plan_digest=plan.digest,
        context_tokens=plan.context_tokens,
        parallel=plan.parallel,
        batch_tokens=plan.batch_tokens,
        ubatch_tokens=plan.ubatch_tokens,
        prefill_tokens=plan.prefill_tokens,
        threads=plan.threads,
        kv_key_type=plan.kv_key_type,
        kv_value_type=plan.kv_value_type,
        kv_unified=plan.kv_unified,
        kv_auto=plan.kv_auto,
        kv=_kv_tiers(subject, plan),
        offload=replica_offload(plan),
        device_sampling=_device_sampling(subject, plan),
        speculation=_speculation(subject, extras),
        adapters=_adapters(subject, extras),
        **_projector(subject, extras),
        max_waiting=subject.pool.queue.max_requests,
        reader_pace=subject.pool.streams.reader_tokens_per_second,
        stream_interval_s=subject.pool.streams.interval_milliseconds / 1000,
        max_tokens=spec.limits.max_tokens or 0,
        sampling=SamplingDefaults(**spec.sampling.model_dump(exclude_none=True)),
        drain_timeout_s=float(subject.pool.drain_timeout_seconds),
        trust_key=subject.trust_key,
    )


def _device_sampling(subject: Subject, plan: OffloadPlan) -> Literal["off", "auto", "on"]:
    flavor = next((each for each in subject.pool.flavors if each.name == plan.flavor), None)
    wanted = flavor.device_sampling if flavor is not None else None
    return _DEVICE_SAMPLING[wanted or "Off"]


def _kv_tiers(subject: Subject, plan: OffloadPlan) -> KvTiers:
    is_shared = subject.pool.access.cache_isolation == "Pool"
    return KvTiers(
        block_tokens=plan.block_tokens,
        checkpoint_tokens=plan.checkpoint_tokens,
        checkpoint_count=plan.checkpoint_count,
        host_bytes=plan.host_bytes,
        disk_bytes=plan.disk_bytes,
        disk_path=KV_DIR if plan.disk_bytes else "",
        prefetch_bytes=plan.prefetch_bytes,
        pinned_bytes=plan.host_bytes // PINNED_SHARE,
        isolation="shared" if is_shared else "tenant",
    )


def _speculation(subject: Subject, extras: Extras) -> Speculation:
    spec, path = subject.spec, ""
    if extras.draft is not None and extras.draft.fetch.known is not None:
        uri = extras.draft.file.source.uri
        path = replica_path(extras.draft.fetch.known.path, uri, spec.source.uri)
    mode = _SPECULATION_MODES[spec.speculation.mode]
    return Speculation(mode=mode, max_tokens=spec.speculation.max_tokens, draft_path=path)


def _projector(subject: Subject, extras: Extras) -> dict[str, str]:
    """Path and digest of the projector; nothing where there is none."""
    projector = extras.projector
    if projector is None or projector.fetch.known is None:
        return {}
    known, uri = projector.fetch.known, projector.file.source.uri
    return {
        "projector_path": replica_path(known.path, uri, subject.spec.source.uri),
        "projector_digest": known.facts.digest,
    }


def _adapters(subject: Subject, extras: Extras) -> tuple[Adapter, ...]:
    model_uri = subject.spec.source.uri
    return tuple(
        Adapter(
            name=each.adapter.name,
            path=replica_path(each.fetch.known.path, each.file.source.uri, model_uri),
            digest=each.fetch.known.facts.digest,
            scale=1.0 if each.adapter.scale is None else each.adapter.scale,
        )
        for each in extras.adapters
        if each.fetch.known is not None
    )
