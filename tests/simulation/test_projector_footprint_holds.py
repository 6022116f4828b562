"""The plan of a replica with a projector against its real peak, with the largest images."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
from PIL import Image

from simulation.test_footprint_holds import DEMO, anonymous_bytes, fetch
from support.planning import demo_facts
from support.projector_files import projector_file
from support.replicas import SERVE, Replica, listening_port
from support.waiting import wait_for
from terrace.planner.footprint import Extras, footprint
from terrace.planner.geometry import Shape
from terrace.planner.projector import projector_bytes
from terrace_runtime.contract import RuntimeConfig
from terrace_runtime.models.gguf_header import read_header
from terrace_runtime.models.projector import projector_facts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIDE = 4096
"""Of the largest image that is taken."""
LOOK_EVERY_S = 0.02
CLIENTS, REQUESTS = 3, 9


def test_a_replica_that_is_sent_the_largest_images_stays_below_its_plan(tmp_path: Path) -> None:
    file = projector_file(
        tmp_path / "mmproj.gguf",
        kind="mlp",
        image_size=448,
        patch_size=14,
        width=256,
        feed_forward=1024,
        heads=4,
        layers=6,
        output=192,
        merge=1,
    )
    with file.open("rb") as opened:
        facts = projector_facts([read_header(opened, file.stat().st_size)], "b" * 64)
    config = RuntimeConfig(
        model="demo",
        served_names=("demo",),
        model_path=str(DEMO),
        model_digest="d" * 64,
        context_tokens=4096,
        parallel=2,
        threads=1,
        projector_path=str(file),
        projector_digest="b" * 64,
    )
    shape = Shape(4096, 2, config.ubatch_tokens, "f16", "f16")
    extras = Extras(projector=projector_bytes(facts))
    estimate = footprint(demo_facts(), shape, extras).anonymous_bytes

    peak = measured_peak(config, tmp_path)

    assert peak <= estimate, f"{peak >> 20} MiB were taken, {estimate >> 20} planned"


def measured_peak(config: RuntimeConfig, folder: Path) -> int:
    """Highest RssAnon + RssShmem of all processes while images of every kind are answered."""
    (folder / "runtime.json").write_text(config.model_dump_json())
    command = [*SERVE, "--config", str(folder / "runtime.json")]
    with (
        (folder / "log").open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, text=True) as server,
    ):
        try:
            replica = Replica(server, folder, 0)
            replica.port = wait_for("a listening line", lambda: listening_port(replica))
            wait_for("a ready replica", replica.is_ready)
            with watched(server.pid) as seen, ThreadPoolExecutor(CLIENTS) as clients:
                url = f"http://127.0.0.1:{replica.port}/v1/chat/completions"
                bodies = [request(number) for number in range(REQUESTS)]
                for answer in clients.map(lambda body: json.loads(fetch(url, body)), bodies):
                    assert answer["usage"]["prompt_tokens"] > 1024
        finally:
            server.terminate()
    return max(seen)


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """What the process and its children take, looked at all the time."""
    seen, is_done = [anonymous_bytes(pid)], threading.Event()

    def look() -> None:
        while not is_done.wait(LOOK_EVERY_S):
            with contextlib.suppress(psutil.Error, OSError):  # One of them has just ended.
                seen.append(anonymous_bytes(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_done.set()
        thread.join()


def request(number: int) -> dict[str, Any]:
    """One of the largest images that are refused nowhere, or several that fill a request."""
    if number % 3 == 2:
        urls = [picture("PNG", "RGB", 2048, 10 * number + index) for index in range(3)]
    else:
        urls = [picture("WEBP" if number % 3 else "PNG", "RGBA", SIDE, number)]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    parts.append({"type": "text", "text": "What is this?"})
    messages = [{"role": "user", "content": parts}]
    return {"model": "demo", "messages": messages, "max_tokens": 4}


def picture(kind: str, mode: str, side: int, shade: int) -> str:
    colour = (shade, 200, 100, 128)[: len(mode)]
    image, file = Image.new(mode, (side, side), colour), io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
