"""Images into rows of embeddings with libmtmd, llama.cpp's own library for it, on the host's CPU.

Owns: loading a projector beside its model, every refusal that only both together show, and calls
into libmtmd. Does not own: what its header alone tells (``projector_file.py``), the binding
(``llama.py`` hands it in) or pixels' decoding. A client chooses an image's size, so nothing that
would end the process there may be reachable by it: ``_check_shape``. Next: the engine encodes, and
``embeddings.py`` has the model read the rows.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from typing_extensions import override

from terrace_runtime.backend import BackendError
from terrace_runtime.backend.loadlog import LoadLog, LogTap
from terrace_runtime.backend.projector import (
    MAX_SIDE,
    Grid,
    MediaChunk,
    Prepared,
    Projector,
    ProjectorError,
    check_image,
)
from terrace_runtime.backend.projector_file import read_projector
from terrace_runtime.models.projector_families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)
_MAX_RATIO: Final = 50
"""A side may be so many times the other: libmtmd aborts where one shrinks to nothing."""
_PROBED: Final = ((1, 1), (4, 1), (1, 4), (2, 1), (1, 2), (3, 2))
"""Shapes of images whose pieces are counted at load, in eighths of MAX_SIDE and as they are."""
_TRIED: Final = 32
"""Pixels of a side of the image that is encoded at load."""
_TEXT: Final = 0
"""mtmd.h, enum mtmd_input_chunk_type."""
_TAPS: list[LogTap] = []
"""Never emptied: C holds the address of the last one."""


class MtmdImage(Prepared):
    """Chunks as libmtmd made them, with the scaled pixels of each piece."""

    def __init__(self, mtmd: Any, chunks: Any) -> None:
        """Takes ``chunks``, an ``mtmd_input_chunks *``, into its keeping."""
        self._mtmd = mtmd
        self.pointer = chunks
        self._free = weakref.finalize(self, mtmd.mtmd_input_chunks_free, chunks)
        self._chunks: tuple[MediaChunk, ...] = ()

    def read(self, context: Any) -> None:
        """Look at what was made; ``context`` is the projector's."""
        self._chunks = tuple(self._read(context))

    def _read(self, context: Any) -> Iterator[MediaChunk]:
        mtmd = self._mtmd
        for index in range(mtmd.mtmd_input_chunks_size(self.pointer)):
            chunk = mtmd.mtmd_input_chunks_get(self.pointer, index)
            count = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
            if mtmd.mtmd_input_chunk_get_type(chunk) == _TEXT:
                size = ctypes.c_size_t()
                tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(size))
                yield MediaChunk(tokens=tuple(tokens[: size.value]))
            else:
                is_causal = not mtmd.mtmd_decode_use_non_causal(context, chunk)
                placed = mtmd.mtmd_decode_use_mrope(context)
                grid = self._grid(chunk, count) if placed else None
                yield MediaChunk(rows=count, is_causal=is_causal, grid=grid)

    def _grid(self, chunk: Any, count: int) -> Grid:
        """How the rows of a piece stand; ProjectorError where they do not stand line by line."""
        mtmd = self._mtmd
        piece = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        last = mtmd.mtmd_image_tokens_get_decoder_pos(piece, 0, count - 1)
        grid = Grid(last.x + 1, last.y + 1)
        span = int(mtmd.mtmd_input_chunk_get_n_pos(chunk))
        if last.t or last.z or span != max(grid) or count != grid.columns * grid.lines:
            raise ProjectorError(
                f"{count} rows over {span} positions, the last at {last.x, last.y}"
            )
        return grid

    @property
    @override
    def chunks(self) -> tuple[MediaChunk, ...]:
        return self._chunks

    @property
    def is_closed(self) -> bool:
        """The pixels are gone."""
        return not self._free.alive

    @override
    def close(self) -> None:
        self._free()


