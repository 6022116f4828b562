"""A pod runner on real processes, for tests: builders of manifests and a bench to run them on."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.ports import own_address
from terrace.local.pods import processes
from terrace.local.pods.context import Settings, pod_folder
from terrace.local.pods.images import ImageMap
from terrace.local.pods.log_reader import LogOptions, read_log, runs
from terrace.local.pods.pod import PodRunner
from terrace.local.pods.ports import StaticSources
from terrace.local.pods.spec import parse_pod

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from terrace.local.pods.ports import Sources

Json = dict[str, Any]

IMAGES = ImageMap({"test/sh": ("/bin/sh", "-c"), "test/py": (sys.executable, "-I", "-S", "-c")})
_numbers = itertools.count(1)


def container(script: str = "exec sleep 60", **fields: Any) -> Json:
    """A container ``c`` that runs a shell script."""
    return {"name": "c", "image": "test/sh", "args": [script], **fields}


def pod(*containers: Json, **spec: Any) -> Json:
    """A pod with a uid of its own; restartPolicy Never unless ``spec`` says otherwise."""
    number = next(_numbers)
    return {
        "metadata": {"namespace": "default", "name": f"pod-{number}", "uid": f"uid-{number}"},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 60,
            "containers": list(containers),
            **spec,
        },
    }


@dataclass
class Started:
    """One pod on the bench; the Listener of its runner."""

    settings: Settings
    events: list[tuple[str, str]] = field(default_factory=list)
    statuses: list[Json] = field(default_factory=list)
    runner: PodRunner = field(init=False)
    task: asyncio.Task[None] = field(init=False)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self) -> None:
        self.statuses.append(self.runner.status())
        self._moved.set()

    def event(self, _kind: str, reason: str, message: str) -> None:
        self.events.append((reason, message))
        self._moved.set()

    @property
    def status(self) -> Json:
        return self.runner.status()

    def container(self, name: str = "c") -> Json:
        """The container's status."""
        listed = self.status["initContainerStatuses"] + self.status["containerStatuses"]
        found: Json = next(one for one in listed if one["name"] == name)
        return found

    @property
    def terminated(self) -> Json:
        """state.terminated of container ``c``."""
        ended: Json = self.container()["state"]["terminated"]
        return ended

    def conditions(self) -> dict[str, str]:
        return {one["type"]: one["status"] for one in self.status["conditions"]}

    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.events]

    def message_of(self, reason: str) -> str:
        return next(message for found, message in self.events if found == reason)

    async def until(self, what: str, holds: Callable[[], object], timeout_s: float = 60) -> None:
        """Waits on the runner's signals, and looks at files and processes ten times a second."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"{what}: {self.events} {self.status}"
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), 0.1)
            except TimeoutError:
                continue

    async def over(self) -> Json:
        """The last status."""
        await asyncio.wait_for(self.task, 60)
        return self.status

    async def logs(self, name: str = "c", run: int | None = None) -> str:
        return (await self.log_bytes(name, run, LogOptions())).decode()

    async def log_bytes(self, name: str, run: int | None, options: LogOptions) -> bytes:
        folder = self.log_folder(name)
        number = runs(folder)[-1] if run is None else run
        return b"".join([piece async for piece in read_log(folder, number, options, None)])

    def log_folder(self, name: str = "c") -> Path:
        one = self.runner.pod
        return self.settings.folder / "logs" / f"{one.namespace}_{one.name}_{one.uid}" / name

    def root(self, name: str = "c") -> Path:
        return pod_folder(self.settings, self.runner.pod.uid) / "containers" / name / "root"

    def pids(self) -> set[int]:
        """Every live process of the pod."""
        return processes.below(pod_folder(self.settings, self.runner.pod.uid))


@dataclass
class Bench:
    """Starts pods; ``close`` ends what tests left."""

    folder: Path
    started: list[Started] = field(default_factory=list)

    def start(self, manifest: Json, sources: Sources | None = None, **settings: Any) -> Started:
        """Starts a pod on an address of its own."""
        chosen: Json = {
            "images": lambda: IMAGES,
            "backoff_base_s": 0.05,
            "host_ip": "127.0.0.1",
            "node_name": "bench",
        }
        fixed = Settings(folder=self.folder, **(chosen | settings))
        one = Started(fixed)
        address = own_address(len(self.started))
        one.runner = PodRunner(parse_pod(manifest), address, fixed, sources or StaticSources(), one)
        one.task = asyncio.create_task(one.runner.run())
        self.started.append(one)
        return one

    async def run(self, manifest: Json, sources: Sources | None = None, **settings: Any) -> Started:
        """Starts a pod and waits for its end."""
        one = self.start(manifest, sources, **settings)
        await one.over()
        return one

    async def close(self) -> None:
        """Ends every pod and checks that none of their processes is left."""
        await asyncio.gather(*(one.runner.stop(0.0) for one in self.started))
        await asyncio.gather(*(asyncio.wait_for(one.task, 60) for one in self.started))
        assert not processes.below(self.folder / "pods")
