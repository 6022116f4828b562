"""Prefixes are found wherever they are, and whoever would compute one twice waits for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from support.engine_builders import CoreDriver, alone, runtime_config, text_request
from support.waiting import wait_for
from terrace_runtime.backend.fake import FakeBackend

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.request import Request

ENDLESS = 10**9
PREFIX = "the llama climbs a terrace and tells of pods " * 4
"""180 tokens of the fake backend: 22 blocks of 8."""
BLOCK_BYTES = 64
"""Of the fake backend's cells for 8 tokens."""
LAYOUTS = pytest.mark.parametrize("layout", ["split", "unified"])


def config(layout: str = "split", **changes: Any) -> RuntimeConfig:
    kv = {"host_bytes": 1 << 20, "block_tokens": 8, **changes.pop("kv", {})}
    return runtime_config(kv_unified=layout == "unified", kv=kv, context_tokens=512, **changes)


def driver(settings: RuntimeConfig, **faults: Any) -> CoreDriver:
    return CoreDriver(settings, FakeBackend(eos_odds=ENDLESS, **faults))


def expected(request: Request, settings: RuntimeConfig) -> tuple[str, int, object]:
    reference = driver(settings)
    reference.submit(request)
    return reference.run()[request.id].facts


def cached(engine: CoreDriver, name: str) -> tuple[int, str]:
    end = engine.answers[name].ends[0]
    return end.num_cached_tokens, end.cached_tier


def computed_tokens(engine: CoreDriver) -> int:
    return engine.core.stats.prompt_tokens


@LAYOUTS
def test_the_next_turn_goes_on_in_the_cells_of_the_one_before(layout: str) -> None:
    settings = config(layout)
    engine = driver(settings)
    engine.submit(text_request("first", PREFIX, max_tokens=9))
    first = engine.run()["first"]
    follow = text_request("second", PREFIX + first.text + " and then?")
    engine.submit(follow)
    engine.run()
    tokens, tier = cached(engine, "second")
    assert tier == "device"
    assert tokens == len(PREFIX) + 8, "all cells of the first: its last token was never computed"
    assert engine.answers["second"].facts == expected(follow, settings)


@LAYOUTS
def test_requests_that_come_together_compute_their_common_beginning_once(layout: str) -> None:
    settings = config(layout, parallel=4)
    requests = [text_request(f"r{n}", f"{PREFIX}{n} own words") for n in range(4)]
    engine = driver(settings)
    engine.submit(*requests)
    engine.run()
    own = len(f"{PREFIX}0 own words") - len(PREFIX) // 8 * 8
    whole = len(f"{PREFIX}0 own words")
    assert computed_tokens(engine) <= whole + 3 * own
    for request in requests:
        assert engine.answers[request.id].facts == expected(request, settings)


@LAYOUTS
def test_a_prefix_is_shared_by_a_sequence_that_still_runs(layout: str) -> None:
    settings = config(layout)
    engine = driver(settings)
    engine.submit(text_request("talks", PREFIX, max_tokens=200))
    while engine.answers["talks"].num_tokens < 5:
        engine.step()
    late = text_request("late", PREFIX + "another question", max_tokens=4)
    engine.submit(late)
    while not engine.answers["late"].ends:
        engine.step()
    assert not engine.answers["talks"].ends, "it still runs"
    tokens, tier = cached(engine, "late")
    assert tokens >= len(PREFIX), "to the very token, not to a whole block"
    assert tier == "device"
    assert engine.answers["late"].facts == expected(late, settings)


def test_whoever_waited_for_a_request_that_is_aborted_computes_for_itself() -> None:
    settings = config(parallel=3)
    engine = driver(settings)
    engine.submit(text_request("leads", PREFIX + "a"))
    engine.step()
    others = [text_request(f"r{n}", f"{PREFIX}{n}", max_tokens=3) for n in range(2)]
    engine.submit(*others)
    engine.step()
    engine.core.abort("leads")
    engine.run()
    for request in others:
        assert engine.answers[request.id].facts == expected(request, settings)


def test_a_request_that_waits_for_a_prefix_holds_nobody_else_up() -> None:
    engine = driver(config(parallel=4))
    engine.submit(text_request("leads", PREFIX * 2), text_request("follows", PREFIX * 2))
    engine.step()
    engine.submit(text_request("stranger", "hi", max_tokens=1))
    while not engine.answers["stranger"].ends:
        engine.step()
    assert not engine.answers["leads"].num_tokens


