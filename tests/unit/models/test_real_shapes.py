"""Facts of 69 real shapes: their sizes are those that the models' cards tell."""

from __future__ import annotations

import re

import pytest

from support.model_shapes import SHAPES, facts
from terrace_runtime.contract import MAX_TERMINATION_BYTES, FetchOutcome
from terrace_runtime.models.fit import message

# Weights in billions where the card says something else than the model's name.
CARDS = {
    "llama-2-70b": 69.0, "llama-2-7b": 6.74, "llama-3.2-1b": 1.24, "llama-3.2-3b": 3.21,
    "llama-3.1-70b": 70.6, "qwen2.5-7b": 7.62, "qwen3-8b": 8.19, "phi-4": 14.7, "gpt-oss-20b": 20.9,
    "qwen2.5-0.5b": 0.49, "gemma-2-2b": 2.61, "gemma-3-4b": 3.88, "gpt-oss-120b": 116.8,
    "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 140.6, "deepseek-v3": 671.0, "deepseek-v2-lite": 15.7,
    "llama-4-scout": 107.8, "jamba-1.5-mini": 51.6, "nemotron-h-8b": 8.1,
    "kimi-linear-48b-a3b": 49.1,
    "olmoe-1b-7b": 6.9,"mamba-2.8b": 2.77, "qwen3-next-80b-a3b": 79.7, "bge-m3": 0.567,
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), CARDS.items())
def test_a_shape_has_as_many_weights_as_its_card_says(name: str, billions: float) -> None:
    assert facts(name).parameters == pytest.approx(billions * 1e9, rel=0.012)


@pytest.mark.parametrize("name", SHAPES)
def test_the_facts_of_every_real_shape_travel_unmerged(name: str) -> None:
    known = facts(name)
    text = message(FetchOutcome(path="/models/m.gguf", facts=known), MAX_TERMINATION_BYTES)
    assert FetchOutcome.model_validate_json(text).facts == known
    assert re.fullmatch(r"[a-z0-9_-]+", known.architecture)
