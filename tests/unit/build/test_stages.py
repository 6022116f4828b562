"""`make test-all` runs every stage, says how each one went and ends with one summary line."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from build.source import REPOSITORY
from support.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

_STAGES = REPOSITORY / ".ci/stages.py"
_REPORT = (
    '<testsuites><testsuite tests="{tests}" failures="{failures}" errors="0" skipped="{skipped}"/>'
    "</testsuites>"
)


def _makefile(folder: Path, **recipes: str) -> Path:
    text = "".join(f".PHONY: {name}\n{name}:\n\t{recipe}\n" for name, recipe in recipes.items())
    (folder / "Makefile").write_text(text)
    return folder


def _reporting(tests: int, failures: int = 0, skipped: int = 0) -> str:
    """A recipe that leaves a report as pytest does."""
    report = _REPORT.format(tests=tests, failures=failures, skipped=skipped)
    return f"@echo '{report}' > $(subst --junitxml=,,$(PYTEST_ARGS)); exit {int(failures > 0)}"


def _run(folder: Path, *names: str, ci: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_STAGES), *names],
        cwd=folder,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_counts_of_all_stages_add_up_in_the_last_line(tmp_path: Path) -> None:
    folder = _makefile(tmp_path, check="@true", test=_reporting(5), simulation=_reporting(3))
    done = _run(folder, "check", "test", "simulation")
    assert done.returncode == 0, done.stdout
    assert " 8 passed in " in done.stdout.splitlines()[-1]


def test_a_stage_that_fails_does_not_stop_the_next_one(tmp_path: Path) -> None:
    folder = _makefile(tmp_path, test=_reporting(5, failures=2), simulation=_reporting(3))
    done = _run(folder, "test", "simulation")
    assert done.returncode == 1
    assert " 6 passed, 2 failed in " in done.stdout.splitlines()[-1]
    assert "3 passed  [passed]" in done.stdout


def test_a_stage_without_tests_that_fails_counts_as_one_failure(tmp_path: Path) -> None:
    folder = _makefile(tmp_path, check="@false", test=_reporting(1))
    done = _run(folder, "check", "test")
    assert done.returncode == 1
    assert " 1 passed, 1 failed in " in done.stdout.splitlines()[-1]


def test_skipped_tests_fail_in_ci_as_root_alone(tmp_path: Path) -> None:
    folder = _makefile(tmp_path, test=_reporting(5, skipped=1))
    assert _run(folder, "test").returncode == 0
    assert _run(folder, "test", ci="true").returncode == int(os.geteuid() == 0)


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path, "nothing")
    assert done.returncode == 1
    assert "no stage nothing; there are check, test, simulation, " in done.stderr
    assert done.stderr.endswith(", e2e\n")


def _interruptible(folder: Path) -> tuple[Path, Path]:
    """A stage that says when it runs and when it was interrupted, by these files."""
    started, cleaned = folder / "started", folder / "cleaned"
    trap = f"trap 'touch {cleaned}; kill $$pid; exit 1' INT"
    _makefile(folder, test=f"@sleep 600 & pid=$$!; {trap}; touch {started}; wait")
    return started, cleaned


def test_a_termination_interrupts_the_stage_that_runs(tmp_path: Path) -> None:
    started, cleaned = _interruptible(tmp_path)
    stages = subprocess.Popen([sys.executable, str(_STAGES), "test"], cwd=tmp_path)
    wait_for("the stage to start", started.exists)
    stages.send_signal(signal.SIGTERM)
    assert stages.wait(90) == 1
    assert cleaned.exists()


def test_an_interruption_before_a_stage_is_known_ends_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, cleaned = _interruptible(tmp_path)

    class Interrupted(subprocess.Popen[bytes]):
        """As on a busy machine: the stage is far before we know its number."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            wait_for("the stage to start", started.exists)
            signal.raise_signal(signal.SIGINT)

    stages = _module(monkeypatch)
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    monkeypatch.chdir(tmp_path)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stages._make("test", "", 60)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert cleaned.exists()


def test_a_report_that_is_not_whole_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.xml"
    report.write_text(_REPORT[:40])
    assert _module(monkeypatch)._counts(report).total() == 0


def _module(patch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("stages", _STAGES)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, "stages", module)
    spec.loader.exec_module(module)
    return module
