"""One side of ``kernels.py``: decodes with one build of llama.cpp whenever it is told to.

Usage: ``python kernel_worker.py SITE MODEL``; SITE is a folder that holds the package llama_cpp.
Each line on stdin is a round; its answer is a line of JSON: prompt and generated tokens per second
of CPU time. On one thread, so that the time is that thread's own, whoever else uses the machine.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

PROMPT_TOKENS, GENERATED_TOKENS = 512, 64
_CONTEXT = 1024


class Worker:
    """A model and a context in one build."""

    def __init__(self, site: Path, model: str) -> None:
        # Before the environment's own build.
        sys.path.insert(0, str(site))
        import llama_cpp.llama_cpp as lib  # noqa: PLC0415 - found on the path that was set here

        from terrace_runtime.backend import dispatch  # noqa: PLC0415 - as above

        assert Path(lib.__file__).is_relative_to(site), lib.__file__
        dispatch.start(lib)
        self._lib: Any = lib
        self._model = lib.llama_model_load_from_file(
            model.encode(), lib.llama_model_default_params()
        )
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = _CONTEXT, PROMPT_TOKENS, PROMPT_TOKENS
        params.n_threads = params.n_threads_batch = 1
        self._context = lib.llama_init_from_model(self._model, params)
        assert self._context, f"no context for {model}"

    def round(self) -> dict[str, float]:
        """Tokens per second of CPU time: ``prefill`` and ``decode``."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        prefill_s = self._timed(PROMPT_TOKENS)
        decode_s = sum(self._timed(1) for _ in range(GENERATED_TOKENS))
        return {"prefill": PROMPT_TOKENS / prefill_s, "decode": GENERATED_TOKENS / decode_s}

    def _timed(self, count: int) -> float:
        tokens = (self._lib.llama_token * count)(*(300 + number for number in range(count)))
        batch = self._lib.llama_batch_get_one(tokens, count)
        started = time.thread_time()
        status = self._lib.llama_decode(self._context, batch)
        self._lib.llama_synchronize(self._context)
        assert status == 0, status
        return time.thread_time() - started


def main() -> None:
    """Answer until stdin ends."""
    worker = Worker(Path(sys.argv[1]), sys.argv[2])
    for _ in sys.stdin:
        print(json.dumps(worker.round()), flush=True)


if __name__ == "__main__":
    main()
