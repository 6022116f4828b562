"""The engine's loop on the fake backend, where any wrong cell changes the answer."""

from __future__ import annotations

import random

import pytest

from support.engine_builders import (
    CoreDriver,
    alone,
    random_request,
    runtime_config,
    text_request,
)
from terrace_runtime.backend import DECODE_NO_ROOM, BackendError
from terrace_runtime.backend.fake import FakeBackend, Fault
from terrace_runtime.engine.request import FinishReason, InvalidRequestError, SamplingParams

CONFIG = runtime_config()
HOST = {"host_bytes": 1 << 20, "block_tokens": 8}
TIERED = runtime_config(kv=HOST)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("parallel", [1, 3, 16])
@pytest.mark.parametrize("layout", ["split", "unified"])
@pytest.mark.parametrize("kv", [{}, HOST, {"host_bytes": 600, "block_tokens": 8}])
def test_requests_that_run_together_get_what_each_gets_alone(
    seed: int, parallel: int, layout: str, kv: dict[str, int]
) -> None:
    chance = random.Random(seed)
    interval_s = chance.choice([0, 0.03])
    config = runtime_config(
        parallel=parallel, kv_unified=layout == "unified", kv=kv, stream_interval_s=interval_s
    )
    requests = [random_request(f"r{number}", chance) for number in range(24)]
    driver = CoreDriver(config)
    late = list(requests)
    while late or driver.core.has_work:
        arrivals, late = late[:2], late[2:]
        driver.submit(*arrivals)
        driver.step()
    for request in requests:
        assert driver.answers[request.id].facts == alone(request, config).facts


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    def text(seed: int) -> str:
        sampling = SamplingParams(temperature=1, seed=seed)
        backend = FakeBackend(eos_odds=10**9)
        driver = CoreDriver(CONFIG, backend)
        driver.submit(text_request("r", sampling=sampling))
        return driver.run()["r"].text

    assert text(1) == text(1) != text(2)


def test_an_answer_is_cut_at_max_tokens() -> None:
    driver = CoreDriver(CONFIG, FakeBackend(eos_odds=10**9))
    driver.submit(text_request("r", max_tokens=5))
    answer = driver.run()["r"]
    assert (answer.num_tokens, answer.finish) == (5, FinishReason.LENGTH)


def test_an_answer_is_cut_where_the_context_ends() -> None:
    driver = CoreDriver(CONFIG, FakeBackend(eos_odds=10**9))
    driver.submit(text_request("r", "x" * 250, max_tokens=1000))
    answer = driver.run()["r"]
    assert (answer.num_tokens, answer.finish) == (6, FinishReason.LENGTH)


def test_the_servers_own_max_tokens_bounds_every_request() -> None:
    driver = CoreDriver(runtime_config(max_tokens=7), FakeBackend(eos_odds=10**9))
    driver.submit(text_request("open", max_tokens=None), text_request("more", max_tokens=50))
    assert {answer.num_tokens for answer in driver.run().values()} == {7}


def test_ignore_eos_goes_on_to_max_tokens() -> None:
    backend = FakeBackend(eos_odds=3)
    driver = CoreDriver(CONFIG, backend)
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    driver.submit(text_request("r", sampling=sampling, max_tokens=50))
    assert driver.run()["r"].num_tokens == 50


def test_first_and_last_output_name_the_prompts_tokens() -> None:
    driver = CoreDriver(CONFIG, FakeBackend(eos_odds=10**9))
    driver.submit(text_request("r", "12345", max_tokens=3))
    outputs = []
    while driver.core.has_work:
        outputs += driver.step()
    assert [output.num_prompt_tokens for output in outputs] == [5, 0, 5]


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    driver = CoreDriver(CONFIG)
    with pytest.raises(InvalidRequestError, match=r"256 tokens.*holds 256") as caught:
        driver.submit(text_request("r", "x" * 256))
    assert caught.value.param == "prompt"


def test_an_abort_ends_a_request_in_the_next_step_and_frees_its_slot() -> None:
    config = runtime_config(parallel=1)
    driver = CoreDriver(config, FakeBackend(eos_odds=10**9))
    driver.submit(text_request("first"), text_request("second"))
    driver.step()
    driver.core.abort("first")
    driver.core.abort("first")
    driver.core.abort("nobody")
    driver.step()
    assert driver.answers["first"].finish is FinishReason.ABORT
    assert driver.run()["second"].finish is FinishReason.LENGTH


