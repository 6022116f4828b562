"""Notes of unused files, against whatever models come and go: a used file is never due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from terrace.api.status import CachedFile
from terrace.controller.unused import (
    MAX_FILES,
    Ending,
    after_pruning,
    due,
    files_now,
    next_due_s,
)
from terrace_runtime.contract import MAX_PRUNED, PruneOutcome

START = datetime(2026, 1, 1, tzinfo=UTC)
DIGESTS = st.sampled_from([f"{n:064x}" for n in range(6)])
STEPS = st.lists(
    st.tuples(
        st.dictionaries(DIGESTS, st.integers(0, 9), max_size=4),
        st.sets(DIGESTS, max_size=2),
        st.integers(0, 50),
        st.sampled_from(["look", "prune"]),
    ),
    max_size=12,
)


@given(steps=STEPS, after_s=st.integers(0, 60))
def test_what_is_used_is_never_due_and_what_is_due_was_unused_for_the_whole_time(
    steps: list[tuple[dict[str, int], set[str], int, str]], after_s: int
) -> None:
    now, files, unused_at = START, list[CachedFile](), dict[str, datetime]()
    for used, mounted, seconds, action in steps:
        now += timedelta(seconds=seconds)
        files = files_now(files, used, mounted, now)
        busy = {*used} | mounted
        unused_at = {
            file.digest: unused_at.get(file.digest, now)
            for file in files
            if file.digest not in busy
        }
        ripe = {file.digest for file in due(files, after_s, now)}
        assert ripe == {d for d, at in unused_at.items() if (now - at).total_seconds() >= after_s}
        left_s = next_due_s(files, after_s, now)
        assert (left_s == 0) == bool(ripe)
        assert (left_s is None) == (not unused_at)
        if action == "prune":
            end = Ending(PruneOutcome(freed=tuple(ripe)), now, now)
            files = after_pruning(files, end, now)
            assert {file.digest for file in files}.isdisjoint(ripe)


@given(digests=st.sets(DIGESTS))
def test_looking_twice_changes_nothing(digests: set[str]) -> None:
    first = files_now([], dict.fromkeys(digests, 1), set(), START)
    again = files_now(first, {}, set(), START)
    assert files_now(again, {}, set(), START + timedelta(days=1)) == again
    assert {file.digest for file in again} == digests


def test_notes_and_jobs_are_bounded_and_the_longest_unused_go_first() -> None:
    many = {f"{n:064x}": 1 for n in range(2 * MAX_FILES)}
    files = files_now(files_now([], many, set(), START), {}, set(), START)
    assert len(files) == MAX_FILES
    assert len(due(files, 0, START)) == MAX_PRUNED


def test_a_job_says_nothing_about_what_was_noted_after_it_began() -> None:
    digest = "a" * 64
    later = START + timedelta(seconds=5)
    files = files_now(files_now([], {digest: 1}, set(), later), {}, set(), later)
    end = Ending(PruneOutcome(freed=(digest,)), START, START)
    assert after_pruning(files, end, later) == files
