"""The fake projector and what FakeBackend makes of its rows, as tests of the engine rely on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.engine_builders import runtime_config
from terrace_runtime.backend import DECODE_NO_ROOM, DECODE_OK, BackendError
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.backend.fake_projector import PATCH, FakeProjector
from terrace_runtime.backend.projector import ProjectorError

if TYPE_CHECKING:
    from numpy.typing import NDArray

sides = st.integers(1, 70)


def pixels(seed: int, width: int, height: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, width * height * 3, np.uint8).tobytes()


def rows_of(projector: FakeProjector, rgb: bytes, width: int, height: int) -> NDArray[np.float32]:
    made = projector.prepare(rgb, width, height)
    pieces = [projector.encode(made, i) for i, chunk in enumerate(made.chunks) if chunk.rows]
    assert [len(piece) for piece in pieces] == [one.rows for one in made.chunks if one.rows]
    return np.concatenate(pieces)


def loaded(*, is_causal: bool = True, kv_cells: int | None = None) -> FakeBackend:
    backend = FakeBackend(images=FakeProjector(is_causal=is_causal), kv_cells=kv_cells)
    backend.load(runtime_config(projector_path="/models/eyes.gguf", ubatch_tokens=32))
    return backend


def tokens_after(
    backend: FakeBackend, rows: NDArray[np.float32], *, is_causal: bool, step: int = 32
) -> list[int]:
    """What the cells of slot 0 hold after ``rows``; it is empty again."""
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        code = backend.decode_embeddings(0, start, part, is_causal=is_causal, wants_logits=True)
        assert code == DECODE_OK
    assert backend.logits().shape[0] == 1
    held = backend.tokens_of(0)
    backend.seq_rm(0)
    return held


@given(st.integers(0, 99), sides, sides)
def test_equal_pixels_give_equal_rows_and_a_changed_one_changes_them(
    seed: int, width: int, height: int
) -> None:
    projector, rgb = FakeProjector(), pixels(seed, width, height)
    rows = rows_of(projector, rgb, width, height)
    assert len(rows) >= (width * height) / PATCH**2
    np.testing.assert_array_equal(rows, rows_of(projector, rgb, width, height))
    other = bytes([rgb[0] ^ 1]) + rgb[1:]
    assert (rows != rows_of(projector, other, width, height)).any()


@given(st.integers(0, 99), st.integers(1, 31))
def test_causal_rows_may_come_in_parts_and_others_may_not(seed: int, step: int) -> None:
    rgb = pixels(seed, 80, 80)
    rows = rows_of(FakeProjector(), rgb, 80, 80)
    backend = loaded()
    whole = tokens_after(backend, rows, is_causal=True)
    assert len(whole) == len(rows)
    assert min(whole) >= backend.info.vocabulary
    assert tokens_after(backend, rows, is_causal=True, step=step) == whole
    together = tokens_after(backend, rows, is_causal=False)
    parts = tokens_after(backend, rows, is_causal=False, step=step)
    assert (together == parts) == (step >= len(rows))


def test_what_llama_refuses_is_refused() -> None:
    backend = loaded(kv_cells=40)
    rows = np.ones((33, 8), np.float32)
    with pytest.raises(BackendError, match="33 rows, at most 32"):
        backend.decode_embeddings(0, 0, rows, is_causal=False, wants_logits=False)
    with pytest.raises(BackendError, match="bad rows"):
        backend.decode_embeddings(0, 0, rows[:, :7], is_causal=True, wants_logits=False)
    assert backend.decode_embeddings(0, 5, rows, is_causal=True, wants_logits=False) == -1
    assert backend.decode_embeddings(0, 0, rows, is_causal=True, wants_logits=False) == DECODE_OK
    again = backend.decode_embeddings(1, 0, rows, is_causal=True, wants_logits=False)
    assert again == DECODE_NO_ROOM


def test_a_backend_without_a_projector_takes_no_rows() -> None:
    backend = FakeBackend()
    backend.load(runtime_config())
    assert backend.projector is None
    with pytest.raises(BackendError, match="bad rows"):
        backend.decode_embeddings(
            0, 0, np.ones((1, 8), np.float32), is_causal=True, wants_logits=False
        )


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (20_000, 1), (4, 5)])
def test_what_is_no_image_is_refused(width: int, height: int) -> None:
    with pytest.raises(ProjectorError):
        FakeProjector().prepare(bytes(12), width, height)
