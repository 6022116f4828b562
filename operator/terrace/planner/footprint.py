"""How many bytes a replica takes in each place: weights, KV cells, compute buffers, programs.

Owns: the sums for the host and each device, the formulas of programs and tiers with their measured
constants. Does not own: weights and cells by place (``placed.py``), what to do when they do not fit
(``placement.py``), what is read from the file (ModelFacts). Pure. The formulas follow llama.cpp
0c1e570 with flash attention, the way the runtime opens it.
Constants marked *measured* come from scratch processes that loaded, filled and decoded the demo
model and random models of 16M and 150M parameters (llama-cpp-python 0.3.36, x86-64, glibc 2.36),
and from ``no_alloc`` contexts shaped as Llama 3 8B and 1B, Qwen3 0.6B, 8B, 30B-A3B, Gemma 3 4B.
``tests/simulation/test_footprint_holds.py`` repeats the measurement with the demo model.
Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.planner.classes import reuse_of
from terrace.planner.compute_buffer import compute_bytes
from terrace.planner.geometry import Shape, cells, kv_bytes_per_cell, window_cells
from terrace.planner.inputs import NO_CORRECTION, Correction
from terrace.planner.layers import layer_sums, whole_cells
from terrace.planner.placed import HEADROOM, DeviceBytes, is_tied, placed
from terrace.planner.projector import NO_PROJECTOR, ProjectorBytes
from terrace.planner.tiers import Tiers, disk_blocks

if TYPE_CHECKING:
    from terrace_runtime.contract import ModelFacts

KIB, MIB = 1 << 10, 1 << 20

CELL_OVERHEAD_BYTES = 160
"""*Measured*: 55 bytes per cell when the context opens (position, set of sequences), up to 95 more
once it is used (a tree node per position)."""

SERVER_BASE_BYTES = 64 * MIB
"""*Measured*: the server with 64 requests open takes 50 to 53 MiB; the rest is for larger ones."""
ENGINE_BASE_BYTES = 40 * MIB
"""*Measured*: the engine's process without model, cells and graph takes 34 MiB."""
TEMPLATE_BASE_BYTES = 12 * MIB
"""*Measured*: the process that renders chat templates takes 11 MiB."""
BYTES_PER_TOKEN_OF_VOCABULARY = 832
"""*Measured* with 152k tokens and their merges: 256 bytes in llama.cpp, 133 in Python, 368 in the
reader of grammars."""
BYTES_PER_LAYER = 64 * KIB
"""*Measured*: 42 kB of graph nodes per layer."""

DRIVER_BYTES = 512 * MIB
"""What a device's driver takes of host memory. Not measured here: 150 to 450 MiB are told of CUDA
and ROCm; what replicas report corrects it."""

LIBRARY_PAGES_BYTES = 48 * MIB
"""*Measured*: 67 MiB of file pages in the three processes, a third of them shared."""
STATE_BYTES_PER_CELL = 64
"""A state that moves a sequence holds its cells and their positions; llama.cpp lists the cells that
it fills."""
UNIFIED_STAGING_BLOCKS = 32
"""In unified KV single blocks move; so many are under way at most."""
LEAST_LANDING_BLOCKS = 4
"""Buffers that blocks read from disk land in, however small the window is."""
SPARE_BLOCKS = 2
"""A buffer that is being touched, and one of the disk's writer."""
HUGE_PAGE_BYTES = 2 * MIB
HOST_ENTRY_BYTES = 512
DISK_ENTRY_BYTES = 288
"""Key and notes of one block in the index of its tier; the disk's takes about 250 bytes."""

DRAFT_STEP = 512
"""Tokens of a draft model's largest step (``backend/draft.py``)."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What a replica holds beside its model."""

    draft_bytes: int = 0
    """Weights, cells and graph of the draft model, in host memory."""
    projector: ProjectorBytes = NO_PROJECTOR
    """The projector and the images of requests, in host memory."""
    adapter_bytes: int = 0
    """LoRA adapters: each part lies where its layer does."""
    correction: Correction = NO_CORRECTION


