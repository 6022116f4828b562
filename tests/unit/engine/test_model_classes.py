"""Tiny models of every class in the real llama.cpp: what each can do, and that states hold."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.engine_builders import runtime_config
from support.tiny_model import WINDOW
from support.tiny_models import MODELS, llama_like
from terrace_runtime.backend import DECODE_OK, BackendError
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TABLE = Path(__file__).parents[3] / "docs/model-classes.md"
CUT = {"llama", "qwen2vl", "qwen3vl", "paddleocr"}
NUM_PROMPT = 3 * WINDOW + 7


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    for name, write in MODELS.items():
        write(folder / f"{name}.gguf")
    return folder


@pytest.fixture
def load(files: Path) -> Callable[..., LlamaBackend]:
    def loaded(name: str, **changes: object) -> LlamaBackend:
        backend = LlamaBackend()
        path = str(files / f"{name}.gguf")
        backend.load(runtime_config(model_path=path, threads=1, **changes))
        return backend

    return loaded


def feed(backend: LlamaBackend, slot: int, tokens: list[int], position: int) -> NDArray[np.float32]:
    """Compute ``tokens`` in steps of 50; the last one's logits."""
    for start in range(0, len(tokens), 50):
        chunk = tokens[start : start + 50]
        backend.batch.clear()
        backend.batch.extend(chunk, slot, position + start, outputs=1)
        assert backend.decode() == DECODE_OK
    logits: NDArray[np.float32] = backend.logits()[0].copy()
    return logits


def greedy(
    backend: LlamaBackend, slot: int, logits: NDArray[np.float32], position: int
) -> list[int]:
    answer = []
    for index in range(24):
        answer.append(int(logits.argmax()))
        logits = feed(backend, slot, answer[-1:], position + index)
    return answer


def prompt_of(seed: int, length: int = NUM_PROMPT) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, 256, length).tolist()
    return tokens


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2vl", "mamba", "lfm2", "qwen35", "gemma3"])
def test_a_state_goes_on_in_another_slot_as_if_it_had_never_stopped(
    load: Callable[..., LlamaBackend], name: str, *, kv_unified: bool
) -> None:
    prompt, cut = prompt_of(1), 2 * WINDOW
    with closing(load(name, context_tokens=512, kv_unified=kv_unified)) as backend:
        expected = greedy(backend, 0, feed(backend, 0, prompt, 0), NUM_PROMPT)
        backend.seq_rm(0)
        feed(backend, 1, prompt[:cut], 0)
        state = np.empty(backend.state_size(1), np.uint8)
        assert backend.state_get(1, state) == state.nbytes
        # What comes after the checkpoint, in this slot and in another, must not touch it.
        feed(backend, 1, prompt_of(2, 100), cut)
        feed(backend, 3, prompt_of(3, 100), 0)
        assert backend.state_set(2, state)
        assert backend.seq_pos_max(2) == cut - 1
        found = greedy(backend, 2, feed(backend, 2, prompt[cut:], cut), NUM_PROMPT)
    assert found == expected
    assert len(set(expected)) > 4, "an answer that says nothing proves nothing"


@pytest.mark.parametrize("name", ["mamba", "lfm2", "gemma3"])
def test_a_state_of_another_prompt_gives_another_answer(
    load: Callable[..., LlamaBackend], name: str
) -> None:
    cut = 2 * WINDOW
    with closing(load(name, context_tokens=512)) as backend:
        first, second = prompt_of(1), prompt_of(2)
        expected = greedy(backend, 0, feed(backend, 0, first, 0), NUM_PROMPT)
        feed(backend, 1, second[:cut], 0)
        state = np.empty(backend.state_size(1), np.uint8)
        backend.state_get(1, state)
        assert backend.state_set(2, state)
        assert greedy(backend, 2, feed(backend, 2, first[cut:], cut), NUM_PROMPT) != expected


@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_a_recurrent_state_is_a_whole_or_nothing(
    load: Callable[..., LlamaBackend], name: str
) -> None:
    with closing(load(name)) as backend:
        feed(backend, 0, prompt_of(1, 20), 0)
        assert not backend.seq_rm(0, 10)
        assert backend.seq_rm(0)
        assert backend.seq_pos_max(0) == -1


def test_a_window_bounds_the_cells_that_are_kept(load: Callable[..., LlamaBackend]) -> None:
    sizes = []
    for name in ("gemma3", "llama"):
        with closing(load(name, context_tokens=1024, parallel=64)) as backend:
            sizes.append(backend.info.kv_bytes)
    windowed, full = sizes
    assert windowed is not None
    assert full is not None
    # One of two layers keeps a window of 64 and a batch of 64, padded to 256 cells of 1024.
    assert windowed == pytest.approx(full * (1 + 256 / 1024) / 2, rel=0.01)


@pytest.mark.parametrize(
    "name", [row for row in MODELS if row not in {"bert", "qwen3-embedding", "t5"}]
)
def test_shared_cells_are_offered_only_where_they_can_be_cut(
    load: Callable[..., LlamaBackend], name: str
) -> None:
    with closing(load(name, kv_unified=True)) as backend:
        found = backend.info.capabilities
    assert found.can_share_cells == (found.reuse == "blocks") == (name in CUT)


def test_what_cannot_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    config = runtime_config(model_path=str(file), threads=1)
    llama_like(file, "dream").write()
    with pytest.raises(BackendError, match="the model is a diffusion language model"):
        LlamaBackend().load(config)
    llama_like(file, "made-up").write()
    with pytest.raises(BackendError, match=r"cannot load .*unknown model architecture: 'made-up'"):
        LlamaBackend().load(config)


def documented() -> dict[str, dict[str, str]]:
    """The table in the documentation, by model."""
    rows = [
        [cell.strip().strip("`") for cell in line.strip("| \n").split("|")]
        for line in TABLE.read_text().splitlines()
        if line.startswith("|") and not re.match(r"^\|[\s|:-]+\|$", line)
    ]
    head, *body = rows
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


@pytest.mark.parametrize("name", list(MODELS))
def test_the_documented_capabilities_are_what_llama_cpp_grants(
    load: Callable[..., LlamaBackend], name: str
) -> None:
    with closing(load(name, context_tokens=1024)) as backend:
        found = backend.info.capabilities
    row = documented()[name]
    shown = {
        key: {"yes": True, "no": False, "-": ""}.get(value, value)
        for key, value in row.items()
        if key in Capabilities.model_fields
    }
    assert shown == {key: getattr(found, key) for key in shown}
    assert {"model_class", "reuse", "can_cut", "can_shift", "can_embed", "pooling"} <= set(shown)
