"""Which layers, experts and cells go to devices: the search, and the speed that is expected.

Owns: the largest split that fits the devices, the cut over several, expected tokens/s. Does not
own: what a profile wants (``tiers.py``), context and parallel (``shapes.py``), whether the rest
fits the host (``placement.py``). Pure; bisections over running sums, never a loop over layers
times contexts. Next: ``shapes.py``.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.planner.compute_buffer import device_compute_bytes
from terrace.planner.geometry import DeviceSplit
from terrace.planner.layers import layer_sums
from terrace.planner.placed import (
    HEADROOM,
    adapter_layer_bytes,
    device_head_bytes,
    expert_sums,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace.planner.devices import DeviceRoom
    from terrace.planner.footprint import Extras
    from terrace.planner.geometry import Shape
    from terrace.planner.layers import LayerSums
    from terrace_runtime.contract import ModelFacts

HOST_BYTES_PER_SECOND = 50e9
"""How fast a host reads its memory: two channels of DDR5 to eight of DDR4. Decides what is fastest,
never what fits."""
MAX_WAYS = 12
UNPINNED_BACKENDS = frozenset({"metal", "opencl", "cpu"})
"""Backends without host buffers of their own (``get_host_buffer_type`` is NULL)."""


@dataclass(frozen=True, slots=True)
class Search:
    """One model with one size of context on the devices of one room."""

    facts: ModelFacts
    shape: Shape
    room: DeviceRoom
    extras: Extras
    sums: LayerSums
    costs: list[int]
    """Running sums of what each layer takes on a device, with all of its experts."""
    capacities: tuple[int, int]
    """Bytes of layers and head that one device takes, beside the compute buffers of a model that
    lies there in part, and of one that lies there whole."""
    is_dense: bool = False
    """What ``sums`` calls experts are feed-forward weights."""
    kv_on_device: bool = True
    """Cells lie with their layers; else all of them on the host, with attention."""

    @property
    def layer_count(self) -> int:
        """Layers without the head."""
        return len(self.sums.weights) - 1

    @property
    def has_experts(self) -> bool:
        """Whether layers have routed experts, which can lie apart from them."""
        return self.sums.experts[-1] > 0

    def whole(self) -> DeviceSplit | None:
        """Everything on devices; None where it does not fit."""
        return self._fitted(self._split(0, self.layer_count + 1))

    def fewest_experts(self) -> DeviceSplit | None:
        """All layers on devices, and as many of the experts as fit; None: not without them all."""
        count = self.layer_count
        if not self.fits(count, count + 1):
            return None
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if self.fits(middle, count + 1):
                high = middle
            else:
                low = middle + 1
        return self._fitted(self._split(low, count + 1))

    def most_layers(self, experts_on_host: int, most: int | None = None) -> DeviceSplit | None:
        """As many layers as fit, at least one beside the head; None: not even that."""
        found = self._most_layers(experts_on_host, most)
        return self._fitted(found) if found else None

    def fastest_between(self) -> DeviceSplit | None:
        """The fastest of some ways between all experts and none: exact up to so many layers."""
        step = -(-self.layer_count // MAX_WAYS)
        found = max(self._ways(step), key=self.speed, default=None)
        return self._fitted(found) if found else None

    def fuller(self, than: DeviceSplit, more_bytes: int) -> DeviceSplit | None:
        """The fastest split that leaves the host so many bytes less than ``than`` does.

        None: there is none. Only of experts are there several ways to fill a device as far.
        """
        least = self.device_bytes(than) + more_bytes
        if least > self._capacity(is_whole=False) * self.room.count:
            return None
        enough = [each for each in self._ways() if self.device_bytes(each) >= least]
        found = max(enough, key=self.speed, default=None)
        return self._fitted(found) if found else None

    def fullest(self) -> DeviceSplit | None:
        """The split that leaves the host least; None where not one layer fits."""
        found = max(self._ways(), key=self.device_bytes, default=None)
        return self._fitted(found) if found else None

    def _ways(self, step: int = 1) -> list[DeviceSplit]:
        """For each number of layers without experts, as many layers as fit."""
        found = (self._most_layers(experts) for experts in range(0, self.layer_count + 1, step))
        return [each for each in found if each]

    def _most_layers(self, experts_on_host: int, most: int | None = None) -> DeviceSplit | None:
        costs = self._costs(experts_on_host)
        room = self._capacity(is_whole=False)
        start = _first_layer(costs, self._head, [room] * self.room.count)
        # All layers with all their experts are ``whole``, which takes other compute buffers.
        layers = min(self.layer_count + 1 - start, self.layer_count + bool(experts_on_host))
        layers = min(layers, most) if most is not None else layers
        if layers < 2:  # noqa: PLR2004 - the head alone is no layer
            return None
        return self._split(experts_on_host, layers)

    def device_bytes(self, split: DeviceSplit) -> int:
        """Weights, cells and adapters on all devices."""
        costs = self._costs(split.expert_layers_on_host)
        return costs[-1] - costs[self.layer_count + 1 - split.device_layers] + self._head

    def fits(self, experts_on_host: int, device_layers: int) -> bool:
        """Whether some cut over the devices keeps each within its memory."""
        is_whole = not experts_on_host and device_layers > self.layer_count
        capacity = self._capacity(is_whole=is_whole)
        costs = self._costs(experts_on_host)
        start = _first_layer(costs, self._head, [capacity] * self.room.count)
        return start <= self.layer_count + 1 - device_layers

    def missing_bytes(self, experts_on_host: int, device_layers: int) -> int:
        """By how much all devices together are too small for it, as they would be cut; 0: not."""
        is_whole = not experts_on_host and device_layers > self.layer_count
        capacity = self._capacity(is_whole=is_whole)
        costs = self._costs(experts_on_host)
        first = self.layer_count + 1 - device_layers
        needed = costs[-1] - costs[first] + self._head
        if self.fits(experts_on_host, device_layers):
            return 0
        return max(1, needed - capacity * self.room.count)

    def speed(self, split: DeviceSplit) -> float:
        """Expected tokens/s of one conversation.

        Each token reads all weights but the experts it does not go through, and its cells: those on
        devices one device after another, those on the host as fast as a host reads.
        """
        sums, facts = self.sums, self.facts
        first = self.layer_count + 1 - split.device_layers
        used = facts.experts_used / facts.experts if facts.experts else 1.0
        experts = expert_sums(sums, split.expert_layers_on_host)
        on_device = _plain(sums, self.layer_count) - _plain(sums, first)
        moved = sums.experts[-1] - sums.experts[first] - (experts[-1] - experts[first])
        on_device += moved * used + device_head_bytes(facts)
        on_host = _plain(sums, first) + (sums.experts[-1] - moved) * used
        read = sums.kv_read[-1] - sums.kv_read[first] if split.kv_on_device else 0
        on_device, on_host = on_device + read, on_host + sums.kv_read[-1] - read
        seconds = on_device / self.room.bytes_per_second + on_host / HOST_BYTES_PER_SECOND
        return 1 / max(seconds, 1e-9)

    @property
    def _head(self) -> int:
        return device_head_bytes(self.facts)

    def _capacity(self, *, is_whole: bool) -> int:
        """Bytes of layers and head that one device takes."""
        return self.capacities[is_whole]

    def _costs(self, experts_on_host: int) -> list[int]:
        """Running sums of what each layer takes on a device."""
        if not experts_on_host:
            return self.costs
        experts = expert_sums(self.sums, experts_on_host)
        return [cost - each for cost, each in zip(self.costs, experts, strict=True)]

    def _split(self, experts_on_host: int, device_layers: int) -> DeviceSplit:
        return _bare_split(
            self.room,
            experts_on_host,
            device_layers,
            moves_feed_forward=self.is_dense and experts_on_host > 0,
            kv_on_device=self.kv_on_device,
        )

    def _fitted(self, split: DeviceSplit) -> DeviceSplit | None:
        """``split`` with the cut that leaves the fullest device the most room."""
        if not self.fits(split.expert_layers_on_host, split.device_layers):
            return None
        if split.devices == 1:
            return split
        costs = self._costs(split.expert_layers_on_host)
        first = self.layer_count + 1 - split.device_layers
        return replace(split, tensor_split=_even_cut(costs, self._head, first, split.devices))


def search(
    facts: ModelFacts,
    shape: Shape,
    room: DeviceRoom,
    extras: Extras,
    *,
    share: float = 1.0,
    read_tokens: int = 0,
    is_dense: bool = False,
    kv_on_device: bool = True,
) -> Search:
    """A search for ``shape`` as it is without a split.

    ``read_tokens``: how long the conversation is whose speed is expected. ``is_dense``:
    feed-forward weights may stay on the host as experts may.
    """
    sums = layer_sums(facts, shape, read_tokens, is_dense=is_dense)
    adapter = adapter_layer_bytes(facts, extras.adapter_bytes)
    rows = zip(sums.weights, sums.kv, strict=True)
    costs = [weights + kv * kv_on_device + n * adapter for n, (weights, kv) in enumerate(rows)]
    left = int(room.memory_bytes * share) - room.margin_bytes - extras.correction.device_bytes
    taken = []
    for device_layers in (facts.layer_count, facts.layer_count + 1):
        split = _bare_split(room, 0, device_layers, kv_on_device=kv_on_device)
        with_split = replace(shape, split=split)
        compute = max(device_compute_bytes(facts, with_split))
        taken.append(compute + compute // HEADROOM)
    capacities = (left - taken[0], left - taken[1])
    return Search(
        facts, shape, room, extras, sums, costs, capacities, is_dense, kv_on_device=kv_on_device
    )


def _bare_split(
    room: DeviceRoom,
    experts_on_host: int,
    device_layers: int,
    *,
    kv_on_device: bool,
    moves_feed_forward: bool = False,
) -> DeviceSplit:
    return DeviceSplit(
        device_layers=device_layers,
        kv_on_device=kv_on_device,
        moves_feed_forward=moves_feed_forward,
        devices=room.count,
        expert_layers_on_host=experts_on_host,
        is_pinned=room.backend not in UNPINNED_BACKENDS,
        is_unified=room.is_unified,
    )


def _plain(sums: LayerSums, count: int) -> float:
    """Weights of the first ``count`` layers that every token reads."""
    return float(sums.weights[count] - sums.experts[count])


def _first_layer(costs: Sequence[int], head: int, capacities: Sequence[int]) -> int:
    """The first layer that still fits when devices are filled from the last layer back.

    Filling each as far as it goes is the best that any cut does. One more than there are layers:
    not even the head fits.
    """
    stop = len(costs) - 1
    for index, capacity in enumerate(reversed(capacities)):
        left = capacity - head if index == 0 else capacity
        if left < 0:
            return stop + 1 if index == 0 else stop
        stop = bisect_left(costs, costs[stop] - left, 0, stop)
    return stop


def _even_cut(costs: Sequence[int], head: int, first: int, devices: int) -> tuple[float, ...]:
    """Layers per device, the head counted as one, so that the fullest device is least full."""
    last = len(costs) - 1
    low, high = 0, costs[last] - costs[first] + head
    while low < high:
        middle = (low + high) // 2
        if _first_layer(costs, head, [middle] * devices) <= first:
            high = middle
        else:
            low = middle + 1
    counts, stop = [], last
    for index in range(devices):
        left = low - head if index == 0 else low
        start = max(first, bisect_left(costs, costs[stop] - left, 0, stop))
        counts.append(stop - start + (index == 0))
        stop = start
    return tuple(float(count) for count in reversed(counts))
