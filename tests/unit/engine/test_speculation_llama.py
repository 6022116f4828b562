"""Guesses on the demo model: its verified answers, word for word, in fewer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from support.engine_builders import DEMO, Answer, Clock, conversations, runtime_config
from support.speculation import FreeRows
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract import Speculation, SpeculationReport
from terrace_runtime.engine.core import EngineCore
from terrace_runtime.engine.intake import make_sequence
from terrace_runtime.engine.speculation import speculator
from terrace_runtime.engine.tiers import Tiers

if TYPE_CHECKING:
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.request import Request

Mode = Literal["ngram", "draft"]


def config_for(mode: Mode, **changes: object) -> RuntimeConfig:
    path = str(DEMO / "draft.gguf") if mode == "draft" else ""
    settings = Speculation(mode=mode, draft_path=path)
    return runtime_config(speculation=settings, context_tokens=2048, threads=1, **changes)


def answers_of(
    config: RuntimeConfig, requests: list[Request]
) -> tuple[dict[str, str], SpeculationReport]:
    """Texts of all ``requests``, run together, and what guessing brought."""
    backend = LlamaBackend()
    backend.load(config)
    clock = Clock()  # How fast this machine is just now decides nothing here.
    tiers = Tiers(backend, config, clock=clock)
    costs = FreeRows(config.prefill_tokens)
    guessing = speculator(config, backend, costs, clock)
    assert guessing is not None
    core = EngineCore(
        backend,
        config,
        tiers,
        clock=clock,
        draw_seed=lambda: 1,
        costs=costs,
        speculator=guessing,
    )
    answers = {request.id: Answer() for request in requests}
    for request in requests:
        sequence = make_sequence(request, backend, core.table, config)
        core.prepare(sequence)
        core.add(sequence)
    while core.has_work:
        for output in core.step():
            answers[output.id].add(output)
    tiers.close(1.0)
    backend.close()
    return {name: answer.text for name, answer in answers.items()}, guessing.report


@pytest.mark.parametrize("mode", ["ngram", "draft"])
@pytest.mark.parametrize("is_unified", [False, True])
def test_verified_answers_stay_word_for_word(mode: Mode, *, is_unified: bool) -> None:
    cases = conversations()[::8]
    config = config_for(mode, parallel=4, kv_unified=is_unified)
    requests = [case.request(str(number)) for number, case in enumerate(cases)]
    texts, report = answers_of(config, requests)
    assert [texts[one.id].strip() for one in requests] == [case.answer for case in cases]
    assert report.accepted_tokens > 50


def test_copied_text_is_mostly_guessed_right() -> None:
    copies = [one for one in conversations() if "Repeat after me" in one.prompt[1].text]
    requests = [case.request(str(number)) for number, case in enumerate(copies)]
    _, report = answers_of(config_for("ngram"), requests)
    assert len(copies) > 10
    assert report.accepted_tokens > 0.4 * report.drafted_tokens > 20
