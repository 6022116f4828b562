"""Which bytes of the model lie where: RuntimeConfig.offload as llama.cpp's parameters.

Owns: every setting of ``contract.Offload`` with its effect, and the refusal, by the setting's name,
of what this build or this machine cannot do. Nothing falls back in silence. Does not own: calls
into ggml (``devices.py``) or loading (``llama.py``, which hands the binding in, for it alone
imports it). docs/offload.md says what each setting does. Next: ``llama.py`` opens the context.
"""

from __future__ import annotations

import ctypes
import math
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from terrace_runtime.backend import BackendError
from terrace_runtime.backend.devices import Attention

if TYPE_CHECKING:
    from terrace_runtime.backend.devices import Device, Devices
    from terrace_runtime.backend.loadlog import LoadLog
    from terrace_runtime.contract import Offload, RuntimeConfig

KV_TYPES: Final = {"f16": 1, "q8_0": 8, "q4_0": 2}
"""ggml's numbers of the types."""
_EXPERTS: Final = r"^blk\.({})\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_CAP_IPC_LOCK = 14
_MIB = 1024 * 1024
_NAME_BYTES = 64
_BLOCK = 32
"""Values of one block of q8_0 and q4_0."""


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override, which the binding leaves out."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class Placement:
    """One Offload on one machine: refused when it is made, then written into model parameters.

    It must live until the model is loaded, for C reads its arrays.
    """

    def __init__(self, offload: Offload, devices: Devices, file_bytes: int) -> None:
        """Raises BackendError naming the setting, what stands against it and the way out."""
        self._offload = offload
        self._devices = devices
        _check_layers(offload, devices.gpus)
        _check_split(offload.tensor_split, devices.gpus)
        if offload.weights == "locked":
            _make_lockable(file_bytes)
        self.patterns = _patterns(offload)
        named = {device.buffer_type: device.buffer_handle for device in devices.all}
        rows = [
            _Override(pattern.encode(), _buffer(number, name, named))
            for number, (pattern, name) in enumerate(self.patterns)
        ]
        self._overrides = (_Override * (len(rows) + 1))(*rows)
        self._chosen = (ctypes.c_void_p * 1)()

    def fill(self, params: Any, lib: Any) -> None:
        """Set the fields of a llama_model_params."""
        offload = self._offload
        params.n_gpu_layers = offload.device_layers
        params.load_mode = {
            "mapped": lib.LLAMA_LOAD_MODE_MMAP,
            "loaded": lib.LLAMA_LOAD_MODE_NONE,
            "locked": lib.LLAMA_LOAD_MODE_MMAP_MLOCK,
            "paged": lib.LLAMA_LOAD_MODE_MMAP,
        }[offload.weights]
        # Repacked weights are a copy in anonymous memory: it cannot be paged back to the file, and
        # llama.cpp does not lock it.
        params.use_extra_bufts = offload.weights in {"mapped", "loaded"}
        if self.patterns:
            params.tensor_buft_overrides = ctypes.addressof(self._overrides)
        if offload.tensor_split:
            # llama.cpp reads as many as it has devices, so the array is as long as it can be.
            room = max(int(lib.llama_max_devices()), len(offload.tensor_split))
            self._split = (ctypes.c_float * room)(*offload.tensor_split)
            params.tensor_split = ctypes.cast(self._split, ctypes.POINTER(ctypes.c_float))
        if offload.device_layers == 0 and not self._names_a_device():
            # An empty list: else llama.cpp takes compute buffers on devices that hold nothing.
            params.devices = ctypes.addressof(self._chosen)

    def _names_a_device(self) -> bool:
        host = self._devices.cpu.buffer_type
        return any(name != host for _, name in self.patterns)

    def check_loaded(self, log: LoadLog) -> None:
        """Refuse what llama.cpp passed over in silence; raises BackendError."""
        for number, (pattern, _) in enumerate(self.patterns):
            if not any(re.search(pattern, name) for name in log.overridden):
                field = _override_field(self._offload, number)
                raise BackendError(
                    f"{field}: no tensor of this model matches {pattern}; correct or remove it"
                )
        if self._offload.weights == "locked" and log.lock_failure:
            raise BackendError(
                f"offload.weights is locked, but the kernel refused: {log.lock_failure}. "
                "Grant IPC_LOCK or a higher memlock limit, or set it to mapped"
            )


def check_context(context_tokens: int, trained_tokens: int) -> None:
    """Refuse a context longer than the model's own; 0: the model does not say."""
    if trained_tokens and context_tokens > trained_tokens:
        raise BackendError(
            f"context_tokens is {context_tokens}, but this model was trained for "
            f"{trained_tokens} tokens: set at most {trained_tokens}"
        )


def check_attention(config: RuntimeConfig, devices: Devices, model: ModelShape) -> None:
    """Refuse KV types whose flash attention would fall back to the CPU, or exist nowhere.

    Attention runs where the KV lies, so a device is asked when it holds layers and their KV. The
    device itself answers: CUDA's kernels, for one, are compiled for equal pairs alone unless the
    build says otherwise (GGML_CUDA_FA_QUANTS).
    """
    pair = (config.kv_key_type, config.kv_value_type)
    lengths = (model.key_length, model.value_length)
    for kind, length in zip(pair, lengths, strict=True):
        if kind != "f16" and length % _BLOCK:
            raise BackendError(
                f"kv types {pair[0]}/{pair[1]}: {kind} packs {_BLOCK} values and this model's "
                f"heads have {length}: set f16"
            )
    if not model.heads:
        return
    attention = Attention(
        *lengths, model.heads, model.kv_heads, KV_TYPES[pair[0]], KV_TYPES[pair[1]]
    )
    for device in _attending(config.offload, devices):
        if not devices.can_attend(device, attention):
            raise BackendError(
                f"kv types {pair[0]}/{pair[1]}: this build has no flash attention kernel for them "
                f"on {device.name} (heads of {lengths[0]}): {_other_pairs(devices, device, model)}"
                "or set offload.kv_on_device to false"
            )


