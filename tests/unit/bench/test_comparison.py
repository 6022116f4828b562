"""A comparison gives its lines whatever happens, and starts the peer as it says it does."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from bench.comparison import Contest, Options, RoundFailedError, compare
from bench.servers import BEST, ServerError, Setting, variant_flags
from bench.verdict import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.comparison import Start
    from bench.verdict import Sample

SPEED = Metric("speed", "tokens/s", 1.0)
WAIT = Metric("wait", "ms", 1.0, less_is_better=True)


class _AnyAnswer(BaseHTTPRequestHandler):
    """Answers what a warm-up asks for."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        counts = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        event = {"choices": [{"text": "1"}], "usage": counts}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Say nothing."""


@contextmanager
def _server(_: Path) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _AnyAnswer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _broken(_: Path) -> Iterator[int]:
    raise ServerError("no such model")
    yield 0


def _named(starts: dict[int, str], name: str) -> Start:
    """A server whose port tells who it is."""

    @contextmanager
    def start(folder: Path) -> Iterator[int]:
        with _server(folder) as port:
            starts[port] = name
            yield port

    return start


def _contest(values: dict[str, Sample]) -> Contest:
    """``values`` by side; a side without any fails its rounds."""
    names: dict[int, str] = {}

    def play(port: int, _seed: int, _limit_s: float) -> Sample:
        sample = values[names[port]]
        if not sample:
            raise RoundFailedError(f"{names[port]} fails")
        return sample

    rivals = {name: _named(names, name) for name in values if name != "ours"}
    return Contest((SPEED, WAIT), _named(names, "ours"), rivals, play)


def test_each_metric_is_compared_with_its_own_best_variant() -> None:
    values = {
        "ours": {"speed": 12.0, "wait": 2.0},
        "-np 4": {"speed": 10.0, "wait": 8.0},
        "none": {"speed": 6.0, "wait": 4.0},
    }
    speed, wait = compare(_contest(values), Options(rounds=2))
    assert (speed["peer_flags"], speed["ratio"], speed["rounds"]) == ("-np 4", 1.2, 2)
    assert (wait["peer_flags"], wait["ratio"], wait["ok"]) == ("none", 0.5, True)
    assert speed["peer_tried"] == {"-np 4": 10.0, "none": 6.0}


def test_a_variant_that_does_not_finish_is_told_and_passed_over() -> None:
    values: dict[str, Sample] = {
        "ours": {"speed": 12.0, "wait": 2.0},
        "-np 4": {},
        "none": {"speed": 6.0, "wait": 4.0},
    }
    speed, _ = compare(_contest(values), Options(rounds=2))
    assert speed["peer_flags"] == "none"
    assert speed["peer_tried"] == {"-np 4": None, "none": 6.0}


def test_a_server_that_does_not_start_costs_the_case_its_figures_not_its_lines() -> None:
    def never(_port: int, _seed: int, _limit_s: float) -> Sample:
        raise AssertionError("nothing runs")

    lines = compare(Contest((SPEED, WAIT), _broken, {"none": _broken}, never), Options(rounds=2))
    assert [line["case"] for line in lines] == ["speed", "wait"]
    assert {line["why"] for line in lines} == {"no such model"}


def test_the_peer_s_variants_are_those_of_the_table() -> None:
    setting = Setting(Path("model.gguf"), streams=16, context_tokens=256)
    flags = [variant_flags(variant, setting) for variant in BEST]
    assert flags == [
        "-np 16",
        "",
        "-np 16 -kvu",
        "-np 16 --cache-reuse 64",
        "--cache-reuse 64",
    ]
    assert variant_flags("one", setting) == "-np 1"
