"""Images on the real llama.cpp and libmtmd: rows, what the model makes of them, and refusals."""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from support import tiny_models, tiny_projectors
from support.engine_builders import runtime_config
from support.mtmd_reference import Reference
from terrace_runtime.backend import DECODE_OK, BackendError, SamplerSettings
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.backend.projector import ProjectorError
from terrace_runtime.backend.selfcheck import check_projector
from terrace_runtime.engine.process import ChildEngine
from terrace_runtime.engine.request import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from terrace_runtime.backend.mtmd import MtmdImage, MtmdProjector
    from terrace_runtime.contract import RuntimeConfig

BATCH = 32
BEFORE, AFTER = "a llama climbs", " and looks down"
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
KINDS: dict[str, Callable[[Path], Path]] = {
    "llava": tiny_projectors.llava,
    "sliced": tiny_projectors.sliced,
    "gemma3": tiny_projectors.gemma3,
    "idefics3": tiny_projectors.idefics3,
}
each_kind = pytest.mark.parametrize("kind", sorted(KINDS))


@dataclasses.dataclass(frozen=True)
class Files:
    """A tiny text model and every projector that fits it."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "llama.gguf"

    def projector(self, kind: str) -> Path:
        return self.folder / f"{kind}.gguf"

    def config(self, projector: Path, **changes: Any) -> RuntimeConfig:
        settings = {"context_tokens": 512, "batch_tokens": BATCH, "ubatch_tokens": BATCH}
        paths = {"model_path": str(self.model), "projector_path": str(projector)}
        return runtime_config(**{"threads": 1, **settings, **paths, **changes})

    def load(self, projector: Path, **changes: Any) -> LlamaBackend:
        backend = LlamaBackend()
        backend.load(self.config(projector, **changes))
        return backend


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    found = Files(tmp_path_factory.mktemp("vision"))
    tiny_models.llama(found.model, marks=tiny_projectors.IDEFICS3_MARKS)
    for kind, write in KINDS.items():
        write(found.projector(kind))
    return found


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


def picture(seed: int = 0, width: int = 100, height: int = 60) -> NDArray[np.uint8]:
    """(height, width, 3) random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def prepared(projector: MtmdProjector, image: NDArray[np.uint8]) -> MtmdImage:
    return projector.prepare(image.tobytes(), image.shape[1], image.shape[0])


def rows_of(projector: MtmdProjector, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    made = prepared(projector, image)
    found = [projector.encode(made, i) for i, chunk in enumerate(made.chunks) if chunk.rows]
    made.close()
    return found


def read_tokens(backend: LlamaBackend, tokens: list[int], slot: int, position: int) -> int:
    """Evaluate ``tokens``, with logits of the last; the next position."""
    for start in range(0, len(tokens), BATCH):
        part = tokens[start : start + BATCH]
        backend.batch.clear()
        backend.batch.extend(part, slot, position, outputs=1)
        assert backend.decode() == DECODE_OK
        position += len(part)
    return position


def read_image(
    backend: LlamaBackend,
    image: NDArray[np.uint8],
    slot: int,
    position: int,
    *,
    is_causal: bool | None = None,
    step: int = BATCH,
    wants_logits: bool = False,
) -> int:
    """Evaluate all that ``image`` becomes; the next position."""
    assert backend.projector is not None
    made = prepared(backend.projector, image)
    for index, chunk in enumerate(made.chunks):
        if chunk.tokens:
            position = read_tokens(backend, list(chunk.tokens), slot, position)
            continue
        rows = backend.projector.encode(made, index)
        causal = chunk.is_causal if is_causal is None else is_causal
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            code = backend.decode_embeddings(
                slot, position, part, is_causal=causal, wants_logits=wants_logits
            )
            assert code == DECODE_OK
            position += len(part)
    return position


def logits_after(
    backend: LlamaBackend, image: NDArray[np.uint8], slot: int = 0, **how: Any
) -> NDArray[np.float32]:
    """(vocabulary,) after BEFORE, ``image`` and AFTER; the slot is empty again."""
    texts = [backend.tokenize(text, special=False, add_bos=False) for text in (BEFORE, AFTER)]
    position = read_tokens(backend, texts[0], slot, 0)
    position = read_image(backend, image, slot, position, **how)
    read_tokens(backend, texts[1], slot, position)
    found: NDArray[np.float32] = backend.logits()[0].copy()
    backend.seq_rm(slot)
    return found


# What it computes ---------------------------------------------------------------------------------


@each_kind
def test_rows_are_those_of_libmtmd(files: Files, seeing: Any, kind: str) -> None:
    _, projector = seeing(kind)
    reference = Reference(files.model, files.projector(kind), BATCH)
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
    reference = Reference(files.model, files.projector(kind), BATCH)
    for seed in range(3):
        image = picture(seed)
        theirs = reference.logits(BEFORE, image, AFTER)
        np.testing.assert_allclose(logits_after(backend, image), theirs, atol=1e-3)
        assert np.abs(theirs - logits_after(backend, picture(seed + 10))).max() > 0.1
    reference.close()


def test_causal_rows_may_come_in_parts(seeing: Any) -> None:
    backend, _ = seeing("llava")
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


# Files that cannot be used ------------------------------------------------------------------------


def cut_short(path: Path) -> Path:
    tiny_projectors.llava(path)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def whole_model(path: Path) -> Path:
    tiny_models.llama(path)
    return path


def without_a_mean(path: Path) -> Path:
    return tiny_projectors.llava(path, keys={"clip.vision.image_mean": "none"})


def for_sound(path: Path) -> Path:
    keys = {"clip.has_vision_encoder": False, "clip.has_audio_encoder": True}
    return tiny_projectors.llava(path, keys=keys)


def for_rows_and_columns(path: Path) -> Path:
    return tiny_projectors.llava(path, kind="qwen2vl_merger")


def with_sides_to_spare(path: Path) -> Path:
    return tiny_projectors.gemma3(path, image=64, merge=1)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path, "cannot be read .No such file or directory.: fetch it again"),
        (cut_short, "is not usable"),
        (whole_model, "a whole model .architecture llama."),
        (without_a_mean, "clip.vision.image_mean is no list of numbers"),
        (for_sound, "for sound alone"),
        (for_rows_and_columns, "M-RoPE"),
        (lambda path: tiny_projectors.llava(path, 96), r"n_embd = 64.*n_embd = 96"),
        (with_sides_to_spare, "the 64 rows of an image .* takes 32 tokens at most"),
    ],
)
def test_a_projector_that_cannot_work_is_refused_with_the_reason(
    files: Files, tmp_path: Path, write: Callable[[Path], Path], words: str
) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        files.load(write(tmp_path / "projector.gguf"))
    assert str(caught.value).startswith(f"projector_path: {tmp_path}/projector.gguf")