NO_EXTRAS = Extras()


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one replica: a server, its engine and its template process.

    All but ``weights_bytes`` and ``devices`` are bytes of host memory.
    """

    weights_bytes: int
    """All weights, as they lie in the file."""
    repacked_bytes: int
    """Weights in anonymous memory: copied for the CPU's kernels, or all of them when loaded."""
    mapped_bytes: int
    """Weights that are used where they are mapped, and stay in memory: all that are not copied, or,
    when weights are paged, the least that a step needs at once."""
    kv_bytes: int
    compute_bytes: int
    base_bytes: int
    tiers_bytes: int = 0
    """The arena of the host tier, landing buffers, staging and the index of both tiers."""
    loading_bytes: int = 0
    """Loaded weights: what is taken besides them."""
    host_weights_bytes: int = 0
    """Weights whose place is the host, as they lie in the file."""
    extra_bytes: int = 0
    """Draft, projector, adapters, and what replicas took beyond their plans."""
    devices: tuple[DeviceBytes, ...] = ()
    shared_bytes: int = 0
    """What lies on devices whose memory is the host's."""

    @property
    def anonymous_bytes(self) -> int:
        """What cannot be reclaimed: a bound of the peak of RssAnon + RssShmem."""
        work = self.kv_bytes + self.compute_bytes + self.tiers_bytes
        kept = self.repacked_bytes + self.loading_bytes + self.extra_bytes + self.shared_bytes
        return kept + work + self.base_bytes

    @property
    def page_cache_bytes(self) -> int:
        """The page-cache floor: mapped weights that every token reads, programs, libraries.

        With less, the kernel evicts weights between tokens and reads them from disk again.
        """
        return self.mapped_bytes + LIBRARY_PAGES_BYTES

    @property
    def request_bytes(self) -> int:
        """Anonymous memory and the page-cache floor."""
        return self.anonymous_bytes + self.page_cache_bytes

    @property
    def limit_bytes(self) -> int:
        """The request and headroom on what is estimated; weights and cells are known exactly."""
        return self.request_bytes + (self.compute_bytes + self.base_bytes) // HEADROOM


def footprint(facts: ModelFacts, shape: Shape, extras: Extras = NO_EXTRAS) -> Footprint:
    """Bytes of a replica of ``shape``; more context, sequences or guesses never need less."""
    lies = placed(facts, shape, extras.adapter_bytes)
    layers = sum(run.count * run.weight_bytes for run in facts.layers)
    is_shared = shape.split is not None and shape.split.is_unified
    beside = extras.draft_bytes + extras.projector.total
    size = Footprint(
        weights_bytes=layers + facts.token_embedding_bytes + facts.output_bytes,
        repacked_bytes=lies.repacked_bytes,
        mapped_bytes=lies.weights_bytes - lies.repacked_bytes,
        kv_bytes=lies.kv_bytes + note_bytes(facts, shape),
        compute_bytes=compute_bytes(facts, shape),
        base_bytes=base_bytes(facts) + (DRIVER_BYTES if shape.split else 0),
        tiers_bytes=tiers_bytes(facts, shape),
        host_weights_bytes=lies.weights_bytes,
        extra_bytes=beside + lies.adapter_bytes + extras.correction.host_bytes,
        devices=lies.devices,
        shared_bytes=sum(each.limit_bytes for each in lies.devices) if is_shared else 0,
    )
    if shape.tiers.weights == "loaded":
        loading = loading_bytes(facts, shape, size)
        return replace(
            size, repacked_bytes=lies.weights_bytes, mapped_bytes=0, loading_bytes=loading
        )
    if shape.tiers.weights == "paged":
        # A step reads layer by layer: the one that is computed, the next one, and the head.
        floor = 2 * lies.largest_layer_bytes + head_bytes(facts)
        return replace(size, repacked_bytes=0, mapped_bytes=min(lies.weights_bytes, floor))
    return size


