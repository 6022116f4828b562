"""The synthetic models: what their vocabulary promises, and that llama.cpp runs them."""

from __future__ import annotations

import itertools
import string
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from bench import models, plans
from build.source import REPOSITORY
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.gguf_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 8192
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
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["q4_0", "q8_0"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    models.write_model(path, "small", _SMALL, request.param)
    return path


def test_every_token_is_there_once_and_every_merge_makes_a_token() -> None:
    tokens, merges = models.vocabulary(SIZE)
    assert len(tokens) == len(set(tokens)) == SIZE
    known = set(tokens)
    joined = {merge.replace(" ", "") for merge in merges}
    assert len(joined) == len(merges)
    assert joined <= known
    assert all(half in known for merge in merges for half in merge.split())


def test_the_vocabulary_is_the_same_every_time() -> None:
    assert models.vocabulary(SIZE) == models.vocabulary(SIZE)


def test_llama_cpp_decodes_a_batch_of_a_written_model(small: Path) -> None:
    check = REPOSITORY / "runtime_image/build/check.py"
    assert "CPU" in _python(str(check), str(check.parent), str(small))


def test_a_prompt_of_64_digits_is_64_tokens(small: Path) -> None:
    assert _python("-c", _TOKENIZE, str(small), plans.digits(7, 64)).strip() == "64"


def test_prompts_of_different_seeds_differ() -> None:
    prompts = {plans.digits(seed, 64) for seed in range(100)}
    assert len(prompts) == 100


def _rows(path: Path, key: str) -> NDArray[np.float32]:
    tensor = next(one for one in gguf.GGUFReader(path).tensors if one.name == key)
    rows: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return rows


def test_only_digits_can_be_answers_and_one_of_them_is_always_above_zero(small: Path) -> None:
    rows = _rows(small, "output.weight")
    sizes = np.abs(rows).max(axis=1)
    loud = np.flatnonzero(sizes > 0.1 * sizes.max())
    tokens, _ = models.vocabulary(SIZE)
    assert [tokens[index] for index in loud] == list(string.digits)
    digits = rows[models.DIGITS]
    assert (digits[5:] == -digits[:5]).all()


def test_weights_spread_as_those_of_a_trained_model(small: Path) -> None:
    rows = _rows(small, "blk.1.ffn_down.weight")
    assert rows.shape == (_SMALL.width, _SMALL.feed_forward)
    assert rows.std() == pytest.approx(_SMALL.feed_forward**-0.5, rel=0.05)
    assert abs(rows.mean()) < 0.01 * rows.std() + 1e-3


def test_a_tied_model_has_one_embedding_and_no_head(tmp_path: Path) -> None:
    path = tmp_path / "tied.gguf"
    models.write_model(path, "tied", replace(_SMALL, is_tied=True), "q8_0")
    assert not any(one.name == "output.weight" for one in gguf.GGUFReader(path).tensors)
    check = REPOSITORY / "runtime_image/build/check.py"
    assert "CPU" in _python(str(check), str(check.parent), str(path))


def test_a_windowed_model_is_one_that_llama_cpp_keeps_windows_of(tmp_path: Path) -> None:
    path = tmp_path / "windowed.gguf"
    models.write_model(path, "windowed", replace(_SMALL, window=64), "q4_0")
    check = REPOSITORY / "runtime_image/build/check.py"
    assert "CPU" in _python(str(check), str(check.parent), str(path))
    with path.open("rb") as file:
        facts = model_facts(read_header(file, path.stat().st_size), "0" * 64)
    assert {run.window for run in facts.layers} == {64}


def test_sizes_are_what_their_names_say() -> None:
    counts = {}
    for name in ("tiny", "mid", "big"):
        shape, _ = models.MODELS[f"{name}-q8_0"]
        head = 64
        attention = 2 * shape.heads * head + 2 * shape.kv_heads * head
        per_layer = shape.width * (attention + 3 * shape.feed_forward)
        tables = (1 if shape.is_tied else 2) * shape.vocabulary * shape.width
        counts[name] = round((shape.layers * per_layer + tables) / 1e6)
    assert counts == {"tiny": 16, "mid": 151, "big": 1040}


def test_models_are_six_shapes_in_two_types() -> None:
    shapes = ("tiny", "mid", "windowed", "big", "wordy", "long")
    names = [f"{s}-{t}" for s, t in itertools.product(shapes, ("q8_0", "q4_0"))]
    assert list(models.MODELS) == names
    assert models.WORDY.vocabulary == 152_064
