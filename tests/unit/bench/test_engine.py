"""`make bench-engine`: every id of the table has its line, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from bench import engine
from bench.cases import decode
from build.source import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = {"case", "ours", "peer", "unit", "ratio", "rounds", "target", "ok"}
TABLE = [
    *(f"decode-{streams}" for streams in (1, 4, 8, 16)),
    *("oneslot-8", "oneslot-16", "shared-cold", "shared-warm", "turns-32", "itl-under-prefill"),
    *("restart-8k", "pressure-2x", "idle-cache", "step-16", "vocab-152k", "spec-ngram"),
    *("spec-draft", "context-32k", "cancel"),
]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.engine", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests"), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_every_id_of_the_table_belongs_to_one_case() -> None:
    ids = [name for case in engine.all_cases() for name in case.ids]
    assert len(ids) == len(set(ids))
    assert set(TABLE) <= set(ids)


def test_a_glance_has_every_id_of_the_table_too() -> None:
    ids = {name for case in engine.all_cases() if case.is_in_quick for name in case.ids}
    assert set(TABLE) <= ids


def test_decoding_is_measured_on_both_sizes_in_both_types() -> None:
    ids = {name for case in engine.all_cases() for name in case.ids}
    models = ("mid-q4_0", "mid-q8_0", "big-q4_0", "big-q8_0")
    assert {f"decode-{n}/{model}" for n in (1, 4, 8, 16) for model in models} <= ids


def test_targets_are_those_of_the_table() -> None:
    assert decode.decode_target(1, "mid-q8_0") == 1.0
    assert decode.decode_target(4, "mid-q8_0") == 1.03
    assert decode.decode_target(16, "big-q4_0") == 1.0
    assert decode.oneslot_target(8, "mid-q4_0") == 2.0
    assert decode.oneslot_target(16, "mid-q8_0") == 2.5
    assert decode.oneslot_target(16, "mid-q4_0") == 3.0


def test_a_case_that_cannot_run_is_printed_with_the_reason_and_fails(tmp_path: Path) -> None:
    done = _run(
        *("--cases", "decode-8/mid-q4_0", "--quick"),
        XDG_CACHE_HOME=str(tmp_path),
        CXX="/nothing/c++",
    )
    assert done.returncode == 1
    assert "nothing measured for decode-8, decode-8/mid-q4_0" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["case"] for line in lines] == ["decode-8", "decode-8/mid-q4_0"]
    for line in lines:
        assert set(line) > REQUIRED
        assert line["ok"] is False
        assert line["why"].startswith("no C++ compiler found")


def test_an_unknown_case_is_refused_with_those_there_are() -> None:
    done = _run("--cases", "decode-3")
    assert done.returncode == 1
    assert "--cases decode-3: no such case; there are decode-1," in done.stderr