class MtmdProjector(Projector):
    """See the port. Weights and graph lie in host memory, on whatever device the model is."""

    def __init__(self, mtmd: Any, lib: Any, log: LoadLog) -> None:
        """``mtmd`` and ``lib`` are llama_cpp's low-level modules; ``log`` hears both of them."""
        self._mtmd = mtmd
        self._lib = lib
        self._log = log
        self._tap = LogTap(lib, mtmd.mtmd_log_set)
        _TAPS.append(self._tap)
        self._lock = threading.Lock()
        self._context: Any = None

    def load(self, path: Path, model: Any, threads: int, together: int) -> None:
        """Open ``path`` beside ``model``, a ``llama_model *``; raises BackendError.

        At most ``together`` rows can attend to each other.
        """
        self._about = f"projector_path: {path}"
        self._facts = read_projector(path)
        lib = self._lib
        # A model that is loaded for its vocabulary alone knows no width.
        self._width = int(lib.llama_model_n_embd_inp(model)) or self._facts.output_length
        self._vocabulary = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        self._tap.install(self._log)
        started = time.perf_counter()
        self._context = self._mtmd.mtmd_init_from_file(
            str(path).encode(), model, self._params(threads)
        )
        if not self._context:
            raise BackendError(f"{self._about} does not fit or cannot be loaded: {self._complaint}")
        self._check_loaded(together)
        opened = time.perf_counter()
        self._try_out()
        times = (opened - started, time.perf_counter() - opened)
        _LOG.info(
            "opened projector %s (%s) in %.2f s, an image took %.2f s", path, self.name, *times
        )

    def _params(self, threads: int) -> Any:
        params = self._mtmd.mtmd_context_params_default()
        params.use_gpu = False
        params.n_threads = threads
        params.print_timings = False
        # Only lays the graph out, so that its memory is taken now and told.
        params.warmup = True
        params.batch_max_tokens = 1
        if FAMILIES[self.name].is_placed:
            params.image_max_tokens = self._facts.max_rows
        return params

    def _check_loaded(self, together: int) -> None:
        mtmd = self._mtmd
        if not mtmd.mtmd_support_vision(self._context):
            raise BackendError(f"{self._about} takes no images: {self.name} is not for them")
        try:
            found = list(self._probe())
        except ProjectorError as error:
            raise BackendError(
                f"{self._about}: {self.name} gives rows positions that are not known ({error});"
                " it is the projector of another model, or of a kind that is not supported"
            ) from error
        pieces = [chunk for chunk in found if chunk.rows]
        if not pieces:
            raise BackendError(f"{self._about} makes nothing of an image: {self._complaint}")
        odd = [t for chunk in found for t in chunk.tokens if not 0 <= t < self._vocabulary]
        if odd:
            raise BackendError(
                f"{self._about}: the model's vocabulary lacks a token that {self.name} puts"
                " around images; it is the projector of another model"
            )
        most = max((chunk.rows for chunk in pieces if not chunk.is_causal), default=0)
        if most > together:
            raise BackendError(
                f"{self._about}: the {most} rows of an image attend to each other and need one"
                f" graph evaluation, which takes {together} tokens at most: set ubatch_tokens and"
                f" batch_tokens to {most} or more"
            )

    def _probe(self) -> Iterator[MediaChunk]:
        """Chunks of images of many shapes; no pixel is looked at."""
        for width, height in _PROBED:
            for unit in (1, 64, MAX_SIDE // 8):
                image = self._tokenize(None, width * unit, height * unit)
                if image is not None:
                    yield from image.chunks
                    image.close()

    def _try_out(self) -> None:
        """Encode an image, so that weights that end the process do so here and not in service."""
        try:
            image = self.prepare(bytes(_TRIED * _TRIED * 3), _TRIED, _TRIED)
            first = next(i for i, chunk in enumerate(image.chunks) if chunk.rows)
            self.encode(image, first)
        except ProjectorError as error:
            raise BackendError(f"{self._about} does not work: {error}") from error
        image.close()

    # Serving --------------------------------------------------------------------------------------

    @property
    @override
    def name(self) -> str:
        return self._facts.projector_type

    @property
    def is_placed(self) -> bool:
        """Rows have positions in two dimensions."""
        return bool(self._mtmd.mtmd_decode_use_mrope(self._context))

    @property
    @override
    def width(self) -> int:
        return self._width

    @property
    @override
    def weight_bytes(self) -> int:
        return self._facts.weight_bytes

    @property
    @override
    def compute_bytes(self) -> int | None:
        return self._log.compute_bytes

    @override
    def prepare(self, rgb: bytes, width: int, height: int) -> MtmdImage:
        check_image(rgb, width, height)
        self._check_shape(width, height)
        image = self._tokenize(rgb, width, height)
        if image is None:
            raise ProjectorError(f"{self.name} cannot cut it: {self._complaint}")
        return image

    def _check_shape(self, width: int, height: int) -> None:
        ratio = min(_MAX_RATIO, max(1, self._facts.image_size // 2))
        if max(width, height) > ratio * min(width, height):
            raise ProjectorError(
                f"{width} x {height} pixels: one side is more than {ratio} times the other"
            )

    def _tokenize(self, rgb: bytes | None, width: int, height: int) -> MtmdImage | None:
        mtmd = self._mtmd
        if not self._context:
            raise BackendError("the projector was closed")
        pixels = None if rgb is None else (ctypes.c_uint8 * len(rgb)).from_buffer_copy(rgb)
        bitmap = mtmd.mtmd_bitmap_init(width, height, pixels)
        image = MtmdImage(mtmd, mtmd.mtmd_input_chunks_init())
        try:
            part = mtmd.mtmd_input_part(None, bitmap)
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            code = mtmd.mtmd_tokenize_from_parts(self._context, image.pointer, parts, 1, False)
        finally:
            mtmd.mtmd_bitmap_free(bitmap)
        if code:
            image.close()
            return None
        image.read(self._context)
        return image

    @override
    def encode(self, prepared: Prepared, index: int) -> NDArray[np.float32]:
        assert isinstance(prepared, MtmdImage)
        rows = prepared.chunks[index].rows
        with self._lock:
            if not self._context or prepared.is_closed or not rows:
                raise BackendError(f"chunk {index} is no image piece, or the image was closed")
            chunk = self._mtmd.mtmd_input_chunks_get(prepared.pointer, index)
            if self._mtmd.mtmd_encode_chunk(self._context, chunk):
                raise ProjectorError(f"{self.name} cannot encode it: {self._complaint}")
            address = self._mtmd.mtmd_get_output_embd(self._context)
            found = np.ctypeslib.as_array(address, (rows, self._width)).copy()
        if not np.isfinite(found).all():
            raise ProjectorError(f"{self.name} makes no numbers of it")
        return found

    @override
    def close(self) -> None:
        with self._lock:
            context, self._context = self._context, None
            if context:
                self._mtmd.mtmd_free(context)

    @property
    def _complaint(self) -> str:
        return self._log.complaint or "it gave no reason"
