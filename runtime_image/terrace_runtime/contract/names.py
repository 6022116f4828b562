"""Paths, ports, headers, exit codes and metric names that both sides use.

Owns: names alone, and where a container's path is on this machine. Next: ``config.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

CONTRACT_VERSION = "v1"

# Containers, ports and paths ------------------------------------------------------------------
RUNTIME_CONTAINER = "runtime"
FETCH_CONTAINER = "fetch"
RUNTIME_PORT = 8000
RUNTIME_PORT_NAME = "http"
CONFIG_DIR = "/etc/terrace"
RUNTIME_CONFIG_FILE = "runtime.json"
"""Key of the ConfigMap and name of the file in CONFIG_DIR that holds a RuntimeConfig as JSON."""
MODEL_CACHE_DIR = "/models"
"""Mount of the pool's model cache (read-only in replicas)."""
MODEL_SOURCE_DIR = "/source"
"""Mount of the user's own claim for ``pvc://`` sources (read-only)."""
KV_DIR = "/kv"
"""Mount of a replica's own volume for the disk tier of its KV blocks."""
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LOG_ENV = "TERRACE_TERMINATION_LOG"
"""Set where a pod's terminationMessagePath is another."""
MAX_TERMINATION_BYTES = 4096

# Exit codes of ``python -m terrace_runtime`` ----------------------------------------------------
EXIT_PERMANENT = 10
"""The same input gives the same failure (not a GGUF, wrong checksum): retrying is useless."""
EXIT_BAD_CONFIG = 11
"""RuntimeConfig does not parse."""
EXIT_MODEL_MISSING = 12
"""The model file is not where RuntimeConfig says: the cache was emptied; fetch again."""
EXIT_BACKEND = 13
"""llama.cpp could not start, load the model or decode its first batch."""
EXIT_ENGINE = 14
"""The engine died while serving (an abort inside llama.cpp, or a step over its bound)."""
EXIT_HOST_MEMORY = 15
"""The replica's memory limit was too small for what was planned."""
EXIT_DEVICE_MEMORY = 16
"""A device was too small for what was planned on it."""
EXIT_ADDRESS = 17
"""The address to listen on cannot be had: another process has the port, or it is not ours."""

# HTTP headers ---------------------------------------------------------------------------------
IDENTITY_HEADER = "x-terrace-identity"
"""Gateway -> runtime: a compact JWS (EdDSA) over an Identity. Absent: anonymous."""
REQUEST_ID_HEADER = "x-request-id"
CACHED_TOKENS_HEADER = "x-terrace-cached-tokens"
"""Runtime -> gateway: how many prompt tokens were found in the prefix cache (its depth)."""
CACHED_TIER_HEADER = "x-terrace-cached-tier"
"""Runtime -> gateway: the coldest tier that they came from: none, device, host or disk."""

# Metric names of the runtime (all labelled by nothing that a client chooses) ---------------------
METRIC_REQUESTS = "terrace_runtime_requests"
METRIC_PROMPT_TOKENS = "terrace_runtime_prompt_tokens"
METRIC_GENERATED_TOKENS = "terrace_runtime_generated_tokens"
METRIC_QUEUE = "terrace_runtime_requests_waiting"
METRIC_RUNNING = "terrace_runtime_requests_running"
METRIC_KV_USAGE = "terrace_runtime_kv_cache_usage_ratio"
METRIC_BATCH_TOKENS = "terrace_runtime_batch_tokens"
METRIC_STEP_SECONDS = "terrace_runtime_step_seconds"
METRIC_TTFT = "terrace_runtime_time_to_first_token_seconds"
METRIC_ITL = "terrace_runtime_inter_token_seconds"
METRIC_E2E = "terrace_runtime_request_seconds"
METRIC_QUEUE_SECONDS = "terrace_runtime_queue_seconds"
METRIC_TENANT_REQUESTS = "terrace_runtime_tenant_requests"
METRIC_TENANT_TOKENS = "terrace_runtime_tenant_tokens"
METRIC_MODEL_INFO = "terrace_runtime_model_info"
METRIC_MEMORY = "terrace_runtime_memory_bytes"
METRIC_TIER_USED = "terrace_runtime_kv_tier_used_bytes"
METRIC_TIER_LIMIT = "terrace_runtime_kv_tier_limit_bytes"
METRIC_TIER_BLOCKS = "terrace_runtime_kv_tier_blocks"
METRIC_TIER_HITS = "terrace_runtime_kv_tier_hits"
METRIC_TIER_HIT_TOKENS = "terrace_runtime_kv_tier_hit_tokens"
METRIC_TIER_SPILLS = "terrace_runtime_kv_tier_spills"
METRIC_TIER_EVICTIONS = "terrace_runtime_kv_tier_evictions"
METRIC_KV_MISSES = "terrace_runtime_kv_misses"
METRIC_KV_QUERIED = "terrace_runtime_kv_queried_tokens"
METRIC_KV_RESTORES = "terrace_runtime_kv_restores"
METRIC_KV_PARKS = "terrace_runtime_kv_parks"
METRIC_KV_LAYOUTS = "terrace_runtime_kv_layout_changes"
METRIC_KV_REJECTED = "terrace_runtime_kv_rejected_blocks"
METRIC_KV_FAILURES = "terrace_runtime_kv_spill_failures"
METRIC_DRAFTED = "terrace_runtime_drafted_tokens"
METRIC_ACCEPTED = "terrace_runtime_accepted_tokens"
METRIC_IMAGES = "terrace_runtime_images"
METRIC_IMAGE_ENCODE = "terrace_runtime_image_encode_seconds"
METRIC_CPUS = "terrace_runtime_cpus"
METRIC_CPU_QUOTA = "terrace_runtime_cpu_quota"
METRIC_CPU_PERIODS = "terrace_runtime_cpu_periods"
METRIC_CPU_THROTTLED_PERIODS = "terrace_runtime_cpu_throttled_periods"
METRIC_CPU_THROTTLED = "terrace_runtime_cpu_throttled_seconds"
METRIC_CONTAINER_MEMORY = "terrace_runtime_container_memory_bytes"
METRIC_OOM_KILLS = "terrace_runtime_oom_kills"
METRIC_MEMORY_LIMIT_HITS = "terrace_runtime_memory_limit_hits"
METRIC_PRESSURE = "terrace_runtime_pressure_ratio"
METRIC_PRESSURE_SECONDS = "terrace_runtime_pressure_seconds"
METRIC_DEVICES = "terrace_runtime_devices"
METRIC_DEVICE_FAILURES = "terrace_runtime_device_read_failures"
METRIC_DEVICE_USE = "terrace_runtime_device_utilization_ratio"
METRIC_DEVICE_USED = "terrace_runtime_device_memory_used_bytes"
METRIC_DEVICE_TOTAL = "terrace_runtime_device_memory_total_bytes"
METRIC_DEVICE_HEAT = "terrace_runtime_device_temperature_celsius"
METRIC_DEVICE_POWER = "terrace_runtime_device_power_watts"
METRIC_DEVICE_POWER_LIMIT = "terrace_runtime_device_power_limit_watts"
METRIC_DEVICE_THROTTLED = "terrace_runtime_device_throttled"


def pod_path(path: str) -> Path:
    """Where ``path`` of a container is on this machine.

    A pod that runs as a host process (the local cluster) has no mount namespace of its own; its
    runner lays the volumes out under a folder and names that folder in TERRACE_POD_ROOT.
    """
    root = os.environ.get("TERRACE_POD_ROOT")
    return Path(root) / path.lstrip("/") if root else Path(path)