def displaced(settings: RuntimeConfig, max_tokens: int = 2) -> CoreDriver:
    """An engine of one slot, which another prompt took after PREFIX was answered."""
    engine = driver(settings)
    engine.submit(text_request("first", PREFIX, max_tokens=max_tokens))
    engine.run()
    engine.submit(text_request("other", "z" * 300, max_tokens=2))
    engine.run()
    return engine


@LAYOUTS
def test_cells_that_had_to_leave_come_back_from_host_memory(layout: str) -> None:
    settings = config(layout, parallel=1)
    engine = displaced(settings)
    back = text_request("back", PREFIX + "!", max_tokens=5)
    engine.submit(back)
    engine.run()
    assert cached(engine, "back") == (len(PREFIX), "host"), "to the token"
    assert engine.answers["back"].facts == expected(back, settings)


@LAYOUTS
def test_a_conversation_whose_slot_was_taken_goes_on_at_its_last_token(layout: str) -> None:
    """Its last block is short: it comes back from host memory all the same."""
    settings = config(layout, parallel=1)
    engine = displaced(settings, max_tokens=9)
    before = computed_tokens(engine)
    follow = text_request("second", PREFIX + engine.answers["first"].text + " and then?")
    engine.submit(follow)
    engine.run()
    held = len(PREFIX) + 8
    assert held % 8, "or the last block would be whole"
    assert cached(engine, "second") == (held, "host")
    whole = engine.answers["second"].ends[0].num_prompt_tokens
    assert computed_tokens(engine) - before == whole - held
    assert engine.answers["second"].facts == expected(follow, settings)


@LAYOUTS
@pytest.mark.parametrize("shared", [len(PREFIX) - 5, len(PREFIX) - 4, 8, 12])
def test_a_prompt_that_goes_on_otherwise_inside_a_block_has_its_first_tokens(
    layout: str, shared: int
) -> None:
    settings = config(layout, parallel=1)
    engine = displaced(settings)
    request = text_request("branch", PREFIX[:shared] + "#" * 20, max_tokens=5)
    engine.submit(request)
    engine.run()
    assert cached(engine, "branch") == (shared, "host")
    assert engine.answers["branch"].facts == expected(request, settings)