def test_enough_tokens_of_a_batch_hold_an_image_whose_rows_attend_to_each_other(
    files: Files, tmp_path: Path
) -> None:
    projector = with_sides_to_spare(tmp_path / "projector.gguf")
    backend = files.load(projector, batch_tokens=64, ubatch_tokens=64)
    assert read_image(backend, picture(), 0, 0, step=64) > 64
    backend.close()


def test_a_model_without_the_tokens_around_images_is_refused(files: Files, tmp_path: Path) -> None:
    tiny_models.llama(tmp_path / "text.gguf")
    with pytest.raises(BackendError, match="vocabulary lacks a token that idefics3 puts around"):
        files.load(files.projector("idefics3"), model_path=str(tmp_path / "text.gguf"))


def test_pieces_stand_between_tokens_of_their_rows_and_columns(seeing: Any) -> None:
    backend, projector = seeing("idefics3")
    chunks = prepared(projector, picture(0, 64, 64)).chunks
    names = ["".join(backend.info.controls.get(t, "?") for t in one.tokens) for one in chunks]
    assert names[2] == "<fake_token_around_image><row_1_col_2>"
    assert names[-3].endswith("\n\n<fake_token_around_image><global-img>")
    assert [one.rows for one in chunks if one.rows] == [4] * 5


def test_a_model_with_positions_in_two_dimensions_takes_no_projector(
    files: Files, tmp_path: Path
) -> None:
    model = tiny_models.llama_like(tmp_path / "text.gguf", "qwen2vl")
    model.writer.add_rope_dimension_sections([8, 4, 4, 0])
    model.write()
    with pytest.raises(BackendError, match="places images by row and column"):
        files.load(files.projector("llava"), model_path=str(tmp_path / "text.gguf"))


def test_a_model_that_embeds_takes_no_projector(files: Files, tmp_path: Path) -> None:
    tiny_models.qwen3_embedding(tmp_path / "text.gguf")
    with pytest.raises(BackendError, match="does not generate text"):
        files.load(files.projector("llava"), model_path=str(tmp_path / "text.gguf"))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: tiny_projectors.llava(path, patches=7),
        lambda path: tiny_projectors.llava(path, keys={"clip.vision.attention.head_count": 3}),
    ],
    ids=["positions for other patches", "heads that do not divide the width"],
)
async def test_a_file_that_makes_libmtmd_abort_ends_the_child_alone_and_is_named(
    files: Files, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    engine = ChildEngine(files.config(write(tmp_path / "hostile.gguf")))
    with pytest.raises(
        EngineError, match=f"opening the projector {tmp_path}/hostile.gguf: .*ASSERT"
    ):
        await engine.start()
    await engine.close()


def test_a_file_that_crashes_libmtmd_is_named_by_the_check_that_follows(
    files: Files, tmp_path: Path
) -> None:
    check_projector(files.config(files.projector("gemma3")))
    hostile = tiny_projectors.llava(tmp_path / "hostile.gguf", without="v.blk.0.attn_q.weight")
    with pytest.raises(BackendError, match=f"opening the projector {hostile} was ended by SIGSEGV"):
        check_projector(files.config(hostile))
    with pytest.raises(BackendError, match="for sound alone"):
        check_projector(files.config(for_sound(tmp_path / "sound.gguf")))
