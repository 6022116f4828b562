"""libmtmd's own way from text and an image to logits: what our rows and decodes are held against.

It opens the same files once more, in contexts of its own, and lets mtmd-helper cut batches, switch
causal attention and decode.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as lib
import llama_cpp.mtmd_cpp as mtmd
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_IMAGE = 1


class Reference:
    """A model and its projector."""

    def __init__(self, model: Path, projector: Path, batch_tokens: int) -> None:
        self._batch = batch_tokens
        self.model = lib.llama_model_load_from_file(
            str(model).encode(), lib.llama_model_default_params()
        )
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 512, batch_tokens, batch_tokens
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = lib.llama_init_from_model(self.model, params)
        settings = mtmd.mtmd_context_params_default()
        settings.use_gpu, settings.n_threads, settings.print_timings = False, 1, False
        self.eyes = mtmd.mtmd_init_from_file(str(projector).encode(), self.model, settings)
        assert all((self.model, self.context, self.eyes))

    def logits(self, before: str, image: NDArray[np.uint8], after: str) -> NDArray[np.float32]:
        """(vocabulary,) after ``before``, ``image`` (height, width, 3) and ``after``."""
        chunks = self._chunks(before, image, after)
        position = lib.llama_pos()
        code = mtmd.mtmd_helper_eval_chunks(
            self.eyes, self.context, chunks, 0, 0, self._batch, True, ctypes.byref(position)
        )
        assert code == 0
        size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        found = np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, -1), (size,)).copy()
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        mtmd.mtmd_input_chunks_free(chunks)
        return found

    def rows(self, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Embeddings of each piece of ``image``."""
        chunks = self._chunks("", image, "")
        found = list(self._rows(chunks))
        mtmd.mtmd_input_chunks_free(chunks)
        return found

    def _rows(self, chunks: Any) -> Iterator[NDArray[np.float32]]:
        width = lib.llama_model_n_embd_inp(self.model)
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == _IMAGE:
                assert mtmd.mtmd_encode_chunk(self.eyes, chunk) == 0
                shape = (mtmd.mtmd_input_chunk_get_n_tokens(chunk), width)
                address = mtmd.mtmd_get_output_embd(self.eyes)
                yield np.ctypeslib.as_array(address, shape).copy()

    def _chunks(self, before: str, image: NDArray[np.uint8], after: str) -> Any:
        height, width, _ = image.shape
        pixels = (ctypes.c_uint8 * image.nbytes).from_buffer_copy(image.tobytes())
        bitmap = mtmd.mtmd_bitmap_init(width, height, pixels)
        raw = before.encode() + mtmd.mtmd_default_marker() + after.encode()
        text = mtmd.mtmd_input_text(raw, len(raw), False, True)
        chunks = mtmd.mtmd_input_chunks_init()
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        assert mtmd.mtmd_tokenize(self.eyes, chunks, ctypes.byref(text), bitmaps, 1) == 0
        mtmd.mtmd_bitmap_free(bitmap)
        return chunks

    def close(self) -> None:
        """Free everything."""
        mtmd.mtmd_free(self.eyes)
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)
