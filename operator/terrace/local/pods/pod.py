"""A pod: its address and volumes, its containers in their order, its end.

Owns: what happens when in the life of one pod. Does not own: one container's life
(``container.py``), the form of a status (``status.py``), any cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from terrace.local.pods import scratch
from terrace.local.pods.container import ContainerRunner
from terrace.local.pods.context import PodContext, Settings, pod_folder
from terrace.local.pods.downward import Facts
from terrace.local.pods.notes import unheeded
from terrace.local.pods.ports import Listener, NotReadyError, Sources
from terrace.local.pods.spec import Container, InvalidPodError, Json, Pod, RestartPolicy
from terrace.local.pods.states import View, Waiting, now, parse_timestamp
from terrace.local.pods.status import Observed, earlier_view, render
from terrace.local.pods.volumes import Volumes

if TYPE_CHECKING:
    from datetime import datetime

_CREATING = "ContainerCreating"
_FIRST_RETRY_S = 0.2
_LAST_RETRY_S = 16.0


@dataclass(frozen=True)
class Failure:
    """Why a pod failed as a whole."""

    reason: str
    message: str


class PodRunner:
    """Runs one pod. ``run`` returns once the pod is over; ``stop`` makes it so."""

    def __init__(
        self, pod: Pod, address: str, settings: Settings, sources: Sources, listener: Listener
    ) -> None:
        self.pod = pod
        facts = Facts(pod, address, settings.host_ip, settings.node_name, settings.allocatable)
        self._folder = pod_folder(settings, pod.uid)
        volumes = Volumes(facts, self._folder / "volumes", sources)
        self._context = PodContext(pod, settings, facts, sources, volumes, listener)
        self._is_initialized = False
        self._failure: Failure | None = None
        self._stopping = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        earlier = pod.manifest.get("status") or {}
        self._conditions: list[Json] = list(earlier.get("conditions") or ())
        began = earlier.get("startTime")
        self._started_at: datetime = parse_timestamp(began) if began else now()
        entries = (earlier.get("initContainerStatuses") or []) + (
            earlier.get("containerStatuses") or []
        )
        by_name = {entry["name"]: entry for entry in entries}
        self.init = [self._runner(entry, by_name, is_init=True) for entry in pod.init_containers]
        self.main = [self._runner(entry, by_name, is_init=False) for entry in pod.containers]

    async def run(self) -> None:
        """Prepares, initializes, runs, and cleans processes up; never raises for the pod's sake."""
        deadline = asyncio.create_task(self._enforce_deadline())
        refresh = None
        try:
            for note in unheeded(self.pod):
                self._context.event("Normal", "NotEnforced", note)
            if await self._prepare() and await self._initialize():
                refresh = asyncio.create_task(self._refresh())
                await self._run_main()
        finally:
            for task in (deadline, refresh):
                if task is not None:
                    task.cancel()
            await self._end_rest()
            await asyncio.to_thread(scratch.remove_all, self._folder)
            self._context.changed()

    async def stop(self, grace_s: float, why: str = "the pod is deleted") -> None:
        """Ends every container within ``grace_s``: main ones first, then sidecars backwards."""
        self._stopping.set()
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s
        await asyncio.gather(*(runner.stop(grace_s, why) for runner in self.main))
        for runner in reversed(self.init):
            await runner.stop(max(0.0, until - loop.time()), why)

    def update(self, manifest: Json) -> None:
        """Takes labels, annotations and foreign conditions of a newer manifest of the same pod."""
        held = self.pod.manifest["metadata"]
        for field in ("labels", "annotations"):
            held[field] = manifest["metadata"].get(field) or {}
        own = {"PodScheduled", "Initialized", "ContainersReady", "Ready"}
        foreign = (manifest.get("status") or {}).get("conditions") or ()
        self._conditions = [one for one in self._conditions if one["type"] in own] + [
            one for one in foreign if one["type"] not in own
        ]

    def status(self) -> Json:
        """The pod's status as it should stand in the API."""
        failure = self._failure
        observed = Observed(
            init=[runner.view for runner in self.init],
            main=[runner.view for runner in self.main],
            is_initialized=self._is_initialized,
            pod_ip=self._context.facts.pod_ip,
            host_ip=self._context.settings.host_ip,
            started_at=self._started_at,
            failure=(failure.reason, failure.message) if failure else None,
        )
        status = render(self.pod, observed, self._conditions, now())
        own = {entry["type"] for entry in status["conditions"]}
        foreign = [entry for entry in self._conditions if entry["type"] not in own]
        self._conditions = status["conditions"] + foreign
        return status

    def remove(self) -> None:
        """Deletes the pod's folders, logs included (not what claims and hostPaths hold)."""
        shutil.rmtree(self._folder, ignore_errors=True)
        logs = self._context.container_logs(self.pod.containers[0].name).parent
        shutil.rmtree(logs, ignore_errors=True)

    def runner(self, container: str) -> ContainerRunner | None:
        """The runner of a container by name."""
        return next((one for one in self.init + self.main if one.container.name == container), None)

    def _runner(
        self, container: Container, entries: dict[str, Json], *, is_init: bool
    ) -> ContainerRunner:
        policy = self.pod.restart_policy
        if is_init and container.is_sidecar:
            policy = RestartPolicy.ALWAYS
        elif is_init and policy is RestartPolicy.ALWAYS:
            policy = RestartPolicy.ON_FAILURE
        entry = entries.get(container.name)
        waits_for = "PodInitializing" if self.pod.init_containers and not is_init else _CREATING
        view = View(container.name, container.image, Waiting(waits_for))
        if entry:
            view = earlier_view(entry, container.image, now())
        return ContainerRunner(container, policy, self._context, view)

    async def _prepare(self) -> bool:
        """Volumes, tried again until they are ready; False when the pod stops or is invalid."""
        wait_s = _FIRST_RETRY_S
        while not self._stopping.is_set():
            try:
                await self._context.volumes.prepare()
            except NotReadyError as error:
                self._context.event("Warning", "FailedMount", str(error))
            except (InvalidPodError, OSError, ValueError) as error:
                self._context.event("Warning", "FailedMount", str(error))
                wait_s = _LAST_RETRY_S
            else:
                return True
            self._wait_for_all(_CREATING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stopping.wait()
            wait_s = min(2 * wait_s, _LAST_RETRY_S)
        return False

    async def _initialize(self) -> bool:
        """Init containers one after another; False when one failed for good or the pod stops."""
        for runner in self.init:
            task = self._start(runner)
            if runner.container.is_sidecar:
                passed = asyncio.ensure_future(runner.passed_start.wait())
                await asyncio.wait((task, passed), return_when=asyncio.FIRST_COMPLETED)
                passed.cancel()
                if not runner.passed_start.is_set():
                    return False
            else:
                await asyncio.shield(task)
                state = runner.view.state
                if isinstance(state, Waiting) or not getattr(state, "is_success", False):
                    return False
        if self._stopping.is_set():
            return False
        self._is_initialized = True
        self._context.changed()
        return True

    async def _run_main(self) -> None:
        tasks = [self._start(runner) for runner in self.main]
        await asyncio.gather(*(asyncio.shield(task) for task in tasks))

    def _start(self, runner: ContainerRunner) -> asyncio.Task[None]:
        task = asyncio.create_task(runner.work())
        self._tasks[runner.container.name] = task
        return task

    async def _end_rest(self) -> None:
        """Sidecars go backwards once the rest is over; nothing of the pod outlives this."""
        for runner in reversed(self.init + self.main):
            task = self._tasks.get(runner.container.name)
            if task is None:
                runner.view = replace(runner.view, is_final=True, is_ready=False)
            elif not task.done():
                await runner.stop(self.pod.grace_s, "the pod's containers have ended")
                await asyncio.shield(task)

    async def _enforce_deadline(self) -> None:
        if self.pod.deadline_s is None:
            return
        elapsed = (now() - self._started_at).total_seconds()
        await asyncio.sleep(max(0.0, self.pod.deadline_s - elapsed))
        message = "Pod was active on the node longer than the specified deadline"
        self._failure = Failure("DeadlineExceeded", message)
        self._context.event("Normal", "DeadlineExceeded", message)
        await self.stop(self.pod.grace_s, message)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._context.settings.refresh_s)
            with contextlib.suppress(OSError, InvalidPodError):
                await self._context.volumes.refresh()

    def _wait_for_all(self, reason: str) -> None:
        for runner in self.init + self.main:
            if isinstance(runner.view.state, Waiting):
                runner.view = replace(runner.view, state=Waiting(reason))
        self._context.changed()
