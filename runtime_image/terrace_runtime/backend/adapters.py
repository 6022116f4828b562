"""LoRA adapters of a loaded model: read, checked against it, and put in use one at a time.

Owns: the adapters' handles and every refusal of a file that does not fit. Does not own: whose turn
it is (``engine.adapters``) or the binding; ``llama.py`` hands it in, for it alone imports it. An
adapter file is untrusted: its header is walked with bounds before llama.cpp, which asserts on some
of it, may see it. Next: ``engine.core`` calls ``Backend.use_adapter`` between steps.
"""

from __future__ import annotations

import ctypes
import hashlib
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from terrace_runtime.backend import DECODE_OK, BackendError
from terrace_runtime.contract import pod_path
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.gguf_header import Header, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.backend import Backend
    from terrace_runtime.backend.loadlog import LoadLog
    from terrace_runtime.contract import Adapter

_MATRIX_TYPES: Final = frozenset({"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"})
_WARM_UP_TOKENS = 16


class Adapters:
    """All adapters of one model, by name."""

    def __init__(self, lib: Any, adapters: tuple[Adapter, ...]) -> None:
        """Nothing is loaded yet."""
        self._lib = lib
        self._settings = {one.name: one for one in adapters}
        self._loaded: dict[str, Any] = {}
        self.current = ""
        """The one in use."""

    def load(self, model: Any, architecture: str, log: LoadLog) -> None:
        """Before any context is opened, which reserves for them; raises BackendError."""
        for name, adapter in self._settings.items():
            path = pod_path(adapter.path)
            _check_file(adapter, path, architecture)
            loaded = self._lib.llama_adapter_lora_init(model, str(path).encode())
            if not loaded:
                why = log.complaint or "llama.cpp gave no reason"
                raise BackendError(f"adapter {name} ({path}) does not fit this model: {why}")
            self._loaded[name] = loaded
            if self._lib.llama_adapter_get_alora_n_invocation_tokens(loaded):
                raise BackendError(
                    f"adapter {name} is an activated LoRA, in use from certain tokens on, which "
                    "is not supported: use a plain LoRA"
                )

    def use(self, context: Any, name: str) -> None:
        """See ``Backend.use_adapter``."""
        if name and name not in self._loaded:
            raise BackendError(f"there is no adapter {name}")
        self.current = name
        chosen = [self._loaded[name]] if name else []
        handles = (ctypes.c_void_p * 1)(*[ctypes.cast(one, ctypes.c_void_p) for one in chosen])
        scales = (ctypes.c_float * 1)(self._settings[name].scale if name else 0.0)
        kind = ctypes.POINTER(self._lib.llama_adapter_lora_p_ctypes)
        self._lib.llama_set_adapters_lora(context, ctypes.cast(handles, kind), len(chosen), scales)

    def warm_up(self, backend: Backend) -> float:
        """Decode with each; returns the seconds that a switch costs, 0 without adapters."""
        if not self._loaded:
            return 0.0
        some = next(iter(self._loaded))
        turns = [_try(backend, name) for name in (*self._loaded, "", some, "", some, "")]
        # Of several, for the first decode of all has more to do and the machine has other work.
        first = sorted(turn[0] for turn in turns[-4:])
        return max(0.0, first[1] - min(turn[1] for turn in turns))

    def close(self) -> None:
        """Before the model is freed; safe to call twice."""
        while self._loaded:
            self._lib.llama_adapter_lora_free(self._loaded.popitem()[1])


def _try(backend: Backend, name: str) -> tuple[float, float]:
    """Seconds of the first decode with ``name``, and of the second."""
    backend.use_adapter(name)
    seconds = []
    for _ in range(2):
        batch = backend.batch
        batch.clear()
        batch.extend([0] * min(_WARM_UP_TOKENS, batch.capacity), 0, 0, outputs=1)
        started = time.perf_counter()
        code = backend.decode()
        finite = code == DECODE_OK and bool(np.isfinite(backend.logits()).all())
        seconds.append(time.perf_counter() - started)
        if not finite:
            why = f"decode returned {code}" if code else "its logits are not numbers"
            raise BackendError(f"adapter {name} does not work with this model: {why}")
        backend.seq_rm(0)
    batch.clear()
    return seconds[0], seconds[1]


def _check_file(adapter: Adapter, path: Path, architecture: str) -> None:
    """Everything that shows without llama.cpp; raises BackendError naming the adapter."""
    about = f"adapter {adapter.name} ({path})"
    try:
        with path.open("rb") as file:
            header = read_header(file, path.stat().st_size)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackendError(f"{about} cannot be read: {error.strerror}") from error
    except FetchError as error:
        raise BackendError(f"{about} is not usable: {error}") from error
    if digest != adapter.digest:
        raise BackendError(f"{about} has sha256 {digest}, not {adapter.digest}: fetch it again")
    reason = _misfit(header, architecture)
    if reason:
        raise BackendError(f"{about} does not fit this model: {reason}")


def _misfit(header: Header, architecture: str) -> str:
    known = header.metadata
    if known.get("general.type") != "adapter" or known.get("adapter.type") != "lora":
        return "it is a GGUF, but not of a LoRA adapter (general.type, adapter.type)"
    if known.get("general.architecture") != architecture:
        return f"it is for {known.get('general.architecture')!r:.64}, not for {architecture}"
    if not isinstance(known.get("adapter.lora.alpha", 0.0), float):
        return "adapter.lora.alpha is no 32-bit float"
    odd = [t for t in header.tensors if len(t.shape) > 1 and t.type.name not in _MATRIX_TYPES]
    if odd:
        return f"tensor {odd[0].name} is of type {odd[0].type.name}, no matrix of weights"
    return "" if header.tensors else "it holds no tensors"
