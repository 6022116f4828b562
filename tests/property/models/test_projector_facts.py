"""Whatever a projector's header says, it ends in facts that can be planned or in our own error."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hypothesis import given
from hypothesis import strategies as st

from support.projector_files import TINY, projector_file
from terrace.planner.projector import projector_bytes
from terrace_runtime.contract import ProjectorFacts
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.gguf_header import Header, read_header
from terrace_runtime.models.projector import projector_facts
from terrace_runtime.models.projector_families import FAMILIES, OTHER_PLACED

if TYPE_CHECKING:
    from terrace_runtime.models.gguf_header import Tensor, Value


def _header(kind: str) -> Header:
    with tempfile.TemporaryDirectory() as folder:
        file = projector_file(Path(folder) / "p.gguf", TINY, kind=kind)
        with file.open("rb") as opened:
            return read_header(opened, file.stat().st_size)


HEADERS: Final = {kind: _header(kind) for kind in ("gemma3", "idefics3", "mlp")}
VALUES: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**33),
    st.sampled_from([0, 1, 2, 3, 16, 512, 1024, 8192, 2**31 - 1]),
    st.floats(allow_nan=True),
    st.sampled_from([*FAMILIES, *OTHER_PLACED, "", "clip", "ultravox"]),
    st.lists(st.integers(-5, 2**32), max_size=8).map(tuple),
)
KEYS: Final = sorted(
    {key for header in HEADERS.values() for key in header.metadata}
    | {
        "clip.has_audio_encoder",
        "clip.vision.image_grid_pinpoints",
        "clip.vision.image_max_pixels",
        "clip.vision.preproc_image_size",
        "clip.vision.preproc_max_tiles",
        "clip.vision.projector_type",
        "clip.vision.spatial_merge_size",
        "clip.audio.embedding_length",
        "split.count",
    }
)


def changed(header: Header, changes: dict[str, Value | None]) -> Header:
    metadata = {k: v for k, v in (header.metadata | changes).items() if v is not None}
    tensors: tuple[Tensor, ...] = header.tensors
    return Header(header.version, metadata, tensors, header.data_start, header.file_bytes)


def read(header: Header) -> ProjectorFacts | FetchError:
    try:
        return projector_facts([header], "a" * 64)
    except FetchError as error:
        return error


@given(
    st.sampled_from(sorted(HEADERS)),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
)
def test_any_header_ends_in_facts_within_bounds_or_in_our_error(
    kind: str, changes: dict[str, Value | None]
) -> None:
    facts = read(changed(HEADERS[kind], changes))
    if isinstance(facts, FetchError):
        assert facts.reason in {"UnsupportedFormat", "InvalidModel"}
        assert len(str(facts)) < 1000
        return
    assert ProjectorFacts.model_validate_json(facts.model_dump_json()) == facts
    assert facts.max_patches <= 2**20 + 1
    assert facts.max_pieces <= 256
    assert facts.rows_at_once in {0, facts.max_rows}
    counted = projector_bytes(facts)
    assert counted.total > counted.weights == facts.weight_bytes
