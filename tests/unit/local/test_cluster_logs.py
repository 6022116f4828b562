"""Logs are shown from their end, followed, and bounded; the audit log becomes values."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from terrace.local import logs, processes
from terrace.local.audit import AuditEvent, policy, read_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


HALF_S = 1.0
"""Longer than a follower takes to look again."""


class StopFollowingError(Exception):
    """The test has seen enough."""


def test_only_the_last_lines_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\ntwo\nthree\n")
    seen: list[str] = []
    logs.show(log, 2, seen.append)
    assert seen == ["two", "three"]


def test_a_log_that_is_not_there_yet_shows_nothing(tmp_path: Path) -> None:
    seen: list[str] = []
    logs.show(tmp_path / "none.log", 2, seen.append)
    assert seen == []


def test_a_new_start_keeps_one_older_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for text in ("first", "second"):
        log.write_text(text)
        logs.start_afresh(log)
    assert not log.exists()
    assert (tmp_path / "a.log.1").read_text() == "second"


def test_a_log_that_grew_too_long_is_cut_while_its_writer_writes_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writer:
        writer.truncate(logs.MAX_LOG_BYTES)
        writer.write(b"end\n")
        logs.bound(log)
        writer.write(b"after\n")
    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "a.log.1").read_bytes().endswith(b"end\n")


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("x")
    logs.bound(log)
    assert log.read_text() == "x"
    assert not (tmp_path / "a.log.1").exists()


def test_following_goes_on_in_the_log_of_a_restarted_process(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("before\n")
    with following(log) as seen:
        append(log, b"last words\n")
        logs.start_afresh(log)
        log.write_text("stop\n")
    assert seen[-3:] == ["last words", "stop", "stopped"]


def test_following_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("before\n")
    with following(log) as seen:
        whole = "one line, with a \N{SNOWMAN}, and its end\n".encode()
        for byte in whole[:-1]:
            append(log, bytes([byte]))
        assert not processes.wait_until(lambda: seen[-1] != "same", HALF_S)
        append(log, whole[-1:] + b"stop\n")
    assert seen[-3:] == ["one line, with a \N{SNOWMAN}, and its end", "stop", "stopped"]


def test_half_a_line_of_a_process_that_ended_is_told(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("before\n")
    with following(log) as seen:
        append(log, b"cut o")
        logs.start_afresh(log)
        log.write_text("stop\n")
    assert seen[-3:] == ["cut o", "stop", "stopped"]


@contextmanager
def following(log: Path) -> Iterator[list[str]]:
    """Lines that ``follow`` writes; it follows when this begins, and has ended when this ends."""
    seen: list[str] = []

    def see(line: str) -> None:
        seen.append(line)
        if line == "stop":
            raise StopFollowingError

    def run() -> None:
        try:
            logs.follow(log, see)
        except StopFollowingError:
            seen.append("stopped")

    follower = threading.Thread(target=run)
    follower.start()

    def append_until_seen() -> bool:
        append(log, b"same\n")
        return "same" in seen

    assert processes.wait_until(append_until_seen, 60)
    yield seen
    follower.join(timeout=60)


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def test_audit_events_say_who_did_what(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    record = {
        "verb": "patch",
        "user": {"username": "system:serviceaccount:a:b"},
        "userAgent": "terrace",
        "objectRef": {
            "resource": "pods", "subresource": "status", "namespace": "n", "name": "p",
        },
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": "2026-01-01T00:00:00.000000Z",
    }  # fmt: skip
    health = {"verb": "get", "requestURI": "/readyz"}
    log.write_text(json.dumps(record) + "\n" + json.dumps(health) + "\n" + '{"half":')
    first, second = read_events(log)
    assert first == AuditEvent(
        verb="patch",
        user="system:serviceaccount:a:b",
        user_agent="terrace",
        resource="pods/status",
        namespace="n",
        name="p",
        code=200,
        received="2026-01-01T00:00:00.000000Z",
    )
    assert first.is_write
    assert second.resource == "/readyz"
    assert not second.is_write


def test_the_audit_policy_writes_each_request_once() -> None:
    document = json.loads(policy())
    assert document["rules"] == [{"level": "Metadata"}]
    assert document["omitStages"] == ["RequestReceived", "ResponseStarted"]
