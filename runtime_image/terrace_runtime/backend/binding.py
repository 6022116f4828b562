"""What we ask of the binding itself: its version, its structs, and functions as plain C calls.

Owns: the check that the installed llama-cpp-python is the one whose structs we fill, and function
objects of our own. Does not own: any call (``llama.py``, which hands the binding in). Next:
``llama.py``.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from terrace_runtime.backend import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

PINNED_VERSION: Final = "0.3.36"
LLAMA_COMMIT: Final = "0c1e57098"
_STRUCT_BYTES: Final = {"llama_model_params": 80, "llama_context_params": 160, "llama_batch": 56}
_MTMD_BYTES: Final = {"mtmd_context_params": 96, "mtmd_input_text": 24, "mtmd_input_part": 16}
_WRONG_BUILD: Final = (
    f"Terrace needs llama-cpp-python=={PINNED_VERSION}; reinstall it with "
    f"`pip install --force-reinstall llama-cpp-python=={PINNED_VERSION}`"
)
_ABORT_CALLBACKS: list[Any] = []
"""Never emptied: C holds the address of the last one."""


class Functions:
    """Function objects of our own.

    The binding types logits as POINTER(c_float), which makes a Python object per element, and
    converts arguments more slowly than plain argtypes do.
    """

    def __init__(self, lib: Any) -> None:
        """``lib`` is llama_cpp's low-level module."""
        self.library: Any = lib._lib  # noqa: SLF001 - the handle that it opened; none is public
        pointer, size, flags = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
        sequence = ctypes.c_int32
        state = (size, pointer, pointer, size, sequence, flags)
        self.decode = self.find("llama_decode", ctypes.c_int32, pointer, lib.llama_batch)
        self.get_logits = self.find("llama_get_logits", pointer, pointer)
        self.state_get = self.find("llama_state_seq_get_data_ext", *state)
        self.state_set = self.find("llama_state_seq_set_data_ext", *state)

    def find(self, name: str, restype: Any, *argtypes: Any) -> Any:
        """The function ``name``; raises BackendError when this build lacks it."""
        try:
            function = ctypes.CFUNCTYPE(restype, *argtypes)((name, self.library))
        except AttributeError as error:
            raise BackendError(f"llama.cpp has no function {name}: {_WRONG_BUILD}") from error
        return function


def mtmd_binding(lib: Any) -> Any:
    """The binding of libmtmd beside ``lib``; raises BackendError when this build lacks it."""
    try:
        mtmd = import_module(f"{lib.__package__}.mtmd_cpp")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"projector_path: this build of llama-cpp-python has no libmtmd ({error}): build it"
            " with LLAVA_BUILD=ON, as `make init` does, or serve without a projector"
        ) from error
    _check_structs(mtmd, _MTMD_BYTES)
    return mtmd


def watch_aborts(lib: Any, callback: Callable[[str], None]) -> None:
    """Have ``callback`` called with the last words of an abort, before the process dies."""
    base = ctypes.CDLL(str(Path(lib.__file__).parent / "lib" / "libggml-base.so.0"))
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
    held = kind(lambda message: callback((message or b"").decode("utf-8", "replace")))
    _ABORT_CALLBACKS.append(held)
    base.ggml_set_abort_callback(held)


def check_binding(lib: Any) -> None:
    """Refuse a llama-cpp-python whose structs are not the ones that we fill.

    They change in almost every release, and a wrong layout is not an error but a wrong setting.
    """
    _check_structs(lib, _STRUCT_BYTES)
    defaults = lib.llama_context_default_params()
    if (defaults.n_batch, defaults.n_seq_max, defaults.type_k) != (2048, 1, lib.GGML_TYPE_F16):
        raise BackendError(f"llama.cpp's context defaults are not the known ones: {_WRONG_BUILD}")


def _check_structs(module: Any, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        found = ctypes.sizeof(getattr(module, name))
        if found != size:
            raise BackendError(f"{name} has {found} bytes, not {size}: {_WRONG_BUILD}")
