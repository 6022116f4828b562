"""One run of a container: from the processes' start to the end of the last of them.

Owns: argv, environment and folder of a run, its probes' loops, its memory bound, its end and what
is known afterwards. Does not own: whether another run follows (``container.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from signal import SIGTERM
from typing import TYPE_CHECKING, Protocol

from terrace.local.pods import leftovers, processes, scratch
from terrace.local.pods.actions import ActionError, Target, act
from terrace.local.pods.environment import environment, expand, references
from terrace.local.pods.logs import ContainerLog, Stream, log_path, prune
from terrace.local.pods.messages import termination_message
from terrace.local.pods.probes import ProbeKind, ProbeMachine
from terrace.local.pods.states import OOM_KILLED, Terminated, now
from terrace.local.pods.volumes import lay_out
from terrace.planner.nodes import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from terrace.local.pods.context import PodContext
    from terrace.local.pods.spec import Container, Probe

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Of the agent's own environment, all that a container sees."""
_LEAST_AFTER_HOOK_S = 2.0
"""kubelet gives at least this between SIGTERM and SIGKILL when preStop used up the grace."""
_FOREVER = float("inf")


@dataclass(frozen=True)
class RunPlan:
    """Everything that is decided before the process starts."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    root: Path
    folder: Path
    logs: Path
    number: int
    """0 for the first run: the container's restartCount."""
    max_memory_bytes: int | None


class SetReady(Protocol):
    """Takes the readiness probe's verdict."""

    def __call__(self, *, is_ready: bool) -> None:
        """Acts on it."""


async def plan_run(container: Container, context: PodContext, number: int) -> RunPlan:
    """Resolves image, environment and mounts, and lays the root out.

    Raises:
        UnknownImageError: no command stands for the image.
        NotReadyError: a ConfigMap, Secret or key is missing.
        InvalidPodError: a field asks for what a host process cannot have.
    """
    prefix = context.settings.images().argv(container.image)
    found = {}
    for reference in references(container):
        fetch = (
            context.sources.config_map if reference.kind == "configmap" else context.sources.secret
        )
        found[reference] = await fetch(context.pod.namespace, reference.name)
    root = context.container_root(container.name)
    marks = {processes.POD_ROOT: str(root)}
    env = environment(container, context.facts, found, _base(context, root) | marks) | marks
    lay_out(root, context.pod, container, context.volumes.paths, env)
    env.setdefault("TMPDIR", scratch.path_of(root))
    words = [expand(word, env) for word in container.command] or list(prefix)
    words += [expand(word, env) for word in container.args]
    folder = root / container.working_dir.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    limit = container.limits.get("memory")
    return RunPlan(
        argv=tuple(words),
        env=env,
        root=root,
        folder=folder,
        logs=context.container_logs(container.name),
        number=number,
        max_memory_bytes=parse_bytes(limit) if limit else None,
    )


def _base(context: PodContext, root: Path) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    own = {"HOSTNAME": context.pod.name, "HOME": str(root)}
    return passed | own | dict(context.settings.env)