class ModelShape:
    """What attention needs to know of a loaded model, from its metadata."""

    def __init__(self, lib: Any, model: Any) -> None:
        """Asks llama.cpp; a key that is missing has the architecture's default."""
        self._lib, self._model = lib, model
        self.architecture = self._text("general.architecture")
        self.heads = int(lib.llama_model_n_head(model))
        self.kv_heads = max(1, int(lib.llama_model_n_head_kv(model)))
        even = int(lib.llama_model_n_embd(model)) // self.heads if self.heads else 0
        attention = f"{self.architecture}.attention."
        self.key_length = int(self._text(f"{attention}key_length") or even)
        self.value_length = int(self._text(f"{attention}value_length") or even)

    def _text(self, key: str) -> str:
        room = ctypes.create_string_buffer(_NAME_BYTES)
        found = self._lib.llama_model_meta_val_str(self._model, key.encode(), room, _NAME_BYTES)
        return room.value.decode("utf-8", "replace") if found >= 0 else ""


def _attending(offload: Offload, devices: Devices) -> list[Device]:
    on_device = offload.kv_on_device and offload.device_layers != 0
    return [*(devices.gpus if on_device else ()), devices.cpu]


def _check_layers(offload: Offload, gpus: tuple[Device, ...]) -> None:
    if offload.device_layers > 0 and not gpus:
        raise BackendError(
            f"offload.device_layers is {offload.device_layers}, but this build of llama.cpp found "
            "no device other than the CPU: set it to 0, or use an image built for the device"
        )


def _check_split(split: tuple[float, ...], gpus: tuple[Device, ...]) -> None:
    if not split:
        return
    if len(split) > len(gpus):
        raise BackendError(
            f"offload.tensor_split has {len(split)} shares, but llama.cpp found {len(gpus)} "
            "devices other than the CPU: give at most one share per device"
        )
    if not all(math.isfinite(share) and share >= 0 for share in split) or sum(split) <= 0:
        raise BackendError(
            f"offload.tensor_split is {', '.join(f'{share:g}' for share in split)}: shares are "
            "numbers of 0 or more, and not all of them 0"
        )


def _patterns(offload: Offload) -> list[tuple[str, str]]:
    """The user's overrides, which come first and so win, then the experts' one."""
    found = list(offload.tensor_overrides)
    for pattern, _ in found:
        try:
            re.compile(pattern)
        except re.error as error:
            raise BackendError(
                f"offload.tensor_overrides: {pattern} is no pattern ({error})"
            ) from error
    if offload.expert_layers_on_host:
        layers = "|".join(map(str, range(offload.expert_layers_on_host)))
        found.append((_EXPERTS.format(layers), "CPU"))
    return found


def _override_field(offload: Offload, number: int) -> str:
    if number < len(offload.tensor_overrides):
        return "offload.tensor_overrides"
    return f"offload.expert_layers_on_host is {offload.expert_layers_on_host}"


def _buffer(number: int, name: str, named: dict[str, int]) -> int:
    if name not in named:
        raise BackendError(
            f"offload.tensor_overrides[{number}] names the buffer type {name}, but this build has "
            f"{', '.join(sorted(named))}"
        )
    return named[name]


def _make_lockable(num_bytes: int) -> None:
    """Raise the soft limit as far as allowed; raises BackendError when that is too little."""
    if _may_lock_all():
        return
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard != resource.RLIM_INFINITY and hard < num_bytes:
        raise BackendError(
            f"offload.weights is locked, which needs {_mib(num_bytes)} of locked memory, but the "
            f"limit (RLIMIT_MEMLOCK) is {_mib(hard)}: raise it, grant IPC_LOCK, or set it to mapped"
        )
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def _may_lock_all(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has CAP_IPC_LOCK, to which the limit does not apply."""
    try:
        text = status.read_text()
    except OSError:
        return False
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return bool(found and int(found[1], 16) >> _CAP_IPC_LOCK & 1)


def _other_pairs(devices: Devices, device: Device, model: ModelShape) -> str:
    """The pairs that ``device`` can do, as advice."""
    shape = (model.key_length, model.value_length, model.heads, model.kv_heads)
    fitting = [
        f"{key}/{value}"
        for key, key_type in KV_TYPES.items()
        for value, value_type in KV_TYPES.items()
        if (key == "f16" or not shape[0] % _BLOCK)
        and (value == "f16" or not shape[1] % _BLOCK)
        and devices.can_attend(device, Attention(*shape, key_type, value_type))
    ]
    return f"it has {', '.join(fitting)}; set one of them " if fitting else ""


def _mib(num_bytes: int) -> str:
    return f"{num_bytes} bytes ({num_bytes / _MIB:.0f} MiB)"
