"""One container: start, watch, end, start again.

Owns: the life of one container, as one task. Does not own: the order of containers (``pod.py``),
what a status looks like (``status.py``). Every wait here also ends when the pod stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from terrace.local.pods.actions import ActionError, act
from terrace.local.pods.backoff import Backoff
from terrace.local.pods.images import InvalidImageMapError, UnknownImageError
from terrace.local.pods.ports import NotReadyError
from terrace.local.pods.run import Run, RunPlan, plan_run
from terrace.local.pods.spec import Container, InvalidPodError, RestartPolicy
from terrace.local.pods.states import (
    START_ERROR,
    START_ERROR_EXIT,
    Running,
    State,
    Terminated,
    View,
    Waiting,
    now,
)

if TYPE_CHECKING:
    from terrace.local.pods.context import PodContext

_CONFIG_RETRY_S = 5.0


class ContainerRunner:
    """Runs one container until nothing will start it again, or until it is stopped."""

    def __init__(
        self, container: Container, policy: RestartPolicy, context: PodContext, view: View
    ) -> None:
        self.container = container
        self.view = view
        self.passed_start = asyncio.Event()
        """Set once it runs and its startup probe, if any, has succeeded."""
        self.run: Run | None = None
        self._policy = policy
        self._context = context
        self._stopping = asyncio.Event()
        self._restarts = Backoff(context.settings.backoff_base_s, context.settings.backoff_max_s)
        self._pulls = Backoff(context.settings.backoff_base_s, context.settings.backoff_max_s)

    async def work(self) -> None:
        """The whole life; returns with a final view."""
        try:
            if not self._is_finished_earlier():
                await self._live()
        finally:
            self._show(replace(self.view, is_final=True, is_ready=False, is_started=False))

    async def stop(self, grace_s: float, why: str) -> None:
        """Ends the container within ``grace_s`` (preStop included) and forbids another start."""
        self._stopping.set()
        if self.run is not None:
            self._context.event(
                "Normal", "Killing", f"Stopping container {self.container.name}: {why}"
            )
            await self.run.end(grace_s)

    async def _live(self) -> None:
        while not self._stopping.is_set():
            plan = await self._planned()
            if plan is None or self._stopping.is_set():
                return
            ended = await self._run_once(plan)
            if not self._starts_again(ended):
                return
            await self._back_off(ended)

    async def _planned(self) -> RunPlan | None:
        """What to run, once everything it needs is there; None when the pod stops first."""
        while not self._stopping.is_set():
            try:
                return await plan_run(self.container, self._context, self._number())
            except (UnknownImageError, InvalidImageMapError) as error:
                self._move(Waiting("ErrImagePull", str(error)))
                self._context.event("Warning", "Failed", f"Failed to pull image: {error}")
                wait_s = (
                    self._pulls.after(time.monotonic()) or self._context.settings.backoff_base_s
                )
                if await self._pause(min(1.0, wait_s)):
                    return None
                self._move(Waiting("ImagePullBackOff", f"Back-off pulling image: {error}"))
                if await self._pause(wait_s):
                    return None
            except (NotReadyError, InvalidPodError, OSError, ValueError) as error:
                self._move(Waiting("CreateContainerConfigError", str(error)))
                self._context.event("Warning", "Failed", f"Error: {error}")
                if await self._pause(min(_CONFIG_RETRY_S, self._context.settings.backoff_base_s)):
                    return None
        return None

    async def _run_once(self, plan: RunPlan) -> Terminated:
        container_id = f"host://{uuid.uuid4().hex}"
        started = now()
        self.view = replace(self.view, num_restarts=plan.number, container_id=container_id)
        try:
            self.run = Run(plan, self.container, self._context)
        except OSError as error:
            message = f"failed to start container {self.container.name!r}: {error}"
            self._context.event("Warning", "Failed", f"Error: {message}")
            ended = Terminated(START_ERROR_EXIT, START_ERROR, started, now(), message, container_id)
            self._show(self.view.moved(ended))
            return ended
        self._context.event("Normal", "Started", f"Started container {self.container.name}")
        self._show(replace(self.view.moved(Running(started)), is_started=False, is_ready=False))
        ended = replace(await self._watch(self.run), started_at=started, container_id=container_id)
        self.run = None
        self._show(replace(self.view.moved(ended), is_ready=False, is_started=False))
        return ended

    async def _watch(self, run: Run) -> Terminated:
        probes = asyncio.create_task(self._probe(run))
        try:
            return await run.wait()
        finally:
            probes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probes

    async def _probe(self, run: Run) -> None:
        """postStart, then the startup probe, then readiness and liveness side by side."""
        if self.container.post_start is not None:
            try:
                await act(self.container.post_start, run.target, self._context.pod.grace_s or 30.0)
            except ActionError as error:
                self._context.event(
                    "Warning", "FailedPostStartHook", f"PostStartHook failed: {error}"
                )
                await run.end(self._context.pod.grace_s)
                return
        if not await run.passes_startup():
            return
        self._show(replace(self.view, is_started=True, is_ready=self.container.readiness is None))
        self.passed_start.set()
        await run.watch_health(self._set_ready)

    def _set_ready(self, *, is_ready: bool) -> None:
        self._show(replace(self.view, is_ready=is_ready and not self._stopping.is_set()))

    def _starts_again(self, ended: Terminated) -> bool:
        if self._stopping.is_set() or self._policy is RestartPolicy.NEVER:
            return False
        return self._policy is RestartPolicy.ALWAYS or not ended.is_success

    async def _back_off(self, ended: Terminated) -> None:
        wait_s = self._restarts.after(time.monotonic())
        if wait_s <= 0:
            return
        pod = self._context.pod
        message = (
            f"back-off {wait_s:g}s restarting failed container={self.container.name} "
            f"pod={pod.name}_{pod.namespace}({pod.uid})"
        )
        self._move(Waiting("CrashLoopBackOff", message))
        self._context.event(
            "Warning",
            "BackOff",
            f"Back-off restarting failed container {self.container.name} "
            f"(exit code {ended.exit_code})",
        )
        await self._pause(wait_s)

    async def _pause(self, seconds: float) -> bool:
        """Waits; True when the pod stopped meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    def _number(self) -> int:
        """The restartCount of the next run."""
        return self.view.num_restarts + 1 if self.view.container_id else 0

    def _is_finished_earlier(self) -> bool:
        """An earlier agent already saw the last end of this container."""
        state = self.view.state
        return isinstance(state, Terminated) and not self._starts_again(state)

    def _move(self, state: State) -> None:
        self._show(self.view.moved(state))

    def _show(self, view: View) -> None:
        if view != self.view:
            self.view = view
            self._context.changed()
