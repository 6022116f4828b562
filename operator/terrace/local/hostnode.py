"""The host node: ``python -m terrace.local.hostnode`` registers this machine as a Node.

Owns: the command line, the wiring, start and end. A stand-in for kubelet + containerd where there
are no containers: pods bound to the node run as plain host processes, and the Node says so. Does
not own: running a pod (``pods/``), the Node object (``node_heart.py``), pods' statuses
(``node_pods.py``), logs (``kubelet_api.py``), volumes (``provisioner.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from terrace.local.api_sources import ApiSources
from terrace.local.event_recorder import EventRecorder
from terrace.local.kubelet_api import KubeletApi, server_context
from terrace.local.node_client import NodeClient
from terrace.local.node_heart import NodeHeart
from terrace.local.node_pods import NodePods
from terrace.local.node_status import allocatable, machine
from terrace.local.pods import guard, leftovers
from terrace.local.pods.addresses import AddressPool
from terrace.local.pods.backoff import DEFAULT_BASE_S
from terrace.local.pods.context import Settings
from terrace.local.pods.images import InvalidImageMapError, load_image_map
from terrace.local.provisioner import Provisioner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_log = structlog.get_logger()
_END_GRACE_S = 2.0
"""What pods get when the agent itself is told to end."""


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """The command line; exits with a message on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m terrace.local.hostnode",
        description="Registers this machine as a Kubernetes Node and runs the pods bound to it as"
        " plain host processes. A stand-in for kubelet and a container runtime: no images are"
        " pulled, and there is no isolation between pods and this machine.",
    )
    parser.add_argument("--kubeconfig", type=Path, required=True, help="the node's identity")
    parser.add_argument("--dir", type=Path, required=True, help="pods, logs and volumes go here")
    parser.add_argument("--name", required=True, help="name of the Node")
    parser.add_argument("--address", required=True, help="InternalIP, a loopback address")
    parser.add_argument("--port", type=int, default=0, help="of the logs API; 0: any free one")
    parser.add_argument("--pod-addresses", required=True, help="FIRST-LAST, one address per pod")
    parser.add_argument("--serving-cert", type=Path, required=True)
    parser.add_argument("--serving-key", type=Path, required=True)
    parser.add_argument("--client-ca", type=Path, required=True, help="signs the API server's")
    parser.add_argument("--api-server", required=True, help="URL that pods are told")
    parser.add_argument("--images", type=Path, help="JSON: image repository -> argv, adds to ours")
    parser.add_argument(
        "--backoff", type=float, default=DEFAULT_BASE_S, help="first crash back-off in seconds"
    )
    parser.add_argument("--refresh", type=float, default=30.0, help="seconds between two looks at"
                        " the ConfigMaps, Secrets and tokens of running pods")  # fmt: skip
    options = parser.parse_args(words)
    try:
        options.pod_addresses = AddressPool.parse(options.pod_addresses)
        load_image_map(options.images)
    except (ValueError, InvalidImageMapError) as error:
        parser.error(str(error))
    return options


async def serve(options: argparse.Namespace, folder: Path) -> None:
    """Runs the node until SIGTERM or SIGINT, then ends its pods' processes."""
    found = machine(folder)
    client = await NodeClient.connect(options.kubeconfig, f"terrace-host-node/{_version()}")
    settings = _settings(options, folder)
    events = EventRecorder(client, options.name)
    pods = NodePods(client, settings, ApiSources(client), events, options.pod_addresses)
    api = KubeletApi(pods)
    context = server_context(options.serving_cert, options.serving_key, options.client_ca)
    port = await api.start(options.address, options.port, context)
    heart = NodeHeart(client, options.name, options.address, port, found, _version(), folder)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        stack.push_async_callback(api.close)
        stack.push_async_callback(pods.stop_all, _END_GRACE_S)
        provisioner = Provisioner(client, events, options.name, folder / "volumes")
        await _log.ainfo("host node starts", node=options.name, port=port, folder=str(folder))
        until = asyncio.create_task(ended.wait())
        work = [
            asyncio.create_task(_live(heart)),
            asyncio.create_task(pods.follow(options.name)),
            asyncio.create_task(events.send()),
            asyncio.create_task(provisioner.serve()),
        ]
        stack.push_async_callback(_cancel, [*work, until])
        done, _ = await asyncio.wait([*work, until], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {until}:
            # None of these ever returns: one that does has failed, and the node with it.
            task.result()
    await _log.ainfo("host node ended", node=options.name)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _live(heart: NodeHeart) -> None:
    await heart.register()
    await _log.ainfo("node registered", node=heart.name)
    await heart.beat()


def _settings(options: argparse.Namespace, folder: Path) -> Settings:
    server = urlsplit(options.api_server)
    port = str(server.port or 443)
    return Settings(
        folder=folder,
        images=lambda: load_image_map(options.images),
        host_ip=options.address,
        node_name=options.name,
        allocatable=allocatable(machine(folder)),
        env={
            "KUBERNETES_SERVICE_HOST": server.hostname or "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": port,
            "KUBERNETES_SERVICE_PORT_HTTPS": port,
        },
        backoff_base_s=options.backoff,
        refresh_s=options.refresh,
    )


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds the folder against a second agent, and has what an earlier one left killed.

    The guard inherits the lock: an agent that starts while the guard of a killed one is still
    clearing up waits for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        leftovers.kill(folder / "pods")
        watcher = guard.start(folder / "pods", descriptor)
        try:
            yield
        finally:
            watcher.communicate()
    finally:
        os.close(descriptor)


def main() -> None:
    """Entry point."""
    options = parse_arguments(sys.argv[1:])
    folder = options.dir.absolute()
    with owned(folder):
        asyncio.run(serve(options, folder))


def _version() -> str:
    try:
        return version("terrace")
    except PackageNotFoundError:
        return "0.0.0"


if __name__ == "__main__":
    main()
