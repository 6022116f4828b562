"""LoRA on the real llama.cpp: an adapter changes its own requests alone, and must fit."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from support.engine_builders import answer_of, conversations, runtime_config
from support.lora_files import adapter, lora_file
from terrace_runtime.backend import DECODE_OK, BackendError
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.inprocess import InProcessEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from terrace_runtime.contract import Adapter

GENTLE = 0.4
"""Strength at which rounding, which with unified KV depends on who is there, turns no answer."""
PROMPT = [5, 6, 7, 8, 9, 10, 11]


def load(*adapters: Adapter, **changes: Any) -> LlamaBackend:
    backend = LlamaBackend()
    backend.load(runtime_config(threads=1, adapters=adapters, **changes))
    return backend


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LlamaBackend]:
    files = {name: lora_file(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))}
    loaded = load(*(adapter(name, path) for name, path in files.items()))
    yield loaded
    loaded.close()


def greedy(backend: LlamaBackend, slot: int, count: int = 12) -> list[int]:
    """The tokens after PROMPT in an empty slot, with whatever adapter is in use."""
    tokens = list(PROMPT)
    position = 0
    while len(tokens) < len(PROMPT) + count:
        backend.batch.clear()
        backend.batch.extend(tokens[position:], slot, position, outputs=1)
        assert backend.decode() == DECODE_OK
        position = len(tokens)
        tokens.append(int(backend.logits()[0].argmax()))
    backend.seq_rm(slot)
    return tokens[len(PROMPT) :]


def test_two_adapters_differ_from_the_model_and_from_each_other(backend: LlamaBackend) -> None:
    answers = {}
    for name in ("", "a", "b"):
        backend.use_adapter(name)
        answers[name] = greedy(backend, 0)
    assert len({tuple(answer) for answer in answers.values()}) == 3
    assert backend.info.adapter_switch_s > 0


def test_the_model_alone_says_the_same_while_adapters_take_turns_with_it(
    backend: LlamaBackend,
) -> None:
    plain = load()
    alone = greedy(plain, 0)
    plain.close()
    names = ["", "a", "b"]
    tokens: dict[str, list[int]] = {name: list(PROMPT) for name in names}
    done = dict.fromkeys(names, 0)
    for _ in range(12):
        for slot, name in enumerate(names):
            backend.use_adapter(name)
            backend.batch.clear()
            backend.batch.extend(tokens[name][done[name] :], slot, done[name], outputs=1)
            assert backend.decode() == DECODE_OK
            done[name] = len(tokens[name])
            tokens[name].append(int(backend.logits()[0].argmax()))
    assert tokens[""][len(PROMPT) :] == alone
    for slot, name in enumerate(names):
        backend.seq_rm(slot)
        backend.use_adapter(name)
        assert greedy(backend, slot) == tokens[name][len(PROMPT) :], name


def test_the_adapter_in_use_stays_when_the_cells_are_opened_anew(backend: LlamaBackend) -> None:
    alone = greedy(backend, 0)
    backend.seq_rm(0)
    backend.use_adapter("a")
    adapted = greedy(backend, 0)
    assert adapted != alone
    for unified in (True, False):
        backend.reopen(unified=unified)
        assert backend.is_unified == unified
        assert greedy(backend, 0) == adapted
    backend.reopen(unified=True)
    backend.use_adapter("")
    assert greedy(backend, 0) == alone


@pytest.mark.parametrize("kv_unified", [False, True])
async def test_verified_answers_hold_while_requests_of_adapters_interleave(
    tmp_path: Path, *, kv_unified: bool
) -> None:
    files = {f"a{n}": lora_file(tmp_path / f"a{n}", seed=n, strength=GENTLE) for n in (1, 2)}
    config = runtime_config(
        context_tokens=512,
        batch_tokens=256,
        threads=1,
        parallel=6,
        adapters=[adapter(name, file) for name, file in files.items()],
        kv_unified=kv_unified,
    )
    engine = InProcessEngine(config, LlamaBackend())
    await engine.start()
    chosen = conversations()[:6]
    requests = [
        dataclasses.replace(one.request(f"{name}{number}"), adapter=name, max_tokens=16)
        for number, one in enumerate(chosen)
        for name in ("", "a1", "a2")
    ]
    alone = [(await answer_of(engine, request)).facts for request in requests]
    together = await asyncio.gather(*(answer_of(engine, request) for request in requests))
    await engine.close()
    assert [answer.facts for answer in together] == alone
    for one, (text, _, _) in zip(chosen, alone[::3], strict=True):
        assert one.answer.startswith(text)
    assert len({tuple(alone[start::3]) for start in range(3)}) == 3


def test_the_scale_weighs_the_adapter_and_0_is_the_model_alone(tmp_path: Path) -> None:
    file = lora_file(tmp_path / "a")
    scaled = {f"x{scale}": adapter(f"x{scale}", file, scale=scale) for scale in (0, 1, 3)}
    backend = load(*scaled.values())
    rows = {}
    for name in ("", *scaled):
        backend.use_adapter(name)
        backend.batch.clear()
        backend.batch.extend(PROMPT, 0, 0, outputs=1)
        assert backend.decode() == DECODE_OK
        rows[name] = backend.logits()[0].copy()
        backend.seq_rm(0)
    backend.close()
    assert np.array_equal(rows["x0"], rows[""])
    drift = [float(np.abs(rows[name] - rows[""]).mean()) for name in ("x1", "x3")]
    assert 0 < drift[0] < drift[1]


def test_an_unknown_adapter_is_refused_by_name(backend: LlamaBackend) -> None:
    with pytest.raises(BackendError, match="no adapter poet"):
        backend.use_adapter("poet")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 128}, "does not fit this model: .*incorrect shape"),
        ({"layers": 6}, "does not fit this model: .*blk.5.*does not exist in base model"),
        ({"architecture": "qwen3"}, "is for 'qwen3', not for llama"),
        ({"general_type": "model"}, "not of a LoRA adapter"),
        ({"dtype": np.int32}, "of type I32, no matrix of weights"),
        ({"invocation_tokens": (1, 2)}, "activated LoRA"),
        ({"strength": np.inf}, "logits are not numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    file = lora_file(tmp_path / "poet.gguf", **changes)
    with pytest.raises(BackendError, match=rf"adapter poet .*{reason}"):
        load(adapter("poet", file))


def test_a_changed_file_is_refused_by_its_digest(tmp_path: Path) -> None:
    known = adapter("poet", lora_file(tmp_path / "poet.gguf"))
    lora_file(tmp_path / "poet.gguf", seed=9)
    with pytest.raises(BackendError, match=r"adapter poet .* has sha256 .*fetch it again"):
        load(known)


def test_a_truncated_or_missing_file_is_refused(tmp_path: Path) -> None:
    file = lora_file(tmp_path / "poet.gguf")
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(BackendError, match=r"adapter poet .*is not usable"):
        load(adapter("poet", file))
    known = adapter("poet", file)
    file.unlink()
    with pytest.raises(BackendError, match=r"adapter poet .*cannot be read: No such file"):
        load(known)


def test_two_adapters_of_one_name_are_refused(tmp_path: Path) -> None:
    one = adapter("poet", lora_file(tmp_path / "poet.gguf"))
    with pytest.raises(ValidationError, match="the name poet is taken"):
        runtime_config(adapters=(one, one))
    with pytest.raises(ValidationError, match="the name poet is taken"):
        runtime_config(adapters=(one,), served_names=("chat", "poet"))