class Run:
    """A started run; raises OSError from its constructor when the command cannot start."""

    def __init__(self, plan: RunPlan, container: Container, context: PodContext) -> None:
        self._plan = plan
        self._container = container
        self._context = context
        prune(plan.logs, plan.number)
        path = log_path(plan.logs, plan.number)
        self.log = ContainerLog(path, context.settings.max_log_bytes)
        try:
            self._process = processes.spawn(plan.argv, plan.env, plan.folder, self._feed)
        except OSError:
            self.log.close()
            raise
        leftovers.record(plan.root.parent, self._process.pid)
        self._is_out_of_memory = False
        self._deadline = _FOREVER
        self._hurry = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        ip = context.facts.pod_ip
        self.target = Target(ip, container.ports, plan.env, plan.folder, plan.root)

    async def wait(self) -> Terminated:
        """The end, once no process of the run is left and its log is whole."""
        started = now()
        watch = asyncio.create_task(self._watch_memory())
        try:
            code = await asyncio.shield(self._process.exited)
        finally:
            watch.cancel()
        await processes.kill_members(self._process.pid, self._plan.root)
        if self._ending is not None:
            await self._ending
        self._process.drain()
        self._process.reap()
        self.log.close()
        reason = "Completed" if code == 0 else "Error"
        message = termination_message(self._container, self._plan.root, self.log.path, code)
        reason = OOM_KILLED if self._is_out_of_memory else reason
        return Terminated(code, reason, started, now(), message)

    async def end(self, grace_s: float) -> None:
        """preStop, SIGTERM, and SIGKILL after ``grace_s``; a later, shorter grace counts."""
        self._deadline = min(self._deadline, time.monotonic() + grace_s)
        self._hurry.set()
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def passes_startup(self) -> bool:
        """Asks the startup probe until it succeeds; False once it ended the container."""
        probe = self._container.startup
        if probe is None:
            return True
        machine = self._machine(ProbeKind.STARTUP, probe)
        while not machine.is_settled:
            await self._ask(machine)
            if machine.is_fatal:
                await self._fail(machine)
                return False
        return True

    async def watch_health(self, set_ready: SetReady) -> None:
        """Asks readiness and liveness until cancelled, or until liveness ended the container."""
        async with asyncio.TaskGroup() as group:
            if self._container.readiness is not None:
                group.create_task(self._watch_readiness(self._container.readiness, set_ready))
            if self._container.liveness is not None:
                group.create_task(self._watch_liveness(self._container.liveness))

    async def _watch_readiness(self, probe: Probe, set_ready: SetReady) -> None:
        machine = self._machine(ProbeKind.READINESS, probe)
        while True:
            if await self._ask(machine):
                set_ready(is_ready=machine.holds)

    async def _watch_liveness(self, probe: Probe) -> None:
        machine = self._machine(ProbeKind.LIVENESS, probe)
        while not machine.is_fatal:
            await self._ask(machine)
            if self._ending is not None:
                return  # a container that drains may well stop answering
        await self._fail(machine)

    def _machine(self, kind: ProbeKind, probe: Probe) -> ProbeMachine:
        return ProbeMachine(kind, probe, time.monotonic())

    async def _ask(self, machine: ProbeMachine) -> bool:
        await asyncio.sleep(max(0.0, machine.due - time.monotonic()))
        asked = time.monotonic()
        try:
            await act(machine.probe.action, self.target, machine.probe.timeout_s)
        except ActionError as error:
            self._context.event("Warning", "Unhealthy", f"{machine.kind} probe failed: {error}")
            return machine.record(is_success=False, asked=asked)
        return machine.record(is_success=True, asked=asked)

    async def _fail(self, machine: ProbeMachine) -> None:
        name, kind = self._container.name, machine.kind.lower()
        message = f"Container {name} failed {kind} probe, will be restarted"
        self._context.event("Normal", "Killing", message)
        own = machine.probe.grace_s
        await self.end(self._context.pod.grace_s if own is None else own)

    async def _end(self) -> None:
        hook = self._container.pre_stop
        if hook is not None and self._remaining() > 0:
            try:
                await act(hook, self.target, self._remaining())
            except ActionError as error:
                self._context.event("Warning", "FailedPreStopHook", f"PreStopHook failed: {error}")
            self._deadline = max(self._deadline, time.monotonic() + _LEAST_AFTER_HOOK_S)
        self._process.signal(SIGTERM)
        while not self._process.exited.done() and self._remaining() > 0:
            self._hurry.clear()
            hurry = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait(
                (self._process.exited, hurry),
                timeout=self._remaining(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            hurry.cancel()
        await processes.kill_members(self._process.pid, self._plan.root)

    def _remaining(self) -> float:
        return self._deadline - time.monotonic()

    async def _watch_memory(self) -> None:
        limit = self._plan.max_memory_bytes
        while limit is not None:
            pids = processes.family(self._process.pid) | processes.session(self._process.pid)
            if processes.memory_bytes(pids) > limit:
                self._is_out_of_memory = True
                processes.kill_all(processes.members(self._process.pid, self._plan.root))
                return
            await asyncio.sleep(self._context.settings.memory_interval_s)

    def _feed(self, stream: Stream, chunk: bytes) -> None:
        with contextlib.suppress(ValueError):  # a stranger that holds the pipe may write too late
            self.log.feed(stream, chunk)
