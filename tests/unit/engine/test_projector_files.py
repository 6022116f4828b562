"""Projector files on the real libmtmd: which are refused, with what words, and who survives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from support import tiny_models, tiny_projectors
from support.seeing import Files, picture, read_image
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.binding import mtmd_binding
from terrace_runtime.backend.selfcheck import check_projector
from terrace_runtime.engine.process import ChildEngine
from terrace_runtime.engine.request import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("vision")).written()


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
    return tiny_projectors.llava(path, kind="mimovl")


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


def test_a_build_without_libmtmd_says_how_to_get_one() -> None:
    with pytest.raises(BackendError, match=r"has no libmtmd .*LLAVA_BUILD=ON"):
        mtmd_binding(SimpleNamespace(__package__="a_package_without_it"))
