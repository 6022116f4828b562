"""Logs: kubelet's format and bounds, and what ``kubectl logs`` may ask for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.host_pods import container, pod
from terrace.local.kubelet_api import log_options
from terrace.local.pods.log_reader import LogOptions, read_log, render, runs
from terrace.local.pods.logs import MAX_LINE_BYTES, ContainerLog, log_path, rotated

if TYPE_CHECKING:
    from pathlib import Path

    from support.host_pods import Bench


async def text(folder: Path, live: ContainerLog | None = None, **options: object) -> bytes:
    chosen = LogOptions(**options)  # type: ignore[arg-type]  # the fields, by name
    return b"".join([piece async for piece in read_log(folder, 0, chosen, live)])


def filled(folder: Path, *chunks: bytes, max_bytes: int = 1 << 20) -> ContainerLog:
    log = ContainerLog(log_path(folder, 0), max_bytes)
    for chunk in chunks:
        log.feed("stdout", chunk)
    return log


async def test_each_line_carries_its_time_and_stream(tmp_path: Path) -> None:
    log = filled(tmp_path, b"a\nb")
    log.feed("stderr", b"c\n")
    log.close()
    lines = log.path.read_bytes().splitlines()
    assert [line.split(b" ", 1)[1] for line in lines] == [
        b"stdout F a",
        b"stderr F c",
        b"stdout P b",
    ]
    assert len(lines[0].split(b" ")[0]) == len("2026-01-01T00:00:00.123456789Z")


@given(st.lists(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\0 "])).map(b"".join)))
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    filled(folder, *chunks).close()
    assert asyncio.run(text(folder)) == b"".join(chunks)


async def test_a_long_line_is_cut_on_disk_and_whole_for_the_reader(tmp_path: Path) -> None:
    line = b"x" * (3 * MAX_LINE_BYTES + 5) + b"\n"
    filled(tmp_path, line[:20000], line[20000:]).close()
    assert max(map(len, log_path(tmp_path, 0).read_bytes().splitlines())) < MAX_LINE_BYTES + 60
    assert await text(tmp_path) == line


async def test_a_log_never_holds_more_than_twice_its_bound(tmp_path: Path) -> None:
    log = filled(tmp_path, *(b"%06d\n" % number for number in range(5000)), max_bytes=20_000)
    log.close()
    assert log.path.stat().st_size <= 20_000
    assert rotated(log.path).stat().st_size <= 20_000
    read = await text(tmp_path)
    assert read.endswith(b"004999\n")
    assert len(read) > 20_000 // 40 * 7


@pytest.mark.parametrize("count", [0, 1, 3, 2999, 3000, 9999])
async def test_tail_gives_the_last_lines_over_both_files(tmp_path: Path, count: int) -> None:
    lines = [b"%06d\n" % number for number in range(3000)]
    filled(tmp_path, *lines, max_bytes=100_000).close()
    assert rotated(log_path(tmp_path, 0)).exists()
    assert await text(tmp_path, tail_lines=count) == b"".join(lines[-count:] if count else [])


async def test_limit_cuts_the_text_and_timestamps_stand_before_each_line(tmp_path: Path) -> None:
    filled(tmp_path, b"one\ntwo\n").close()
    assert await text(tmp_path, max_bytes=6) == b"one\ntw"
    stamped = (await text(tmp_path, has_timestamps=True)).splitlines()
    assert [line.split(b" ")[1] for line in stamped] == [b"one", b"two"]


def test_lines_before_since_are_left_out() -> None:
    record = b"1970-01-01T00:00:05.000000000Z stdout F x"
    assert render(record, LogOptions(since_ns=5_000_000_000)) == b"x\n"
    assert render(record, LogOptions(since_ns=5_000_000_001)) == b""


async def test_following_sees_new_lines_over_a_rotation_and_ends_with_the_run(
    tmp_path: Path,
) -> None:
    log = filled(tmp_path, b"first\n", max_bytes=2000)
    reading = asyncio.create_task(text(tmp_path, log, is_following=True))
    expected = b"first\n"
    for number in range(200):
        await asyncio.sleep(0)
        line = b"line %d\n" % number
        log.feed("stdout", line)
        expected += line
    log.feed("stdout", b"no newline")
    log.close()
    assert await asyncio.wait_for(reading, 60) == expected + b"no newline"


async def test_a_full_disk_loses_lines_and_not_the_container(tmp_path: Path) -> None:
    log = filled(tmp_path, b"one\n")
    log._file.close()
    log._file = open("/dev/full", "wb", buffering=0)  # noqa: ASYNC230, PTH123, SIM115  the fault
    log.feed("stdout", b"lost\n")
    assert log.num_lost_bytes > 0
    log.close()
    assert await text(tmp_path) == b"one\n"


async def test_standard_output_and_error_of_a_pod_reach_its_log(bench: Bench) -> None:
    script = 'echo out; until [ -e "$TERRACE_POD_ROOT/tmp/go" ]; do sleep 0.02; done; echo err >&2'
    one = bench.start(pod(container(script)))
    log = one.log_folder() / "0.log"
    await one.until("it speaks", lambda: log.exists() and b"out" in log.read_bytes())
    (one.root() / "tmp" / "go").touch()
    await one.over()
    assert await one.logs() == "out\nerr\n"
    assert runs(one.log_folder()) == [0]


async def test_a_flood_of_output_is_bounded(bench: Bench) -> None:
    script = "i=0; while [ $i -lt 40 ]; do head -c 100000 /dev/zero | tr '\\0' x; i=$((i+1)); done"
    one = await bench.run(pod(container(script)), max_log_bytes=500_000)
    assert sum(path.stat().st_size for path in one.log_folder().iterdir()) <= 1_000_000


def test_the_query_of_kubectl_is_understood() -> None:
    now_ns = 100_000_000_000
    options = log_options(
        {"follow": "true", "tailLines": "5", "limitBytes": "9", "sinceSeconds": "10"}, now_ns
    )
    assert options == LogOptions(
        is_following=True, tail_lines=5, max_bytes=9, since_ns=90_000_000_000
    )
    since = log_options({"sinceTime": "1970-01-01T00:00:01Z", "timestamps": "true"}, now_ns)
    assert since == LogOptions(has_timestamps=True, since_ns=1_000_000_000)


@pytest.mark.parametrize("query", [{"tailLines": "-1"}, {"limitBytes": "x"}, {"sinceTime": "now"}])
def test_a_wrong_query_is_refused_by_name(query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(query))):
        log_options(query, 0)
