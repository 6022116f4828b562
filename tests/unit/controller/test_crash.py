"""How a container ended, in the words that a condition shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from terrace.controller import pods

INFO = json.dumps({"ts": "now", "level": "info", "event": "request", "path": "/v1/runtime"})
ERROR = json.dumps({"ts": "now", "level": "error", "event": "no room in /dev/shm"})


def ended(message: str = "", **about: Any) -> dict[str, Any]:
    state = {"terminated": {"exitCode": 137, "reason": "Error", "message": message, **about}}
    status = {"name": "runtime", "state": {"waiting": {}}, "lastState": state}
    return {"metadata": {"name": "a"}, "spec": {}, "status": {"containerStatuses": [status]}}


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (ended(), "exit code 137"),
        (ended(reason="OOMKilled"), "exit code 137 (OOMKilled)"),
        (ended("the engine died\n", exitCode=1), "exit code 1: the engine died"),
        # A killed container left no word: what stands there are the last lines of its log.
        (ended(f"{INFO}\n{INFO}\n", reason="OOMKilled"), "exit code 137 (OOMKilled)"),
        (ended(f"{INFO[9:]}\n{ERROR}\n", exitCode=1), "exit code 1: no room in /dev/shm"),
        (ended('{"not": "a log"}', exitCode=1), 'exit code 1: {"not": "a log"}'),
        (ended("[1]\n", exitCode=1), "exit code 1: [1]"),
    ],
)
def test_a_crash_is_told_by_code_reason_and_last_word(pod: dict[str, Any], words: str) -> None:
    assert pods.crash(pod, "runtime") == words