@LAYOUTS
def test_after_a_restart_cells_come_back_from_disk(layout: str, tmp_path: Path) -> None:
    disk = {"disk_bytes": 64 << 20, "disk_path": str(tmp_path), "prefetch_bytes": 4096}
    settings = config(layout, kv=disk)
    engine = driver(settings)
    engine.submit(text_request("first", PREFIX, max_tokens=2))
    engine.run()
    while engine.core.chore():
        pass
    engine.tiers.close(60)
    again = driver(settings)
    back = text_request("back", PREFIX + "!", max_tokens=5)
    again.submit(back)
    run_with_disk(again)
    assert cached(again, "back") == (len(PREFIX) // 8 * 8, "disk")
    assert again.answers["back"].facts == expected(back, config(layout))
    again.tiers.close(60)


def run_with_disk(engine: CoreDriver) -> None:
    """Blocks come from another thread: step as the runner does."""

    def is_done() -> bool:
        if engine.core.has_work:
            engine.step()
        return not engine.core.has_work

    wait_for("every request ends", is_done, timeout=60, every=0.001)


def test_no_block_crosses_tenants_unless_the_pool_says_so() -> None:
    for isolation, found in (("tenant", 0), ("shared", len(PREFIX) // 8 * 8)):
        engine = driver(config(parallel=1, kv={"isolation": isolation}))
        engine.submit(text_request("a", PREFIX, tenant="a", max_tokens=2))
        engine.run()
        engine.submit(text_request("b", PREFIX[:-1] + "?", tenant="b", max_tokens=2))
        engine.run()
        assert cached(engine, "b")[0] // 8 * 8 == found


@LAYOUTS
def test_an_urgent_request_parks_a_patient_one_which_then_goes_on(layout: str) -> None:
    settings = config(layout, parallel=1)
    patient = text_request("patient", PREFIX, max_tokens=60, priority=1)
    engine = driver(settings)
    engine.submit(patient)
    while engine.answers["patient"].num_tokens < 20:
        engine.step()
    engine.submit(text_request("urgent", "now", max_tokens=3))
    while not engine.answers["urgent"].ends:
        engine.step()
    assert not engine.answers["patient"].ends
    before = computed_tokens(engine)
    engine.run()
    assert engine.answers["patient"].facts == expected(patient, settings)
    assert engine.core.report(time.monotonic()).cache.parks == 1
    assert computed_tokens(engine) == before, "all that it had computed came back"


def test_shared_cells_that_run_out_park_sequences_and_fail_nobody() -> None:
    settings = config("unified", parallel=6, kv_cells=300)
    requests = [text_request(f"r{n}", chr(97 + n) * 60, max_tokens=60) for n in range(12)]
    engine = driver(settings)
    engine.submit(*requests)
    engine.run()
    for request in requests:
        assert engine.answers[request.id].facts == alone_facts(request)


def alone_facts(request: Request) -> tuple[str, int, object]:
    return expected(request, config())


def test_a_late_request_ends_with_timeout_wherever_it_is() -> None:
    engine = driver(config(parallel=1))
    engine.submit(
        text_request("runs", max_tokens=400, timeout_s=1),
        text_request("waits", timeout_s=1),
        text_request("fine", max_tokens=3),
    )
    engine.step()
    engine.clock.now += 2
    engine.step()
    assert engine.answers["runs"].finish.value == "timeout"
    assert engine.answers["waits"].finish.value == "timeout"
    assert engine.run()["fine"].finish.value == "length"


def test_the_answers_are_those_of_an_engine_without_tiers() -> None:
    request = text_request("r", PREFIX)
    assert (
        alone(request, config()).facts == alone(request, runtime_config(context_tokens=512)).facts
    )


def flood(engine: CoreDriver, count: int) -> None:
    """Prompts of others, one after the other: more blocks than the host tier holds."""
    for number in range(count):
        name = f"flood{number}-{engine.steps}"
        engine.submit(text_request(name, chr(97 + number % 26) * 180 + name, max_tokens=1))
        engine.run()


def pinning(pinned_blocks: int) -> CoreDriver:
    """One slot, a host tier of 60 blocks, and room for so many pinned ones."""
    block_bytes = 8 * 8
    kv = {"host_bytes": 60 * block_bytes, "pinned_bytes": pinned_blocks * block_bytes}
    return driver(config(parallel=1, kv=kv))


def ask_again(engine: CoreDriver, text: str) -> int:
    name = f"again{engine.steps}"
    engine.submit(text_request(name, text + "!", max_tokens=1))
    engine.run()
    return cached(engine, name)[0]


@pytest.mark.parametrize(("pin", "found"), [(True, len(PREFIX) // 8 * 8), (False, 0)])
def test_a_pinned_prompt_outlives_the_prompts_of_others(pin: Any, found: int) -> None:
    engine = pinning(30)
    engine.submit(text_request("first", PREFIX, max_tokens=1, pin=pin))
    engine.run()
    flood(engine, 8)
    assert ask_again(engine, PREFIX) // 8 * 8 == found


def test_the_oldest_pin_makes_room_for_a_new_one() -> None:
    engine = pinning(24)
    other = "pods tell the llama of a terrace they climb " * 4
    for name, text in (("old", PREFIX), ("new", other)):
        engine.submit(text_request(name, text, max_tokens=1, pin=True))
        engine.run()
    flood(engine, 8)
    assert ask_again(engine, other) == len(other) // 8 * 8
    assert ask_again(engine, PREFIX) // 8 == 0


def test_the_report_counts_what_was_looked_up_found_and_missed() -> None:
    engine = driver(config())
    for name in ("first", "second"):
        engine.submit(text_request(name, PREFIX + name, max_tokens=1))
        engine.run()
    report = engine.core.report(engine.clock.now).cache
    assert report.queried_tokens == 2 * len(PREFIX) + len("firstsecond")
    assert report.misses == 23 + 1, "all blocks of the first, and the one where the second differs"
    assert {tier.name: tier.hit_tokens for tier in report.tiers}["device"] >= len(PREFIX)


@LAYOUTS
@pytest.mark.parametrize("num_kept", [44, 50, 66])
def test_blocks_that_make_room_for_others_before_they_are_restored_are_computed_again(
    layout: str, num_kept: int
) -> None:
    settings = config(layout, parallel=2, kv={"host_bytes": num_kept * BLOCK_BYTES})
    engine = driver(settings)
    requests = [text_request(f"r{n}", f"{n}{PREFIX}", max_tokens=3) for n in range(4)]
    for two in (requests[:2], requests[2:]):
        engine.submit(*two)
        engine.run()
    again = [text_request(f"again{n}", f"{n}{PREFIX}", max_tokens=3) for n in range(2)]
    engine.submit(*again)
    # Both are found in the host tier in one step, and each clears a slot, whose cells go there.
    engine.run()
    assert engine.core.report(0).cache.restores
    for request in again:
        assert engine.answers[request.id].facts == expected(request, settings)
