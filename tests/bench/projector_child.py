"""A process that opens a projector and encodes its largest image; prints what that took as JSON.

``python -m bench.projector_child FILE MODEL WIDTH HEIGHT ROWS``: MODEL is a text model whose rows
are as wide, of which the vocabulary alone is loaded; ROWS is the bound of an image's, 0: libmtmd's.
Owns: the measurement, with libmtmd set up as
``backend/mtmd.py`` does. Compute bytes are what libmtmd says of its graph's buffer; anonymous bytes
are the growth of RssAnon over everything that was there before the projector, at its peak.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import threading
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import mtmd_cpp

_BUFFER = re.compile(r"compute buffer size = +([0-9.]+) MiB")


def main(file: str, model_file: str, width: int, height: int, rows: int) -> None:
    """Measure once; a process does so for one projector."""
    logged: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator] # llama_cpp has no types
    def log(_level: int, text: bytes, _data: Any) -> None:
        logged.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    mtmd_cpp.mtmd_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(model_file.encode(), model_params)
    before = _anonymous_bytes()
    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu = False
    # On a busy machine two threads wait for each other much longer than they compute.
    params.n_threads = 1
    params.warmup = True
    params.batch_max_tokens = 1
    if rows:
        params.image_max_tokens = rows
    context = mtmd_cpp.mtmd_init_from_file(file.encode(), model, params)
    if not context:
        sys.exit("".join(logged)[-500:])
    opened = _anonymous_bytes()
    watch = _Watch()
    pieces = _encode(context, width, height, logged)
    peak = watch.end()
    sizes = [float(found) for found in _BUFFER.findall("".join(logged))]
    said = {
        "pieces": pieces,
        "compute_bytes": int(max(sizes, default=0) * 2**20),
        "opened_bytes": opened - before,
        "peak_bytes": max(peak, opened) - before,
    }
    print(json.dumps(said))


def _encode(context: Any, width: int, height: int, logged: list[str]) -> int:
    """Encode the first piece of an image without a colour; how many pieces there are."""
    pixels = (ctypes.c_uint8 * (3 * width * height))()
    bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, pixels)
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    part = mtmd_cpp.mtmd_input_part(None, bitmap)
    parts = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 1)(ctypes.pointer(part))
    if mtmd_cpp.mtmd_tokenize_from_parts(context, chunks, parts, 1, False):
        sys.exit("libmtmd cannot cut the image: " + "".join(logged)[-700:])
    pieces = 0
    for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
        chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == 0:
            continue
        pieces += 1
        if pieces == 1:
            mtmd_cpp.mtmd_encode_chunk(context, chunk)
    return pieces


class _Watch:
    """Looks at RssAnon until it is ended."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._most = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self._most = max(self._most, _anonymous_bytes())

    def end(self) -> int:
        self._done.set()
        self._thread.join()
        return max(self._most, _anonymous_bytes())


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    (found,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return int(found) * 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(value) for value in sys.argv[3:6]))
