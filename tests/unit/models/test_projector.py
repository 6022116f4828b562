"""Facts of projectors from their headers, and which ones are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support import tiny_projectors
from support.projector_files import GEMMA_3_4B, LLAVA_15, SMOLVLM_500M, TINY, projector_file
from terrace_runtime.models.choice import choose
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.gguf_header import Header, read_header
from terrace_runtime.models.projector import projector_facts
from terrace_runtime.models.sources import HubSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.projector_files import ProjectorShape
    from terrace_runtime.contract import ProjectorFacts
    from terrace_runtime.models.gguf_header import Value


def header_of(path: Path, shape: ProjectorShape = TINY, **changes: Any) -> Header:
    return read_header_of(projector_file(path / "p.gguf", shape, **changes))


def read_header_of(file: Path) -> Header:
    with file.open("rb") as opened:
        return read_header(opened, file.stat().st_size)


def with_keys(header: Header, **keys: Value | None) -> Header:
    """Keys by their names with __ for a dot; None takes one away."""
    changed = header.metadata | {name.replace("__", "."): value for name, value in keys.items()}
    metadata = {name: value for name, value in changed.items() if value is not None}
    return Header(header.version, metadata, header.tensors, header.data_start, header.file_bytes)


def facts_of(header: Header) -> ProjectorFacts:
    return projector_facts([header], "a" * 64)


def refusal(header: Header) -> FetchError:
    with pytest.raises(FetchError) as caught:
        facts_of(header)
    return caught.value


@pytest.mark.parametrize(
    ("shape", "patches", "pieces", "together"),
    [
        (SMOLVLM_500M, 32 * 32, 17, 0),
        (LLAVA_15, 24 * 24, 1, 0),
        (GEMMA_3_4B, 64 * 64, 1, 256),
    ],
    ids=lambda each: getattr(each, "kind", str(each)),
)
def test_published_shapes_give_what_llama_cpp_encodes_at_once(
    tmp_path: Path, shape: ProjectorShape, patches: int, pieces: int, together: int
) -> None:
    facts = facts_of(header_of(tmp_path, shape))
    assert facts.max_patches == patches + 1
    assert facts.max_pieces == pieces
    assert facts.rows_at_once == together
    assert facts.output_length == shape.output
    assert (facts.embedding_length, facts.heads, facts.layers) == (
        shape.width,
        shape.heads,
        shape.layers,
    )
    assert 0 < facts.file_bytes - facts.weight_bytes < 32_000
    assert facts.quantization == "F16"


def test_a_grid_of_pieces_is_counted_with_the_overview(tmp_path: Path) -> None:
    header = header_of(tmp_path, kind="mlp", merge=1)
    grid = (32, 64, 64, 64, 96, 32)
    assert facts_of(with_keys(header, clip__vision__image_grid_pinpoints=grid)).max_pieces == 5


def test_pieces_of_any_shape_are_as_large_as_their_rows_allow(tmp_path: Path) -> None:
    header = header_of(tmp_path, kind="mlp", merge=1)
    wide: dict[str, Value] = {
        "clip__projector_type": "pixtral",
        "clip__vision__spatial_merge_size": 2,
    }
    assert facts_of(with_keys(header, **wide)).max_patches == 1024 * 4 + 1
    most: dict[str, Value] = {
        "clip__projector_type": "phi4",
        "clip__vision__image_max_pixels": 4 * 4 * 100,
    }
    assert facts_of(with_keys(header, **most)).max_patches == 100 + 1


def test_sound_beside_images_is_counted_by_its_positions(tmp_path: Path) -> None:
    both = with_keys(
        header_of(tmp_path),
        clip__has_audio_encoder=True,
        clip__audio__embedding_length=99,
        clip__audio__feed_forward_length=7,
    )
    facts = facts_of(both)
    assert (facts.max_patches, facts.embedding_length, facts.feed_forward_length) == (1500, 99, 64)


@pytest.mark.parametrize("kind", ["qwen2.5o", "glm5v", "hunyuanvl", "mimovl"])
def test_other_families_with_positions_in_two_dimensions_are_refused_by_name(
    tmp_path: Path, kind: str
) -> None:
    error = refusal(with_keys(header_of(tmp_path), clip__projector_type=kind))
    assert (error.reason, error.permanent) == ("UnsupportedFormat", True)
    assert f"of the kind {kind}" in str(error)
    assert "M-RoPE" in str(error)


@pytest.mark.parametrize(
    ("write", "kind", "width"),
    [
        (tiny_projectors.qwen2vl, "qwen2vl_merger", 64),
        (tiny_projectors.qwen25vl, "qwen2.5vl_merger", 64),
        (tiny_projectors.qwen3vl, "qwen3vl_merger", 128),
        (tiny_projectors.glm4v, "glm4v", 64),
    ],
)
def test_rows_in_a_grid_are_as_many_as_libmtmd_reserves_and_as_wide_as_all_layers_need(
    tmp_path: Path, write: Callable[[Path], Path], kind: str, width: int
) -> None:
    header = read_header_of(write(tmp_path / "p.gguf"))
    facts = facts_of(header)
    assert (facts.projector_type, facts.output_length) == (kind, width)
    assert (facts.max_rows, facts.max_patches) == (46**2, 4 * 46**2 + 1)
    assert facts.rows_at_once == 0
    error = refusal(with_keys(header, clip__vision__spatial_merge_size=3))
    assert "joins 3 x 3 patches" in str(error)


def test_the_header_of_paddleocr_says_how_large_an_image_may_be(tmp_path: Path) -> None:
    facts = facts_of(read_header_of(tiny_projectors.paddleocr(tmp_path / "p.gguf")))
    assert (facts.max_patches, facts.max_rows) == (12 * 12 + 1, 6 * 6)
    assert facts.output_length == 64


def test_sound_alone_and_unknown_kinds_are_refused_by_name(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    sound: dict[str, Value] = {
        "clip__has_vision_encoder": False,
        "clip__has_audio_encoder": True,
        "clip__projector_type": "ultravox",
    }
    assert "for sound alone (ultravox)" in str(refusal(with_keys(header, **sound)))
    unknown = refusal(with_keys(header, clip__projector_type="next_years"))
    assert "of the kind 'next_years', which Terrace does not know" in str(unknown)
    assert "idefics3" in str(unknown)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"clip__vision__patch_size": 64}, "cannot be cut into patches of 64"),
        ({"clip__vision__image_size": 1 << 20}, "pieces of 1048576 pixels"),
        ({"clip__vision__block_count": 100_000}, "block_count is 100000"),
        ({"clip__vision__attention__head_count": 0}, "head_count is missing or 0"),
        ({"clip__vision__projector__scale_factor": 99}, "joins 99 x 99 patches"),
        (
            {
                "clip__projector_type": "mlp",
                "clip__vision__image_grid_pinpoints": (32 * 32, 32 * 32),
            },
            "cut into 1025 pieces",
        ),
        ({"clip__projector_type": "internvl"}, "no tensor mm.model.mlp.3.weight"),
        ({"split__count": 2}, "split into parts"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    tmp_path: Path, keys: dict[str, Value], words: str
) -> None:
    kind = str(keys.get("clip__projector_type", "gemma3"))
    header = header_of(tmp_path, kind="mlp" if kind == "mlp" else "gemma3")
    assert words in str(refusal(with_keys(header, **keys)))


FILES = ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-Q8_0.gguf", "mmproj-m-f16.gguf", "README.md")


def chosen(names: tuple[str, ...], quant: str = "") -> tuple[str, ...]:
    return choose(HubSource("owner/repo", "main", "", quant), names, "projector")


def test_the_projector_beside_a_model_is_found_where_only_one_can_be_meant() -> None:
    assert chosen(FILES, "Q8_0") == ("mmproj-m-Q8_0.gguf",)
    assert chosen(FILES, "F16") == ("mmproj-m-f16.gguf",)
    assert chosen((*FILES[:3], "imatrix.gguf")) == ("mmproj-m-Q8_0.gguf",)
    assert chosen(FILES[:3], "Q4_K_M") == ("mmproj-m-Q8_0.gguf",)


@pytest.mark.parametrize(
    ("names", "quant", "words"),
    [
        (FILES, "", "holds 2 projectors; name one as hf://owner/repo/FILE: mmproj-m-Q8_0.gguf"),
        (FILES, "Q4_K_M", "holds 2 projectors, none with the tag Q4_K_M; name one"),
        (FILES[:2], "Q8_0", "holds no projector (a GGUF file with mmproj in its name)"),
    ],
)
def test_choices_are_named_where_several_projectors_fit(
    names: tuple[str, ...], quant: str, words: str
) -> None:
    with pytest.raises(FetchError) as caught:
        chosen(names, quant)
    assert caught.value.reason == "NotFound"
    assert words in str(caught.value)
