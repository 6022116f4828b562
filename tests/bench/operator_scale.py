"""`make bench-operator`: the operator with a thousand models and nodes on a real control plane.

Owns: the options, that every line is there. Does not own: the cases (``operator_cases.py``). One
JSON object per case and line on stdout, progress on stderr. Exits 1 when a case measured nothing; a
target that is missed is a result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING

from bench.operator_cases import IDLE_S, apply, at_rest
from bench.operator_world import Sizes
from build.workshop import say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bench.operator_world import Line

IDS = ("apply-1000", "idle", "change", "relabel", "apply-5000")


async def measure(chosen: Sequence[str], given: argparse.Namespace) -> AsyncIterator[Line]:
    """The lines of the chosen cases; what fails is told and the rest goes on."""
    sizes = _sizes(given.models or 1000)
    quiet = set(chosen) & {"idle", "change", "relabel"}
    try:
        if "apply-1000" in chosen:
            for line in await apply("apply-1000", sizes, given.rounds):
                yield line
    except Exception as error:  # noqa: BLE001 - one case that fails must not lose the others
        say(f"apply-1000 failed: {error!r}")
    try:
        if quiet:
            async for line in at_rest(sizes, quiet, min(IDLE_S, given.idle)):
                yield line
    except Exception as error:  # noqa: BLE001 - as above
        say(f"{', '.join(sorted(quiet))} failed: {error!r}")
    try:
        if "apply-5000" in chosen:
            for line in await apply("apply-5000", _sizes((given.models or 1000) * 5), 1):
                yield line
    except Exception as error:  # noqa: BLE001 - as above
        say(f"apply-5000 failed: {error!r}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line per id."""
    # As an interrupt, so that all programs are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = _parser().parse_args(arguments)
    chosen = given.cases.split(",") if given.cases else list(IDS)
    if unknown := set(chosen) - set(IDS):
        sys.exit(f"error: no such case: {', '.join(sorted(unknown))}; there are {', '.join(IDS)}")
    found: set[str] = set()

    async def run() -> None:
        async for line in measure(chosen, given):
            found.add(line["case"])
            print(json.dumps(line), flush=True)

    asyncio.run(run())
    if missing := [case for case in chosen if case not in found]:
        sys.exit(f"error: nothing measured for {', '.join(missing)}")


def _sizes(models: int) -> Sizes:
    # A glance with fewer models has fewer pools and nodes too.
    scale = min(1.0, models / 1000)
    return Sizes(max(5, round(1000 * scale)), max(1, round(200 * scale)), models)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench-operator",
        description="The operator at scale on a real control plane of its own, with simulated "
        "nodes; the peer is a bare client that makes the same writes.",
    )
    parser.add_argument("--cases", default="", metavar="IDS", help="only these, with commas")
    parser.add_argument("--models", type=int, help="a glance: so many models instead of 1000")
    parser.add_argument("--rounds", type=int, default=3, help="of apply-1000 (3)")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds of the idle minute")
    return parser


if __name__ == "__main__":
    main()
