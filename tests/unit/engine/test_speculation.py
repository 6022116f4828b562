"""Guesses in the engine: verified, taken back, reported, and refused where they cannot work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from support.engine_builders import DEMO, Clock, CoreDriver, runtime_config, text_request
from support.speculation import guessing, guessing_driver
from support.tiny_models import llama
from support.tiny_recurrent_models import mamba
from terrace_runtime.backend import BackendError
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.contract import Speculation
from terrace_runtime.engine.calibration import calibrate
from terrace_runtime.engine.costs import StepCosts
from terrace_runtime.engine.request import SamplingParams
from terrace_runtime.engine.speculation import speculator

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import SpeculationReport
    from terrace_runtime.engine.request import Request


ENDLESS = SamplingParams(temperature=0, ignore_eos=True)


def endless(name: str, max_tokens: int) -> Request:
    """A greedy request that ends by its length alone."""
    return text_request(name, sampling=ENDLESS, max_tokens=max_tokens)


def report_of(driver: CoreDriver) -> SpeculationReport:
    assert driver.core.speculator is not None
    return driver.core.speculator.report


def test_right_guesses_save_steps() -> None:
    config = guessing("draft")
    request = endless("a", 100)
    driver = guessing_driver(config, FakeBackend(draft_errors=10**9))
    driver.submit(request)
    answer = driver.run()["a"]
    assert answer.num_tokens == 100
    assert driver.steps < 30
    report = report_of(driver)
    assert report.is_active
    assert report.reason == ""
    assert report.drafted_tokens == report.accepted_tokens > 70


def test_only_wrong_guesses_save_no_step_and_change_nothing() -> None:
    request = text_request("a", max_tokens=60)
    driver = guessing_driver(guessing("draft"), FakeBackend(draft_errors=1))
    driver.submit(request)
    plain = CoreDriver(runtime_config())
    plain.submit(request)
    assert driver.run()["a"].facts == plain.run()["a"].facts
    assert driver.steps == plain.steps
    assert report_of(driver).accepted_tokens == 0
    assert report_of(driver).drafted_tokens > 0


def test_a_repeating_text_is_guessed_from_itself() -> None:
    backend = FakeBackend()
    backend.next_token = lambda history: (history[-1] + 1) % 7 + 97  # type: ignore[method-assign] # a text that repeats
    driver = guessing_driver(guessing("ngram"), backend)
    driver.submit(text_request("a", "abcdefg", max_tokens=100))
    driver.run()
    assert report_of(driver).accepted_tokens > 60
    assert driver.steps < 40


def test_the_last_token_is_never_guessed_past() -> None:
    driver = guessing_driver(guessing("draft", 8), FakeBackend(draft_errors=10**9))
    driver.submit(endless("a", 5))
    assert driver.run()["a"].num_tokens == 5
    assert report_of(driver).drafted_tokens <= 4


def test_split_sequences_with_guesses_stay_one_evaluation() -> None:
    backend = FakeBackend(draft_errors=2)
    driver = guessing_driver(guessing("draft", parallel=4), backend)
    driver.submit(*(endless(name, 80) for name in "abcd"))
    while any(one.num_generated == 0 for one in driver.core.running) or driver.steps < 3:
        driver.step()
    driver.core.abort("b")
    lengths = []
    while len(driver.core.running) >= 3:
        driver.step()
        rows = backend.batch.sequences[: backend.batch.size].tolist()
        lengths.append({rows.count(slot) for slot in set(rows)})
    assert all(len(found) == 1 for found in lengths)
    assert any(found != {1} for found in lengths)


def test_a_slot_that_changes_hands_is_read_anew_by_the_draft() -> None:
    # The fake asserts that what it holds is the beginning of the history that it is shown.
    driver = guessing_driver(guessing("draft", parallel=1))
    driver.submit(*(text_request(name, f"the {name} llama", max_tokens=30) for name in "abcd"))
    driver.run()
    assert report_of(driver).accepted_tokens > 0


def test_a_model_whose_cells_cannot_be_cut_is_not_guessed_for() -> None:
    driver = guessing_driver(guessing("ngram"), FakeBackend(reuse="checkpoints"))
    driver.submit(text_request("a", "aaaaaaaaaaaa", max_tokens=30))
    driver.run()
    report = report_of(driver)
    assert not report.is_active
    assert "cannot be cut" in report.reason
    assert report.drafted_tokens == 0


def test_without_speculation_there_is_no_speculator() -> None:
    config = runtime_config()
    backend = FakeBackend()
    backend.load(config)
    assert speculator(config, backend, StepCosts(16)) is None


class WorkingBackend(FakeBackend):
    """Each row of a decode takes 10 ms of ``clock``."""

    clock: Clock

    @override
    def decode(self) -> int:
        self.clock.now += 0.01 * self.batch.size
        return super().decode()


def test_guesses_that_lose_are_given_up_and_the_reason_is_told() -> None:
    config = guessing("draft")
    backend = WorkingBackend(draft_errors=1)
    driver = CoreDriver(config, backend)
    backend.clock = driver.clock
    calibrate(backend, config, driver.core.costs, driver.clock)
    costs = driver.core.costs
    driver.core.speculator = speculator(config, backend, costs, driver.clock)
    driver.submit(endless("a", 200))
    driver.run()
    report = report_of(driver)
    assert not report.is_active
    assert "times the speed" in report.reason
    assert 0 < report.drafted_tokens < 20


def refusal(path: Path | str, **changes: Any) -> str:
    """What the real backend says to a draft at ``path``."""
    settings = Speculation(mode="draft", draft_path=str(path))
    backend = LlamaBackend()
    with pytest.raises(BackendError) as caught:
        backend.load(runtime_config(speculation=settings, **changes))
    return str(caught.value)


def test_a_draft_that_is_not_there_is_refused_by_its_field(tmp_path: Path) -> None:
    said = refusal(tmp_path / "none.gguf")
    assert "speculation.draft_path" in said
    assert "none.gguf" in said


def test_draft_mode_without_a_path_is_refused() -> None:
    assert "speculation.draft_path is empty" in refusal("")


def test_a_file_that_is_no_model_is_refused_by_its_field(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    assert "speculation.draft_path" in refusal(tmp_path / "bad.gguf")


def test_a_draft_of_another_vocabulary_is_refused_with_the_difference(tmp_path: Path) -> None:
    llama(tmp_path / "bytes.gguf")
    said = refusal(tmp_path / "bytes.gguf")
    assert "another vocabulary" in said
    assert "the model has 2048" in said


def test_a_draft_whose_cells_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    llama(tmp_path / "model.gguf")
    mamba(tmp_path / "draft.gguf")
    said = refusal(tmp_path / "draft.gguf", model_path=str(tmp_path / "model.gguf"))
    assert "cannot be cut" in said or "keeps no KV" in said


def test_memory_of_the_draft_is_reported() -> None:
    plain, drafting = LlamaBackend(), LlamaBackend()
    plain.load(runtime_config())
    settings = Speculation(mode="draft", draft_path=str(DEMO / "draft.gguf"))
    drafting.load(runtime_config(speculation=settings))
    for name in ("weights_bytes", "kv_bytes", "compute_bytes"):
        assert getattr(drafting.info, name) > getattr(plain.info, name) > 0
    plain.close()
    drafting.close()
