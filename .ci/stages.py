"""Runs every stage of `make test-all`, one after the other, and says at the end how each one went.

Owns: the list of stages with their time budgets, the closing table and the one summary line over
all of pytest's reports. Does not own: what a stage does (the Makefile's targets). A stage that
fails does not stop the next one; one that hangs is stopped. In CI, as root, a skipped test is a
failure: everything can run there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from terrace.local.interrupts import held_interrupts

BUDGETS_S = {
    "check": 180,
    "test": 120,
    "simulation": 180,
    "programs": 600,
    "test-tools": 600,
    "test-cluster": 900,
    "test-compat": 300,
    "test-e2e": 600,
    "e2e": 1500,
}
_HANGS_S = 600
"""Beyond twice its budget a stage is slow for so long, and then it is taken for one that hangs."""
_STOP_GRACE_S = 60
"""For fixtures to take their cluster down after an interrupt."""
_KINDS = ("passed", "failed", "errors", "skipped")


@dataclass
class Outcome:
    """How one stage went."""

    name: str
    seconds: float = 0.0
    verdict: str = "passed"
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        """Nothing failed and, where that counts, nothing was skipped."""
        return self.verdict == "passed"


def main() -> None:
    """Run the stages named on the command line, by default all."""
    # A shell starts what it puts into the background with interrupts ignored: stages would too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    names = sys.argv[1:] or list(BUDGETS_S)
    unknown = [name for name in names if name not in BUDGETS_S]
    if unknown:
        sys.exit(f"error: no stage {unknown[0]}; there are {', '.join(BUDGETS_S)}")
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(_run(name) for name in names)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    _print_table(outcomes)
    sys.exit(0 if all(outcome.is_good for outcome in outcomes) else 1)


def _run(name: str) -> Outcome:
    print(f"\n==> make {name} (budget {_clock(BUDGETS_S[name])})", flush=True)
    with tempfile.TemporaryDirectory(prefix="terrace-stage-") as folder:
        report = Path(folder) / "report.xml"
        outcome, started = Outcome(name), time.monotonic()
        status = _make(name, f"--junitxml={report}", 2 * BUDGETS_S[name] + _HANGS_S)
        outcome.seconds = time.monotonic() - started
        outcome.counts = _counts(report)
    if status is None:
        outcome.verdict = "stopped: it hung"
    elif status != 0:
        outcome.verdict = "failed"
    elif outcome.counts["skipped"] and _skips_count():
        outcome.verdict = "skipped tests"
    return outcome


def _make(target: str, pytest_arguments: str, limit_s: float) -> int | None:
    """Exit status of ``make target``; None when it was stopped at its limit."""
    with held_interrupts() as let_through:
        process = subprocess.Popen(  # noqa: S603 - our own targets
            ["make", "--no-print-directory", target, f"PYTEST_ARGS={pytest_arguments}"],  # noqa: S607 - make is found by PATH, as the user's was
            start_new_session=True,
        )
        try:
            let_through()
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the stage's process group, gently first; a stage that ended by itself is left alone."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _counts(report: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    try:
        suites = ET.parse(report).iter("testsuite")  # noqa: S314 - pytest wrote it just now
    except (FileNotFoundError, ET.ParseError):
        return counts  # the stage has no tests, or was stopped while it wrote
    for suite in suites:
        bad = {kind: int(suite.get(kind, "0")) for kind in ("failures", "errors", "skipped")}
        counts["failed"] += bad["failures"]
        counts["errors"] += bad["errors"]
        counts["skipped"] += bad["skipped"]
        counts["passed"] += int(suite.get("tests", "0")) - sum(bad.values())
    return counts


def _skips_count() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true"} and os.geteuid() == 0


def _print_table(outcomes: list[Outcome]) -> None:
    total: Counter[str] = Counter()
    print(f"\n{'stage':<14}{'time':>8}{'budget':>8}  tests")
    for outcome in outcomes:
        total.update(outcome.counts)
        late = ", over its budget" if outcome.seconds > BUDGETS_S[outcome.name] else ""
        times = f"{_clock(outcome.seconds):>8}{_clock(BUDGETS_S[outcome.name]):>8}"
        tests = f"{_summary(outcome.counts)}  " if outcome.counts.total() else ""
        print(f"{outcome.name:<14}{times}  {tests}[{outcome.verdict}{late}]")
    for outcome in outcomes:
        if not outcome.is_good and not outcome.counts["failed"] + outcome.counts["errors"]:
            total["failed"] += 1  # a stage without a failed test, such as lint, fails as one
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f" {_summary(total) or 'no tests ran'} in {seconds:.2f}s ".center(80, "="), flush=True)


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


if __name__ == "__main__":
    main()