def test_an_abort_ends_a_request_that_still_waits() -> None:
    driver = CoreDriver(runtime_config(parallel=1), FakeBackend(eos_odds=10**9))
    driver.submit(text_request("first"), text_request("second"))
    driver.step()
    driver.core.abort("second")
    driver.step()
    assert driver.answers["second"].finish is FinishReason.ABORT
    assert driver.answers["second"].num_tokens == 0


@pytest.mark.parametrize(("layout", "steps_per_chunk"), [("unified", 1), ("split", 2)])
def test_decoding_goes_on_while_a_long_prompt_is_computed(
    layout: str, steps_per_chunk: int
) -> None:
    settings = runtime_config(kv_unified=layout == "unified")
    driver = CoreDriver(settings, FakeBackend(eos_odds=10**9))
    driver.submit(text_request("talks", max_tokens=100))
    driver.step()
    driver.submit(text_request("listens", "y" * 160))
    before = driver.answers["talks"].num_tokens
    steps = 0
    while not driver.answers["listens"].num_tokens:
        driver.step()
        steps += 1
    chunks = 160 / settings.prefill_tokens
    assert abs(steps - chunks * steps_per_chunk) < steps_per_chunk
    assert abs(driver.answers["talks"].num_tokens - before - chunks) <= 1


def test_a_prompt_alone_takes_the_whole_batch() -> None:
    driver = CoreDriver(CONFIG)
    driver.submit(text_request("r", "y" * 64))
    assert len(driver.step()) == 1


def test_interactive_requests_go_before_batch_ones_and_waiting_lifts_them() -> None:
    driver = CoreDriver(runtime_config(parallel=1), FakeBackend(eos_odds=10**9))
    driver.submit(text_request("old batch", priority=1))
    driver.clock.now += 100
    driver.submit(text_request("batch", priority=1), text_request("interactive"))
    order = []
    while driver.core.has_work:
        order += [output.id for output in driver.step() if output.finish]
    assert order == ["old batch", "interactive", "batch"]


def test_a_tenant_with_many_requests_does_not_hold_up_one_with_few() -> None:
    driver = CoreDriver(runtime_config(parallel=1), FakeBackend(eos_odds=10**9))
    driver.submit(*(text_request(f"crowd{number}", tenant="crowd") for number in range(5)))
    driver.step()
    driver.submit(text_request("single", tenant="single"))
    order = []
    while driver.core.has_work:
        order += [output.id for output in driver.step() if output.finish]
    assert order[:2] == ["crowd0", "single"]


def test_every_sequence_gets_its_turn_when_they_are_more_than_the_batch() -> None:
    config = runtime_config(parallel=50, batch_tokens=32)
    driver = CoreDriver(config, FakeBackend(eos_odds=10**9))
    driver.submit(*(text_request(f"r{number}", "a", max_tokens=10) for number in range(50)))
    assert {answer.num_tokens for answer in driver.run().values()} == {10}


# A full KV cache --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_full_kv_cache_delays_requests_but_changes_no_answer(seed: int) -> None:
    chance = random.Random(seed)
    requests = [random_request(f"r{n}", chance, max_tokens=20) for n in range(10)]
    driver = CoreDriver(CONFIG, FakeBackend(kv_cells=120))
    driver.submit(*requests)
    answers = driver.run()
    for request in requests:
        assert answers[request.id].facts == alone(request, CONFIG).facts


def test_a_sequence_that_fills_the_cache_alone_ends_by_length() -> None:
    driver = CoreDriver(CONFIG, FakeBackend(kv_cells=40, eos_odds=10**9))
    driver.submit(text_request("r", "x" * 30, max_tokens=100))
    answer = driver.run()["r"]
    assert (answer.finish, answer.num_tokens) == (FinishReason.LENGTH, 11)


def test_a_prompt_that_can_never_fit_ends_with_an_error_that_says_so() -> None:
    driver = CoreDriver(CONFIG, FakeBackend(kv_cells=20))
    driver.submit(text_request("r", "x" * 30))
    end = driver.run()["r"].ends[0]
    assert end.finish is FinishReason.ERROR
    assert "KV cache is full" in end.error


