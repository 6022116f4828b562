"""Decodes one batch with a freshly built llama_cpp and opens libmtmd, in a process that may die.

Usage: python check.py SITE MODEL. SITE is a folder that holds the package ``llama_cpp``, MODEL a
small GGUF. Prints llama.cpp's system line and exits 0, or says on stderr what went wrong. Does not
own: reading its exit status, a killing signal among them (``wheel.py`` does that).
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from pathlib import Path

_TOKENS = 16


def decode_one_batch(model_path: Path) -> str:
    """Load ``model_path``, decode one batch, return llama.cpp's system line."""
    import llama_cpp  # noqa: PLC0415 - main() sets the path that it is found on

    libraries = Path(llama_cpp.__file__).parent / "lib"
    if any(libraries.glob("libggml-cpu-*.so")):
        # Kernels to choose from; the suffix names the registry that llama.cpp itself is bound to.
        registry = ctypes.CDLL(str(libraries / "libggml.so.0"))
        registry.ggml_backend_load_all_from_path(str(libraries).encode())
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(model_path).encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        sys.exit(f"llama.cpp cannot load {model_path}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = 256
    params.n_threads = params.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit("llama.cpp cannot make a context")
    tokens = (llama_cpp.llama_token * _TOKENS)(*range(1, _TOKENS + 1))
    status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, _TOKENS))
    if status != 0:
        sys.exit(f"llama_decode returned {status}")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits = llama_cpp.llama_get_logits_ith(context, -1)[:vocabulary]
    if not all(map(math.isfinite, logits)) or len(set(logits)) == 1:
        sys.exit("the logits of one batch are not numbers that a model gives")
    return str(llama_cpp.llama_print_system_info().decode().strip())


def open_mtmd() -> None:
    """Open the library of projectors; it must be bound to the libllama that is open already."""
    try:
        from llama_cpp import mtmd_cpp  # noqa: PLC0415 - as in decode_one_batch
    except (ImportError, OSError) as error:
        sys.exit(f"the wheel has no libmtmd, which projectors need (LLAVA_BUILD=ON): {error}")
    if not mtmd_cpp.mtmd_context_params_default().media_marker:
        sys.exit("libmtmd does not answer as its header says")
    maps = Path("/proc/self/maps")
    opened = set(re.findall(r"\S+/libllama\S*", maps.read_text())) if maps.exists() else set()
    if len(opened) > 1:
        sys.exit(f"libmtmd brings a llama.cpp of its own: {', '.join(sorted(opened))}")


def main() -> None:
    """Take SITE and MODEL from the command line."""
    site, model_path = map(Path, sys.argv[1:3])
    sys.path.insert(0, str(site))
    system = decode_one_batch(model_path)
    open_mtmd()
    print(system)


if __name__ == "__main__":
    main()
