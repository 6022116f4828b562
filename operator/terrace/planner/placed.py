"""Weights, cells and adapters by place: what a split puts on the host and on each device.

Owns: the rules of llama.cpp 0c1e570 (``load_tensors``, ``create_tensor``, ``llama_kv_cache``) as
sums of bytes. Does not own: which layer lies where (``geometry.places``), the bytes of a layer
(``layers.py``), all else that the host holds (``footprint.py``). Pure.

The token embedding always lies on the host. The head lies with the last layer; where the file has
none of its own, the device gets a copy of the embedding. Cells lie where their layer does, or all
on the host. With a backend that has host buffers (CUDA, Vulkan, SYCL, CANN) weights on the host are
not repacked, so that long steps can be computed on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.planner.compute_buffer import device_compute_bytes
from terrace.planner.geometry import places
from terrace.planner.layers import LayerSums, layer_sums

if TYPE_CHECKING:
    from terrace.planner.geometry import DeviceSplit, Shape
    from terrace_runtime.contract import ModelFacts

HEADROOM = 4
"""A limit is the request and one HEADROOM-th of what is estimated and not known: compute, base."""
TIED_SHARE = 4
"""A head of its own has as many bytes as the embedding, or nearly; a tied one has norms alone."""


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """Bytes on one device."""

    weights_bytes: int
    """Adapters included."""
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """What the replica takes there, without the driver's own share."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes

    @property
    def limit_bytes(self) -> int:
        """With headroom on what is estimated; weights and cells are known exactly."""
        return self.total_bytes + self.compute_bytes // HEADROOM


@dataclass(frozen=True, slots=True)
class Placed:
    """What lies where."""

    weights_bytes: int
    """On the host, as in the file."""
    repacked_bytes: int
    """Part of them that CPU kernels copy."""
    kv_bytes: int
    """On the host: cells and state."""
    adapter_bytes: int
    """On the host."""
    largest_layer_bytes: int
    """Of those on the host, with what of them is there."""
    devices: tuple[DeviceBytes, ...]


def placed(facts: ModelFacts, shape: Shape, adapter_bytes: int = 0) -> Placed:
    """Bytes by place; all on the host where ``shape`` has no split."""
    is_dense = shape.split is not None and shape.split.moves_feed_forward
    sums = layer_sums(facts, shape, is_dense=is_dense)
    if shape.split is None or not shape.split.device_layers:
        ends = facts.token_embedding_bytes + facts.output_bytes
        return Placed(
            weights_bytes=sums.weights[-1] + ends,
            repacked_bytes=min(sums.weights[-1] + ends, facts.repacked_bytes),
            kv_bytes=sums.kv[-1],
            adapter_bytes=adapter_bytes,
            largest_layer_bytes=max(run.weight_bytes for run in facts.layers),
            devices=(DeviceBytes(0, 0, 0),) * (shape.split.devices if shape.split else 0),
        )
    return _split(facts, shape, shape.split, sums, adapter_bytes)


def _split(
    facts: ModelFacts, shape: Shape, split: DeviceSplit, sums: LayerSums, adapter_bytes: int
) -> Placed:
    where = places(facts.layer_count, split)
    experts = expert_sums(sums, split.expert_layers_on_host)
    adapter = adapter_layer_bytes(facts, adapter_bytes)
    compute = device_compute_bytes(facts, shape)
    devices = []
    for index, layers in enumerate(where.devices):
        start, stop = (min(each, facts.layer_count) for each in (layers.start, layers.stop))
        weights = _between(sums.weights, start, stop) - _between(experts, start, stop)
        weights += adapter * (stop - start)
        if index == where.output:
            weights += device_head_bytes(facts)
        kv = _between(sums.kv, start, stop) if split.kv_on_device else 0
        devices.append(DeviceBytes(weights, kv, compute[index]))
    host = where.host.stop
    left = experts[-1] - experts[host]
    kept = sums.repacked[host] + min(left, _between(sums.repacked_experts, host, len(experts) - 1))
    return Placed(
        weights_bytes=sums.weights[host] + left + _host_input_bytes(facts),
        repacked_bytes=0 if split.is_pinned else kept,
        kv_bytes=sums.kv[-1] - sum(each.kv_bytes for each in devices),
        adapter_bytes=adapter * host,
        largest_layer_bytes=_largest_on_host(facts, host, split.expert_layers_on_host),
        devices=tuple(devices),
    )


def expert_sums(sums: LayerSums, layers_on_host: int) -> tuple[int, ...]:
    """Running sums of the experts that stay on the host, whatever lies on devices."""
    first = sums.experts[: layers_on_host + 1]
    return first + first[-1:] * (len(sums.experts) - len(first))


def adapter_layer_bytes(facts: ModelFacts, adapter_bytes: int) -> int:
    """Adapters weigh about the same in each layer."""
    return -(-adapter_bytes // facts.layer_count)


def is_tied(facts: ModelFacts) -> bool:
    """Whether the token embedding is the output head too."""
    return facts.output_bytes < facts.token_embedding_bytes // TIED_SHARE


def device_head_bytes(facts: ModelFacts) -> int:
    """The output head on a device. Of encoders a bound: what they have is partly inputs."""
    copied = is_tied(facts) and facts.model_class != "encoder"
    return facts.output_bytes + facts.token_embedding_bytes * copied


def _host_input_bytes(facts: ModelFacts) -> int:
    """What lies on the host whatever goes to devices: an encoder's positions are inputs too."""
    positions = facts.output_bytes if facts.model_class == "encoder" else 0
    return facts.token_embedding_bytes + positions


def _between(sums: tuple[int, ...], start: int, stop: int) -> int:
    return sums[stop] - sums[start]


def _largest_on_host(facts: ModelFacts, host_layers: int, expert_layers: int) -> int:
    largest, first = 0, 0
    for run in facts.layers:
        if first < host_layers:
            largest = max(largest, run.weight_bytes)
        elif first < expert_layers:
            largest = max(largest, run.expert_bytes, run.feed_forward_bytes)
        first += run.count
    return largest
