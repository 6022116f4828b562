"""A model that comes over the network: its progress is seen, its checksum proved."""

from __future__ import annotations

import hashlib
import http.server
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from support.chain import ROOT, model
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.chain import Chain

DATA = (ROOT / "runtime_image/terrace_runtime/demo/chat.gguf").read_bytes()
SHA256 = hashlib.sha256(DATA).hexdigest()
HALF = len(DATA) // 2
LARGEST_TRICKLE = 512 * 1024


class HalfWay(http.server.BaseHTTPRequestHandler):
    """Sends half of the file, then a trickle, and the rest when told."""

    go_on: threading.Event

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA[:HALF])
        sent = HALF
        while not self.go_on.wait(0.2) and sent < HALF + LARGEST_TRICKLE:
            self.wfile.write(DATA[sent : sent + 1024])
            sent += 1024
        self.wfile.write(DATA[sent:])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def file_server() -> Iterator[tuple[str, threading.Event]]:
    go_on = threading.Event()
    handler = type("Handler", (HalfWay,), {"go_on": go_on})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/chat.gguf", go_on
        finally:
            go_on.set()
            server.shutdown()


def test_a_download_shows_its_progress_and_serves(chain: Chain) -> None:
    pool = {
        "apiVersion": "terrace.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "flavors": [{"name": "cpu"}],
            "modelCache": {"size": "1Gi"},
            "access": {"allowedNetworks": ["127.0.0.0/8"]},
        },
    }
    with file_server() as (url, go_on):
        loaded = model("loaded", url, source={"sha256": SHA256})
        loaded["spec"]["poolRef"]["name"] = "web"
        chain.apply(pool, loaded)
        try:

            def half_done() -> dict[str, Any]:
                status = chain.get("im", "loaded").get("status", {})
                found: dict[str, Any] = status.get("download", {})
                return found if found.get("doneBytes", 0) >= HALF else {}

            download = wait_for("half of the download in the status", half_done, timeout=60)
            assert download["totalBytes"] == len(DATA)
            assert download["stage"] == "download"
            assert chain.condition("loaded", "ModelCached")["reason"] == "Fetching"
            go_on.set()
            chain.wait_condition("loaded", "Ready", "True")
            status = chain.get("im", "loaded")["status"]
            assert status["model"]["digest"] == SHA256
            assert "download" not in status
        finally:
            chain.delete("im", "loaded")
            chain.delete("ipool", "web")
