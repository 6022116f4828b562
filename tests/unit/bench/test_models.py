"""The synthetic models: what their vocabulary promises, and that llama.cpp runs them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import TYPE_CHECKING

import gguf
import pytest

from bench import load, models
from build.source import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

_SMALL = models.Shape(width=128, layers=2, heads=2, kv_heads=1, feed_forward=128)
_TOKENIZE = """
import sys, llama_cpp
quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, None)
params = llama_cpp.llama_model_default_params()
params.vocab_only = True
vocab = llama_cpp.llama_model_get_vocab(
    llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params))
text = sys.argv[2].encode()
tokens = (llama_cpp.llama_token * 512)()
print(llama_cpp.llama_tokenize(vocab, text, len(text), tokens, 512, True, False))
"""


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    models.write_model(path, "small", _SMALL, "q4_0")
    return path


def test_every_token_is_there_once_and_every_merge_makes_a_token() -> None:
    tokens, merges = models.vocabulary()
    assert len(tokens) == len(set(tokens)) == models.VOCABULARY
    known = set(tokens)
    joined = {merge.replace(" ", "") for merge in merges}
    assert len(joined) == len(merges)
    assert joined <= known
    assert all(half in known for merge in merges for half in merge.split())


def test_the_vocabulary_is_the_same_every_time() -> None:
    assert models.vocabulary() == models.vocabulary()


def test_llama_cpp_decodes_a_batch_of_a_written_model(small: Path) -> None:
    check = REPOSITORY / "runtime_image/build/check.py"
    assert "CPU" in _python(str(check), str(check.parent), str(small))


def test_a_prompt_of_64_digits_is_64_tokens(small: Path) -> None:
    assert _python("-c", _TOKENIZE, str(small), load.digits(7, 64)).strip() == "64"


def test_prompts_of_different_seeds_differ() -> None:
    prompts = {load.digits(seed, 64) for seed in range(100)}
    assert len(prompts) == 100


def test_control_tokens_and_bytes_beyond_ascii_are_never_the_likeliest(small: Path) -> None:
    output = next(t for t in gguf.GGUFReader(small).tensors if t.name == "output.weight")
    rows = gguf.quants.dequantize(output.data, output.tensor_type)
    is_silent = [not row.any() for row in rows]
    tokens, _ = models.vocabulary()
    silent = {token for token, quiet in zip(tokens, is_silent, strict=True) if quiet}
    assert silent == set(tokens[128 : 256 + len(models.CONTROL)])


def test_sizes_are_what_their_names_say() -> None:
    counts = {}
    for name, shape in (("tiny", models.TINY), ("mid", models.MID)):
        head = 64
        attention = 2 * shape.heads * head + 2 * shape.kv_heads * head
        per_layer = shape.width * (attention + 3 * shape.feed_forward)
        counts[name] = (shape.layers * per_layer + 2 * models.VOCABULARY * shape.width) / 1e6
    assert round(counts["tiny"]) == 16
    assert round(counts["mid"]) == 151


def test_models_are_two_shapes_in_two_types() -> None:
    names = [f"{s}-{t}" for s, t in itertools.product(("tiny", "mid"), ("q8_0", "q4_0"))]
    assert list(models.MODELS) == names
