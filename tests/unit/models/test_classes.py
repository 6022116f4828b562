"""What a model is, from its header alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.gguf_files import model_file
from support.tiny_model import HEAD, LAYERS, WIDTH
from support.tiny_models import MODELS
from terrace_runtime.models.classes import Kind, Refusal, classify
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.gguf_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import ModelFacts


def facts_of(file: Path) -> ModelFacts:
    with file.open("rb") as opened:
        return model_facts(read_header(opened, file.stat().st_size), "0" * 64)


@pytest.mark.parametrize(
    ("name", "model_class", "pooling"),
    [
        ("llama", "decoder", ""),
        ("mamba", "decoder", ""),
        ("lfm2", "decoder", ""),
        ("gemma3", "decoder", ""),
        ("bert", "encoder", "mean"),
        ("qwen3-embedding", "decoder", "last"),
        ("t5", "encoder-decoder", ""),
    ],
)
def test_each_class_shows_in_the_header(
    tmp_path: Path, name: str, model_class: str, pooling: str
) -> None:
    MODELS[name](tmp_path / "m.gguf")
    facts = facts_of(tmp_path / "m.gguf")
    assert (facts.model_class, facts.pooling) == (model_class, pooling)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("llama", 0),
        # 3 columns of a convolution over 128 values, and 16 states of each.
        ("mamba", LAYERS * (3 * 2 * WIDTH + 16 * 2 * WIDTH)),
        ("lfm2", 2 * WIDTH),
        ("gemma3", 0),
    ],
)
def test_a_recurrent_state_has_the_size_that_llama_cpp_gives_it(
    tmp_path: Path, name: str, values: int
) -> None:
    MODELS[name](tmp_path / "m.gguf")
    assert facts_of(tmp_path / "m.gguf").recurrent_bytes == 4 * values


def test_encoders_keep_no_cells_and_both_halves_of_a_pair_are_weighed(tmp_path: Path) -> None:
    MODELS["bert"](tmp_path / "bert.gguf")
    assert [run.kv_heads for run in facts_of(tmp_path / "bert.gguf").layers] == [0]
    MODELS["t5"](tmp_path / "t5.gguf")
    facts = facts_of(tmp_path / "t5.gguf")
    assert [run.key_length for run in facts.layers] == [HEAD] * len(facts.layers)
    assert sum(run.count * run.weight_bytes for run in facts.layers) > facts.output_bytes


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("dream", "diffusion"),
        ("llada-moe", "diffusion"),
        ("eagle3", "draft head"),
        ("wavtokenizer-dec", "speech"),
        ("gptj", "cannot run"),
        ("clip", "projector"),
        ("made-up-9000", "'made-up-9000', which this build does not know"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    tmp_path: Path, architecture: str, words: str
) -> None:
    file = model_file(tmp_path / "m.gguf", architecture=architecture)
    with pytest.raises(FetchError, match=words) as caught:
        facts_of(file)
    assert caught.value.reason == "UnsupportedFormat"


def test_rerankers_and_unknown_pooling_are_refused() -> None:
    for pooling in (4, 9):
        assert isinstance(classify("bert", is_causal=False, pooling=pooling), Refusal)
        assert isinstance(classify("qwen3", is_causal=True, pooling=pooling), Refusal)


def test_an_encoder_without_pooling_takes_the_mean() -> None:
    assert classify("bert", is_causal=False, pooling=None) == Kind("encoder", "mean")
    assert classify("qwen3", is_causal=False, pooling=0) == Kind("encoder", "mean")
    assert classify("qwen3", is_causal=True, pooling=0) == Kind("decoder", "")
