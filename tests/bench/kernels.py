"""`make bench-kernels`: the images' build, kernels chosen at start, against one for this CPU alone.

Owns: the two builds, their rounds one after the other, one JSON line per case. Does not own: what a
side measures (``kernel_worker.py``), verdicts (``verdict.py``). The native build is made first,
about four minutes, once. The sides take turns and begin in turns, so that what disturbs the machine
disturbs both.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench.builds import llama_site
from bench.models import model_file
from bench.verdict import Metric, verdict
from build.workshop import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.verdict import Line, Sample

MODELS = ("mid-q4_0", "mid-q8_0", "tiny-q8_0")
TARGET = 0.97
"""Least ratio of the images' build to the native one."""
_SIDES = ("--dispatch", "--native")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line per case; exit 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="bench-kernels", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", default=",".join(MODELS), help="names, with commas")
    given = parser.parse_args(arguments)
    is_good = True
    sites = [llama_site(option) for option in _SIDES]
    for model in given.models.split(","):
        for line in lines(model, sites, given.rounds):
            print(json.dumps(line), flush=True)
            is_good = is_good and line["ok"]
    sys.exit(0 if is_good else 1)


def lines(model: str, sites: Sequence[Path], rounds: int) -> Iterator[Line]:
    """Both cases of one model."""
    say(f"{model}: {rounds} rounds of each build")
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(site, model)) for site in sites]
        for side in sides:
            side.round()  # The first one pages the model in.
        pairs: list[tuple[Sample, Sample]] = []
        for number in range(rounds):
            first, second = sides if number % 2 == 0 else reversed(sides)
            found = {first: first.round(), second: second.round()}
            pairs.append((found[sides[0]], found[sides[1]]))
    for what in ("decode", "prefill"):
        metric = Metric(f"kernels-{what}/{model}", "tokens per CPU second", TARGET)
        named = [tuple({metric.id: each[what]} for each in pair) for pair in pairs]
        yield verdict(metric, [(a, b) for a, b in named], cpu=_cpu_name())


class Side:
    """One build's process."""

    def __init__(self, site: Path, model: str) -> None:
        self._argv = [sys.executable, str(Path(__file__).with_name("kernel_worker.py"))]
        self._argv += [str(site), str(model_file(model))]

    def __enter__(self) -> Self:
        """Start it."""
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def round(self) -> Sample:
        """What it measures now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self._argv)} ended with {self._process.wait()}")
        sample: Sample = json.loads(answer)
        return sample

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