def test_no_room_once_is_retried_in_the_same_step() -> None:
    request = text_request("r")
    driver = CoreDriver(CONFIG, FakeBackend(faults={0: Fault(code=DECODE_NO_ROOM)}))
    driver.submit(request)
    assert driver.run()["r"].facts == alone(request, CONFIG).facts


@pytest.mark.parametrize("fault", [Fault(code=-2), Fault(code=2), Fault(error="broken")])
def test_a_broken_backend_raises_with_the_reason(fault: Fault) -> None:
    driver = CoreDriver(CONFIG, FakeBackend(faults={1: fault}))
    driver.submit(text_request("r"))
    driver.step()
    with pytest.raises(BackendError, match=r"code -2|code 2|broken"):
        driver.step()


# Slots -------------------------------------------------------------------------------------------


def test_holes_between_decoding_slots_are_filled_with_throw_away_tokens() -> None:
    driver = CoreDriver(TIERED, FakeBackend(eos_odds=10**9))
    lengths = {"a": 60, "b": 5, "c": 60, "d": 60}
    driver.submit(*(text_request(name, "hi", max_tokens=n) for name, n in lengths.items()))
    while not driver.answers["b"].ends:
        driver.step()
    evaluations, decodes = driver.backend.ubatches, driver.backend.decodes
    answers = driver.run()
    assert driver.backend.ubatches - evaluations == driver.backend.decodes - decodes
    for name, length in lengths.items():
        request = text_request(name, "hi", max_tokens=length)
        reference = CoreDriver(CONFIG, FakeBackend(eos_odds=10**9))
        reference.submit(request)
        assert answers[name].facts == reference.run()[name].facts


def test_a_step_that_is_quicker_with_a_row_more_gets_one_and_answers_the_same() -> None:
    driver = CoreDriver(TIERED, FakeBackend(eos_odds=10**9))
    for rows, seconds in ((3, 0.0061), (4, 0.0049)):
        for _ in range(5):
            driver.core.costs.record(rows, 0, seconds)
    requests = [text_request(name, "hi", max_tokens=90) for name in ("a", "b", "c")]
    driver.submit(*requests)
    for _ in range(20):
        driver.step()
    assert driver.backend.seq_pos_max(3) >= 0
    answers = driver.run()
    assert driver.backend.seq_pos_max(3) < 90
    for request in requests:
        reference = CoreDriver(CONFIG, FakeBackend(eos_odds=10**9))
        reference.submit(request)
        assert answers[request.id].facts == reference.run()[request.id].facts


def test_a_new_request_takes_the_hole_and_starts_from_clean_cells() -> None:
    driver = CoreDriver(CONFIG, FakeBackend(eos_odds=10**9))
    driver.submit(*(text_request(name, "hi", max_tokens=n) for name, n in (("a", 40), ("b", 3))))
    driver.submit(text_request("c", "hi", max_tokens=40))
    while not driver.answers["b"].ends:
        driver.step()
    for _ in range(5):
        driver.step()
    late = text_request("late", "something else", max_tokens=12)
    driver.submit(late)
    reference = CoreDriver(CONFIG, FakeBackend(eos_odds=10**9))
    reference.submit(late)
    assert driver.run()["late"].facts == reference.run()["late"].facts


def test_unified_kv_needs_no_fillers() -> None:
    driver = CoreDriver(runtime_config(kv_unified=True), FakeBackend(eos_odds=10**9))
    lengths = {"a": 9, "b": 2, "c": 9}
    driver.submit(*(text_request(name, "hi", max_tokens=n) for name, n in lengths.items()))
    while not driver.answers["b"].ends:
        driver.step()
    driver.step()
    assert [driver.backend.seq_pos_max(slot) >= 0 for slot in range(3)] == [True, False, True]


def test_when_all_is_done_every_cell_slot_and_tenant_is_free() -> None:
    driver = CoreDriver(CONFIG)
    chance = random.Random(3)
    driver.submit(*(random_request(f"r{number}", chance) for number in range(12)))
    driver.run()
    stats = driver.core.stats
    assert (stats.waiting, stats.running, stats.kv_used_tokens) == (0, 0, 0)
    assert driver.core._shares._served == {}
    driver.core.prefix.residents.drop_all()
    assert [driver.backend.seq_pos_max(slot) for slot in range(4)] == [-1] * 4
