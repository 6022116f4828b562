"""Loads are values: the same seed gives the same, and counts are what was asked for."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from bench import files, plans
from bench.cases.prefill import gaps_while_waiting
from bench.comparison import RoundFailedError
from bench.load import Answer, Round

if TYPE_CHECKING:
    from pathlib import Path


def _shared_length(*texts: str) -> int:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=True))
    return len(list(same))


def test_prompts_of_different_seeds_differ() -> None:
    assert len({plans.digits(seed, 64) for seed in range(100)}) == 100


def test_sharing_requests_share_the_beginning_and_nothing_else() -> None:
    plan = plans.sharing(4, 100, 20, 8, seeds=(1, 2))
    prompts = [user.asks[0].prompt for user in plan.users]
    assert _shared_length(*prompts) in range(100, 105)
    assert {len(prompt) for prompt in prompts} == {120}


def test_another_wave_shares_the_beginning_with_the_first() -> None:
    first, other = (plans.sharing(1, 100, 20, 8, seeds=(1, own)) for own in (2, 3))
    prompts = [plan.users[0].asks[0].prompt for plan in (first, other)]
    assert _shared_length(*prompts) in range(100, 105)


def test_conversations_begin_over_time_and_have_their_turns() -> None:
    plan = plans.conversations(8, (30, 6, 6), 4, per_second=2.0, seed=3)
    starts = [user.start_s for user in plan.users]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert len(set(starts)) == 8
    assert [ask.prompt_tokens for ask in plan.users[5].asks] == [30, 6, 6]
    assert plan == plans.conversations(8, (30, 6, 6), 4, per_second=2.0, seed=3)


def _round(*, is_cut: bool) -> Round:
    running = Answer(0, 0, 0.0, times=[1.0, 2.0, 3.5, 6.0], is_cut=is_cut)
    late = Answer(1, 0, 2.5, times=[5.0])
    return Round(6.0, [running, late])


def test_only_gaps_in_a_newcomer_s_wait_count() -> None:
    assert gaps_while_waiting(_round(is_cut=True)) == [1.5, 2.5]


def test_a_running_stream_that_ended_too_early_measures_nothing() -> None:
    with pytest.raises(RoundFailedError, match="ended before"):
        gaps_while_waiting(_round(is_cut=False))


def test_files_are_the_same_after_their_pages_were_dropped(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(b"terrace" * 100_000)
    files.drop_from_page_cache([path])
    assert files.device_read_rate([path]) >= 0
    assert path.read_bytes() == b"terrace" * 100_000
