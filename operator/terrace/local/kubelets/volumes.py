"""``python -m terrace.local.kubelets.volumes``: folders as PersistentVolumes for every node.

Owns: the command line and one provisioner per node, each with its node's identity. Does not own:
what a provisioner does (``terrace.local.provisioner``).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from terrace.local.event_recorder import EventRecorder
from terrace.local.node_client import NodeClient
from terrace.local.provisioner import Provisioner


async def serve(nodes: list[str], kubeconfigs: Path, folder: Path) -> None:
    """Runs for ever."""
    async with asyncio.TaskGroup() as group:
        for node in nodes:
            client = await NodeClient.connect(kubeconfigs / f"{node}.conf", "terrace-volumes")
            events = EventRecorder(client, node)
            provisioner = Provisioner(client, events, node, folder / node / "volumes")
            group.create_task(events.send())
            group.create_task(provisioner.serve())


def main(words: list[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m terrace.local.kubelets.volumes")
    parser.add_argument("--kubeconfigs", type=Path, required=True, help="folder of NODE.conf files")
    parser.add_argument("--dir", type=Path, required=True, help="holds NODE/volumes")
    parser.add_argument("nodes", nargs="+")
    options = parser.parse_args(words)
    asyncio.run(serve(options.nodes, options.kubeconfigs, options.dir))


if __name__ == "__main__":
    main(sys.argv[1:])
