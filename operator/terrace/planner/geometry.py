"""The shape of a replica: what is chosen, and the cells, rows and places that follow from it.

Owns: Shape, DeviceSplit; cells, rows, windows, steps and the place of each layer in llama.cpp's own
counting (0c1e570). Does not own: all other bytes (``compute_buffer.py``, ``footprint.py``), which
split is chosen (``split.py``). Pure. Next: ``footprint.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack, unpack
from typing import TYPE_CHECKING

from terrace.planner.tiers import NO_TIERS, Tiers

if TYPE_CHECKING:
    from terrace.api.values import KvType
    from terrace_runtime.contract import LayerRun, ModelFacts

CELL_PADDING = 256
"""llama.cpp pads the cells of a sequence to a multiple of this."""
KV_BLOCK = 32
KV_BLOCK_BYTES: dict[KvType, int] = {"f16": 64, "q8_0": 34, "q4_0": 18}
"""Bytes of KV_BLOCK values (ggml's block sizes)."""


@dataclass(frozen=True, slots=True)
class DeviceSplit:
    """What lies on devices, in llama.cpp's own parameters."""

    device_layers: int
    """n_gpu_layers: the last so many of all layers and the output head, which counts as one."""
    devices: int = 1
    expert_layers_on_host: int = 0
    """n_cpu_moe: the first so many layers keep their routed experts in host memory."""
    moves_feed_forward: bool = False
    """Of a model without experts, those layers keep their feed-forward weights there instead."""
    kv_on_device: bool = True
    """offload_kqv: the cells of a layer lie where it does."""
    tensor_split: tuple[float, ...] = ()
    """Shares of the devices; empty with one."""
    is_pinned: bool = True
    """The backend has host buffers of its own: layers on the host are then never repacked."""
    is_unified: bool = False
    """The devices' memory is the host's: what lies there counts once, against both."""


@dataclass(frozen=True, slots=True)
class Places:
    """Which layers lie where; layer ``layer_count`` is the output head."""

    host: range
    devices: tuple[range, ...]

    @property
    def output(self) -> int | None:
        """Index of the device that has the output head; None: the host has it."""
        last = max((each.stop for each in self.devices if each), default=0)
        owner = [i for i, each in enumerate(self.devices) if each and each.stop == last]
        return owner[-1] if owner else None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a user or the planner chooses; the rest follows from the model."""

    context_tokens: int
    parallel: int
    ubatch_tokens: int
    kv_key_type: KvType
    kv_value_type: KvType
    guessed_tokens: int = 0
    """Tokens guessed ahead per sequence: each asks for logits of its own."""
    tiers: Tiers = NO_TIERS
    split: DeviceSplit | None = None
    """None: everything lies in host memory."""


def places(layer_count: int, split: DeviceSplit) -> Places:
    """Where llama.cpp puts each layer (``load_tensors``): ranges over the layers and the head.

    The layers on devices are cut where their number, divided by how many there are, reaches the
    summed shares; all of it in 32-bit floats.
    """
    on_devices = min(split.device_layers, layer_count + 1)
    first = layer_count + 1 - on_devices
    shares = split.tensor_split or (1.0,) * split.devices
    sums, total = [], 0.0
    for share in shares:
        total = _float32(total + _float32(share))
        sums.append(total)
    ends = [_reached(_float32(each / total), on_devices) for each in sums]
    starts = [0, *ends[:-1]]
    cuts = tuple(range(first + a, first + max(a, b)) for a, b in zip(starts, ends, strict=True))
    return Places(range(first), cuts)


def _reached(share: float, count: int) -> int:
    """The first of ``count`` layers that lies beyond ``share``."""
    near = max(0, int(share * count) - 1)
    return next((layer for layer in range(near, count) if _float32(layer / count) >= share), count)


def _float32(value: float) -> float:
    return float(unpack("f", pack("f", value))[0])


def cells(shape: Shape) -> int:
    """KV cells of one sequence."""
    return padded(shape.context_tokens)


def padded(tokens: int) -> int:
    """``tokens`` as so many cells."""
    return -(-tokens // CELL_PADDING) * CELL_PADDING


def window_cells(window: int, shape: Shape) -> int:
    """KV cells of all sequences in a layer with a sliding window: it, and what a step adds.

    The runtime leaves llama.cpp's ``swa_full`` off; prefixes are reused from checkpoints.
    """
    if shape.tiers.is_unified:
        needed = padded(window * (shape.parallel + 1) + shape.ubatch_tokens)
    else:
        needed = padded(window + shape.ubatch_tokens) * shape.parallel
    return min(needed, cells(shape) * shape.parallel)


def kv_bytes_per_cell(facts: ModelFacts, shape: Shape) -> int:
    """Keys and values of one token in all layers, those included that soon forget it."""
    return sum(row_bytes(run, shape) for run in facts.layers)


def row_bytes(run: LayerRun, shape: Shape) -> int:
    """Keys and values of one token in all layers of ``run``."""
    keys, values = KV_BLOCK_BYTES[shape.kv_key_type], KV_BLOCK_BYTES[shape.kv_value_type]
    row = run.key_length * keys + run.value_length * values
    return run.count * run.kv_heads * row // KV_BLOCK


def step_tokens(facts: ModelFacts, shape: Shape) -> int:
    """Tokens of the largest graph: an encoder takes its longest input at once."""
    at_once = facts.model_class != "decoder" or facts.pooling not in ("", "last")
    return max(shape.ubatch_tokens, cells(shape)) if at_once else shape.ubatch_tokens