def draft_bytes(facts: ModelFacts, context_tokens: int, parallel: int) -> int:
    """Weights, cells and graph of a draft model, which the runtime opens with unified cells."""
    tokens = min(context_tokens, facts.context_length)
    shape = Shape(tokens, parallel, DRAFT_STEP, "f16", "f16", tiers=Tiers(is_unified=True))
    size = footprint(facts, shape)
    return size.weights_bytes + size.repacked_bytes + size.kv_bytes + size.compute_bytes


def head_bytes(facts: ModelFacts) -> int:
    """The output head; it is the token embedding where the file has no other."""
    return max(facts.output_bytes, facts.token_embedding_bytes)


def loading_bytes(facts: ModelFacts, shape: Shape, size: Footprint) -> int:
    """Loaded weights: what is copied besides them.

    A head that is the token embedding too is copied for the kernels; each copied tensor is read
    into a buffer first, which is gone before cells, graph and tiers are made.
    """
    if not facts.repacked_bytes and shape.split is None:
        return 0
    taken_later = size.kv_bytes + size.compute_bytes + size.tiers_bytes
    largest = max(head_bytes(facts), *(run.weight_bytes for run in facts.layers))
    copied = facts.token_embedding_bytes if is_tied(facts) and shape.split is None else 0
    return copied + max(0, largest - taken_later)


def kv_bytes(facts: ModelFacts, shape: Shape) -> int:
    """KV cells and recurrent state of all sequences in all places, and what is noted about them."""
    return layer_sums(facts, shape).kv[-1] + note_bytes(facts, shape)


def note_bytes(facts: ModelFacts, shape: Shape) -> int:
    """What llama.cpp notes about each cell, always in host memory."""
    windowed = max(
        (window_cells(run.window, shape) for run in facts.layers if run.window), default=0
    )
    return CELL_OVERHEAD_BYTES * (whole_cells(facts, shape) + windowed)


def tiers_bytes(facts: ModelFacts, shape: Shape) -> int:
    """What the tiers below the KV cells take in memory; 0 without a host tier.

    The arena and the landing buffers are taken when the replica starts; a block's copy goes through
    the state of a whole sequence (split KV), or of a few blocks (unified).
    """
    tiers = shape.tiers
    if not tiers.host_bytes:
        return 0
    if reuse_of(facts) == "checkpoints":
        # Whole states go straight into and out of buffers of their own.
        return tiers.host_bytes
    per_token = kv_bytes_per_cell(facts, shape)
    block = max(1, tiers.block_tokens * per_token)
    staging = cells(shape) * (per_token + STATE_BYTES_PER_CELL)
    few = UNIFIED_STAGING_BLOCKS * (block + tiers.block_tokens * STATE_BYTES_PER_CELL)
    if tiers.is_unified:
        staging = few
    elif tiers.is_auto:
        staging = max(staging, few)
    index = HOST_ENTRY_BYTES * (tiers.host_bytes // block)
    landing = SPARE_BLOCKS * block + HUGE_PAGE_BYTES
    if tiers.disk_bytes:
        landing += max(tiers.prefetch_bytes, LEAST_LANDING_BLOCKS * block)
        index += DISK_ENTRY_BYTES * disk_blocks(tiers.disk_bytes, block)
    return tiers.host_bytes + landing + staging + index


def base_bytes(facts: ModelFacts) -> int:
    """The processes with the vocabulary and the graph's nodes, before any cell."""
    vocabulary = BYTES_PER_TOKEN_OF_VOCABULARY * facts.vocabulary
    layers = BYTES_PER_LAYER * facts.layer_count
    programs = SERVER_BASE_BYTES + ENGINE_BASE_BYTES + TEMPLATE_BASE_BYTES
    return programs + vocabulary + layers
