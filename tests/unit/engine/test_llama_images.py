"""Images on the real llama.cpp and libmtmd: rows, and what the model makes of them."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from support import tiny_projectors
from support.mtmd_reference import Reference
from support.seeing import (
    AFTER,
    BATCH,
    BEFORE,
    KINDS,
    PLACED,
    Files,
    logits_after,
    picture,
    prepared,
    read_image,
    read_tokens,
    rows_of,
)
from terrace_runtime.backend import DECODE_OK, BackendError, SamplerSettings
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.backend.projector import Grid, ProjectorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from terrace_runtime.backend.mtmd import MtmdProjector

GREEDY = SamplerSettings(
    temperature=0,
    top_k=0,
    top_p=1,
    min_p=0,
    repeat_penalty=1,
    presence_penalty=0,
    frequency_penalty=0,
    seed=1,
)
each_kind = pytest.mark.parametrize("kind", sorted(KINDS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("vision")).written()


@pytest.fixture
def seeing(files: Files) -> Iterator[Callable[[str], tuple[LlamaBackend, MtmdProjector]]]:
    """Loads a backend with a projector of a kind and closes it after the test."""
    loaded = []

    def load(kind: str) -> tuple[LlamaBackend, MtmdProjector]:
        backend = files.load(files.projector(kind))
        loaded.append(backend)
        assert backend.projector is not None
        return backend, backend.projector

    yield load
    for backend in loaded:
        backend.close()


# What it computes ---------------------------------------------------------------------------------


@each_kind
def test_rows_are_those_of_libmtmd(files: Files, seeing: Any, kind: str) -> None:
    _, projector = seeing(kind)
    reference = Reference(files.model_of(kind), files.projector(kind), BATCH)
    for seed, (width, height) in enumerate(((100, 60), (32, 32), (1, 1), (20, 200))):
        image = picture(seed, width, height)
        ours, theirs = rows_of(projector, image), reference.rows(image)
        assert [rows.shape for rows in ours] == [rows.shape for rows in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)
    reference.close()


@each_kind
def test_logits_after_text_image_and_text_are_those_of_libmtmd(
    files: Files, seeing: Any, kind: str
) -> None:
    backend, _ = seeing(kind)
    reference = Reference(files.model_of(kind), files.projector(kind), BATCH)
    for seed in range(3):
        image = picture(seed)
        theirs = reference.logits(BEFORE, image, AFTER)
        np.testing.assert_allclose(logits_after(backend, image), theirs, atol=1e-3)
        assert np.abs(theirs - logits_after(backend, picture(seed + 10))).max() > 0.1
    reference.close()


def test_a_projector_that_knows_no_lines_places_rows_in_one_as_libmtmd_does(files: Files) -> None:
    model = files.model_of("qwen2vl")
    backend = files.load(files.projector("llava"), model_path=str(model))
    reference = Reference(model, files.projector("llava"), BATCH)
    theirs = reference.logits(BEFORE, picture(), AFTER)
    np.testing.assert_allclose(logits_after(backend, picture()), theirs, atol=1e-3)
    reference.close()
    backend.close()


@pytest.mark.parametrize("kind", sorted(PLACED))
def test_lines_and_columns_matter(seeing: Any, kind: str) -> None:
    backend, projector = seeing(kind)
    (grid,) = [one.grid for one in prepared(projector, picture()).chunks if one.rows]
    assert grid == Grid(6, 4)
    right = logits_after(backend, picture())
    for wrong in (Grid(24, 1), Grid(4, 6), Grid(6, 24)):
        assert np.abs(right - logits_after(backend, picture(), grid=wrong)).max() > 5e-3


@pytest.mark.parametrize("kind", sorted(PLACED))
def test_tokens_are_counted_whatever_positions_they_have(seeing: Any, kind: str) -> None:
    backend, projector = seeing(kind)
    rows = rows_of(projector, picture())[0]
    (grid,) = [one.grid for one in prepared(projector, picture()).chunks if one.rows]
    read_tokens(backend, [1, 2, 3], 0, 0)
    for count, first in ((10, 0), (14, 10)):
        part = rows[first : first + count]
        code = backend.decode_embeddings(
            0, 3 + first, part, is_causal=True, wants_logits=False, grid=grid, first=first
        )
        assert code == DECODE_OK
        assert backend.seq_pos_max(0) == 3 + first + count - 1
    read_tokens(backend, [4, 5, 6, 7], 0, 27)
    assert backend.seq_pos_max(0) == 30
    assert not backend.seq_rm(0, 20), "rows of one image cannot be parted"
    assert backend.seq_rm(0, 28)
    assert backend.seq_pos_max(0) == 27
    assert backend.seq_rm(0, 3)
    assert backend.seq_pos_max(0) == 2
    read_tokens(backend, [8], 0, 3)
    assert backend.seq_pos_max(0) == 3


@pytest.mark.parametrize("kind", ["llava", "qwen2vl", "qwen3vl"])
def test_causal_rows_may_come_in_parts(seeing: Any, kind: str) -> None:
    backend, _ = seeing(kind)
    whole = logits_after(backend, picture())
    np.testing.assert_allclose(logits_after(backend, picture(), step=5), whole, atol=1e-3)


def test_rows_that_attend_to_each_other_do(seeing: Any) -> None:
    backend, _ = seeing("gemma3")
    together = logits_after(backend, picture())
    assert np.abs(together - logits_after(backend, picture(), is_causal=True)).max() > 1e-2
    # Attention of what comes later is causal again.
    np.testing.assert_allclose(logits_after(backend, picture()), together, atol=1e-3)


def test_an_image_at_the_end_of_a_prompt_gives_logits_and_a_token(seeing: Any) -> None:
    backend, _ = seeing("llava")
    position = read_image(backend, picture(), 0, 0, wants_logits=True)
    assert position == tiny_projectors.ROWS
    assert backend.logits().shape == (1, backend.info.vocabulary)
    chain = backend.sampler(GREEDY, [1])
    assert chain.sample(position - 1) == int(backend.logits()[0].argmax())


def test_sequences_with_images_do_not_disturb_each_other(files: Files) -> None:
    backend = files.load(files.projector("llava"), parallel=3, kv_unified=True)
    alone = logits_after(backend, picture(1), slot=2)
    read_image(backend, picture(2), 0, 0)
    read_tokens(backend, [1, 2, 3], 1, 0)
    np.testing.assert_allclose(logits_after(backend, picture(1), slot=2), alone, atol=1e-3)
    backend.close()


def test_cells_of_an_image_are_saved_and_restored_as_others(seeing: Any) -> None:
    backend, _ = seeing("gemma3")
    tokens = backend.tokenize(AFTER, special=False, add_bos=False)
    position = read_image(backend, picture(), 0, 0)
    state = np.zeros(backend.state_size(0), np.uint8)
    assert backend.state_get(0, state) == len(state)
    read_tokens(backend, tokens, 0, position)
    expected = backend.logits()[0].copy()
    backend.seq_rm(0)
    assert backend.state_set(0, state)
    assert backend.seq_pos_max(0) == position - 1
    read_tokens(backend, tokens, 0, position)
    np.testing.assert_allclose(backend.logits()[0], expected, atol=1e-3)


def test_pieces_stand_between_tokens_of_their_rows_and_columns(seeing: Any) -> None:
    backend, projector = seeing("idefics3")
    chunks = prepared(projector, picture(0, 64, 64)).chunks
    names = ["".join(backend.info.controls.get(t, "?") for t in one.tokens) for one in chunks]
    assert names[2] == "<fake_token_around_image><row_1_col_2>"
    assert names[-3].endswith("\n\n<fake_token_around_image><global-img>")
    assert [one.rows for one in chunks if one.rows] == [4] * 5


# Threads and lives --------------------------------------------------------------------------------


def test_encoding_on_other_threads_disturbs_neither_decoding_nor_each_other(seeing: Any) -> None:
    backend, projector = seeing("sliced")
    pictures = [picture(seed) for seed in range(3)]
    expected = [rows_of(projector, one) for one in pictures]
    logits = logits_after(backend, pictures[0])
    found: dict[int, list[Any]] = {}
    threads = [
        threading.Thread(
            target=lambda n=n: found.update(
                {n: [rows_of(projector, pictures[n]) for _ in range(8)]}
            )
        )
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for _ in range(8):
        np.testing.assert_allclose(logits_after(backend, pictures[0]), logits, atol=1e-3)
    for thread in threads:
        thread.join()
    for number, runs in found.items():
        for rows in runs:
            np.testing.assert_array_equal(rows, expected[number])
    assert sorted(found) == [0, 1, 2]


def test_a_closed_image_is_refused_and_closing_twice_is_safe(seeing: Any) -> None:
    _, projector = seeing("llava")
    made = prepared(projector, picture())
    made.close()
    made.close()
    with pytest.raises(BackendError, match="the image was closed"):
        projector.encode(made, 0)


def test_a_closed_projector_takes_no_image(files: Files) -> None:
    backend = files.load(files.projector("llava"))
    projector = backend.projector
    assert projector is not None
    made = prepared(projector, picture())
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        projector.encode(made, 0)
    with pytest.raises(BackendError, match="was closed"):
        prepared(projector, picture())


def test_its_bytes_are_told_and_count_as_the_models(files: Files, seeing: Any) -> None:
    backend, projector = seeing("llava")
    blind = LlamaBackend()
    blind.load(files.config(files.projector("llava")).model_copy(update={"projector_path": ""}))
    reader = gguf.GGUFReader(files.projector("llava"))
    assert projector.weight_bytes == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert projector.compute_bytes is not None
    assert projector.compute_bytes > 0
    assert blind.projector is None
    assert blind.info.weights_bytes is not None
    assert backend.info.weights_bytes == blind.info.weights_bytes + projector.weight_bytes
    blind.close()


def test_what_libmtmd_says_is_log_lines(
    files: Files, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "llama.cpp"):
        files.load(files.projector("llava")).close()
    assert any("clip" in line or "vision hparams" in line for line in caplog.messages)
    assert any("has vision encoder" in line for line in caplog.messages)
    assert capfd.readouterr() == ("", "")


# Images that cannot be used -----------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("size", [(1, 1), (1, 16), (16, 1), (33, 31), (800, 50), (60, 900)])
def test_images_of_any_shape_become_rows(seeing: Any, kind: str, size: tuple[int, int]) -> None:
    _, projector = seeing(kind)
    found = rows_of(projector, picture(1, *size))
    assert found
    assert all(np.isfinite(rows).all() for rows in found)


@each_kind
@pytest.mark.parametrize(
    ("width", "height", "count", "words"),
    [
        (500, 1, 1500, "one side is more than 16 times the other"),
        (1, 500, 1500, "one side is more than 16 times the other"),
        (0, 10, 0, "0 x 10 pixels"),
        (20_000, 10_000, 0, "each side may have 16384"),
        (10, 10, 299, "need 300 bytes, not 299"),
    ],
)
def test_an_image_that_would_end_the_process_is_refused(
    seeing: Any, kind: str, width: int, height: int, count: int, words: str
) -> None:
    _, projector = seeing(kind)
    with pytest.raises(ProjectorError, match=words):
        projector.prepare(bytes(count), width, height)


@pytest.mark.parametrize(
    ("shape", "is_causal", "words"),
    [
        ((4, 32), True, "the model reads 64 numbers each"),
        ((4,), True, "the model reads 64 numbers each"),
        ((0, 64), True, "0 rows, at most 64"),
        ((65, 64), True, "65 rows, at most 64"),
        ((33, 64), False, "33 rows, at most 32"),
    ],
)
def test_rows_that_llama_would_abort_on_are_refused(
    files: Files, shape: tuple[int, ...], words: str, *, is_causal: bool
) -> None:
    backend = files.load(files.projector("llava"), batch_tokens=64)
    with pytest.raises(BackendError, match=words):
        backend.decode_embeddings(
            0, 0, np.zeros(shape, np.float32), is_causal=is_causal, wants_logits=False
        )
    with pytest.raises(BackendError, match="sequence id"):
        backend.decode_embeddings(
            99, 0, np.zeros((1, 64), np.float32), is_causal=True, wants_logits=False
        )
    backend.close()
