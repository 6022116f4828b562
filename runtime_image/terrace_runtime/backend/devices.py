"""The devices that this build of llama.cpp found: names, memory, and what their kernels can do.

Owns: every call into ggml, which llama_cpp does not bind: by ctypes, on the handle of libllama,
whose dependencies the loader searches too (the wheel holds copies of libggml; opening another one
would be a second registry without devices). Does not own: what lies where (``offload.py``). Next:
``llama.py`` hands the handle in, for it alone imports llama_cpp.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from terrace_runtime.backend import BackendError
from terrace_runtime.contract import DeviceMemory

if TYPE_CHECKING:
    from terrace_runtime.backend.loadlog import LoadLog

GPU_TYPES: Final = frozenset({1, 2})
"""GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU; 0 is the CPU, 3 an accelerator of its libraries."""
_F32, _F16 = 0, 1
_PROBE_BYTES = 64 * 1024
_PROBE_TOKENS = 32
_PROBE_CELLS = 256
_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t


@dataclass(frozen=True, slots=True)
class Device:
    """One device of ggml's registry."""

    handle: int
    name: str
    description: str
    is_gpu: bool
    buffer_type: str
    """Name of the buffers that it computes on, as --override-tensor takes it."""
    buffer_handle: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Shape and types of one layer's flash attention."""

    key_length: int
    value_length: int
    heads: int
    kv_heads: int
    key_type: int
    value_type: int
    """Types by ggml's numbers."""


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class Devices:
    """ggml's registry; valid after llama_backend_init."""

    def __init__(self, handle: Any) -> None:
        """``handle`` is the library that llama_cpp opened. Raises BackendError for another ggml."""
        self._handle = handle
        get = self._bind("ggml_backend_dev_get", _POINTER, _SIZE)
        count = self._bind("ggml_backend_dev_count", _SIZE)()
        self.all = tuple(self._device(get(index)) for index in range(count))
        self.gpus = tuple(device for device in self.all if device.is_gpu)

    def _bind(self, name: str, restype: Any, *argtypes: Any) -> Any:
        try:
            return ctypes.CFUNCTYPE(restype, *argtypes)((name, self._handle))
        except AttributeError as error:
            raise BackendError(f"llama.cpp's libraries have no function {name}") from error

    def _device(self, handle: int) -> Device:
        text, number = ctypes.c_char_p, ctypes.c_int
        kind = self._bind("ggml_backend_dev_type", number, _POINTER)(handle)
        buffers = self._bind("ggml_backend_dev_buffer_type", _POINTER, _POINTER)(handle)
        name = self._bind("ggml_backend_dev_name", text, _POINTER)(handle)
        about = self._bind("ggml_backend_dev_description", text, _POINTER)(handle)
        buffer_name = self._bind("ggml_backend_buft_name", text, _POINTER)(buffers)
        return Device(
            handle, name.decode(), about.decode(), kind in GPU_TYPES, buffer_name.decode(), buffers
        )

    @property
    def cpu(self) -> Device:
        """The CPU."""
        return next(device for device in self.all if not device.is_gpu)

    def memory(self, device: Device) -> tuple[int, int]:
        """Free and total bytes, as the device's driver tells them."""
        free, total = _SIZE(), _SIZE()
        ask = self._bind("ggml_backend_dev_memory", None, _POINTER, *[ctypes.POINTER(_SIZE)] * 2)
        ask(device.handle, ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def report(self, log: LoadLog) -> tuple[DeviceMemory, ...]:
        """Bytes by device as llama.cpp told them while loading; host memory comes last."""
        names = [device.name for device in self.gpus]
        found = []
        for device in self.gpus:
            free, total = self.memory(device)
            sizes = log.device_bytes(device.name)
            found.append(_memory(device, sizes, free_bytes=free, total_bytes=total))
        return (*found, _memory(self.cpu, log.host_bytes(names)))

    def can_attend(self, device: Device, attention: Attention) -> bool:
        """Whether ``device`` has a flash-attention kernel for these types and lengths.

        Asked of the device itself, with a node that has no data: what a build's kernels were
        compiled for is known nowhere else.
        """
        context = self._bind("ggml_init", _POINTER, _InitParams)(
            _InitParams(_PROBE_BYTES, None, True)
        )
        if not context:
            raise BackendError("ggml cannot make a context of 64 KiB")
        try:
            node = self._attention_node(context, attention)
            supports = self._bind("ggml_backend_dev_supports_op", ctypes.c_bool, _POINTER, _POINTER)
            return bool(supports(device.handle, node))
        finally:
            self._bind("ggml_free", None, _POINTER)(context)

    def _attention_node(self, context: int, one: Attention) -> int:
        tensor = self._bind(
            "ggml_new_tensor_4d", _POINTER, _POINTER, ctypes.c_int, *[ctypes.c_int64] * 4
        )
        query = tensor(context, _F32, one.key_length, _PROBE_TOKENS, one.heads, 1)
        key = tensor(context, one.key_type, one.key_length, _PROBE_CELLS, one.kv_heads, 1)
        value = tensor(context, one.value_type, one.value_length, _PROBE_CELLS, one.kv_heads, 1)
        mask = tensor(context, _F16, _PROBE_CELLS, _PROBE_TOKENS, 1, 1)
        attend = self._bind("ggml_flash_attn_ext", _POINTER, *[_POINTER] * 5, *[ctypes.c_float] * 3)
        node: int = attend(context, query, key, value, mask, one.key_length**-0.5, 0.0, 0.0)
        return node


def _memory(device: Device, sizes: tuple[int, int, int], **limits: int) -> DeviceMemory:
    weights, kv, compute = sizes
    return DeviceMemory(
        name=device.name,
        description=device.description[:128],
        weights_bytes=weights,
        kv_bytes=kv,
        compute_bytes=compute,
        **limits,
    )
