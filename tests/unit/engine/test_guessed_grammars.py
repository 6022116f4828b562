"""Grammars, penalties, seeds and logprobs give with guesses what they give without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.engine_builders import Clock, conversations, runtime_config
from support.speculation import FreeRows
from terrace_runtime.backend import Grammar
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract import Speculation
from terrace_runtime.engine.core import EngineCore
from terrace_runtime.engine.intake import make_sequence
from terrace_runtime.engine.request import Request, RequestOutput, SamplingParams
from terrace_runtime.engine.speculation import speculator
from terrace_runtime.engine.tiers import Tiers

if TYPE_CHECKING:
    from typing import Literal

SCHEMA = (
    '{"type":"array","items":{"enum":["llama llama llama","alpaca"]},"maxItems":12,"minItems":6}'
)
LIST = Grammar("json_schema", SCHEMA)
SAMPLINGS = (
    SamplingParams(temperature=0, grammar=LIST, logprobs=2),
    SamplingParams(temperature=1, seed=3, grammar=LIST),
    SamplingParams(temperature=0.5, seed=4, repeat_penalty=1.1, dry_multiplier=0.5, logprobs=0),
)


def outputs(mode: Literal["off", "ngram"]) -> tuple[dict[str, list[RequestOutput]], int]:
    """What each request got, and how many guesses were right."""
    config = runtime_config(
        speculation=Speculation(mode=mode), context_tokens=512, parallel=4, threads=1
    )
    backend = LlamaBackend()
    backend.load(config)
    clock = Clock()  # How fast this machine is just now decides nothing here.
    tiers = Tiers(backend, config, clock=clock)
    costs = FreeRows(config.prefill_tokens)
    guessing = speculator(config, backend, costs, clock)
    core = EngineCore(
        backend,
        config,
        tiers,
        clock=clock,
        draw_seed=lambda: 1,
        costs=costs,
        speculator=guessing,
    )
    prompt = conversations()[0].prompt
    found: dict[str, list[RequestOutput]] = {}
    for number, sampling in enumerate(SAMPLINGS):
        request = Request(
            id=str(number), prompt=prompt, sampling=sampling, max_tokens=120, add_bos=False
        )
        found[request.id] = []
        sequence = make_sequence(request, backend, core.table, config)
        core.prepare(sequence)
        core.add(sequence)
    while core.has_work:
        for output in core.step():
            found[output.id].append(output)
    tiers.close(1.0)
    backend.close()
    return found, guessing.report.accepted_tokens if guessing is not None else 0


def test_guesses_change_no_answer() -> None:
    plain, _ = outputs("off")
    guessed, accepted = outputs("ngram")
    assert accepted > 20
    for name, alone in plain.items():
        together = guessed[name]
        assert "".join(one.text for one in together) == "".join(one.text for one in alone)
        entries = [entry for one in together for entry in one.logprobs]
        expected = [entry for one in alone for entry in one.logprobs]
        assert [entry.piece for entry in entries] == [entry.piece for entry in expected]
        # Rows of another batch shape differ in their last bits.
        assert [entry.logprob for entry in entries] == pytest.approx(
            [entry.logprob for entry in expected], abs=0.02
        )
    assert len([one for output in guessed["0"] for one in output.logprobs]) > 20
