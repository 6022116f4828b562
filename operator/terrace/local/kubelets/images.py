"""Images in the nodes: without a registry, they come from archives.

Owns: importing an archive into every node that lacks an image of it. Does not own: what an archive
holds (``oci.py``), containerd (``components.py``).
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from terrace.local.errors import CommandError
from terrace.local.kubelets import oci
from terrace.local.kubelets.configs import PAUSE_IMAGE
from terrace.local.kubelets.namespaces import RUN, enter, program, search_path
from terrace.local.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from terrace.local.state import ProcessRecord

_LIST_TIMEOUT_S = 180.0
_IMPORT_TIMEOUT_S = 900.0
_START_TIMEOUT_S = 180.0
_NAMESPACE = "k8s.io"
"""The containerd namespace in which kubelet looks."""


class NodeImages:
    """The images of the nodes of one running cluster."""

    def __init__(self, outer: ProcessRecord, nodes: Sequence[str], snapshotter: str) -> None:
        self._outer = outer
        self._nodes = nodes
        self._snapshotter = snapshotter

    def load(self, archives: Sequence[Path], report: Callable[[str], None]) -> None:
        """Import each archive into each node, but for images that are there already."""
        for archive in archives:
            wanted = oci.references(archive)
            with ThreadPoolExecutor(len(self._nodes)) as pool:
                done = list(pool.map(lambda node: self._import(node, archive, wanted), self._nodes))  # noqa: B023 - the map ends here
            changed = [node for node, is_new in zip(self._nodes, done, strict=True) if is_new]
            names = ", ".join(each.name or each.digest for each in wanted)
            report(
                f"{names}: {'loaded into ' + ', '.join(changed) if changed else 'there already'}"
            )

    def load_pause(self, program_path: Path, folder: Path) -> None:
        """Make and load the image that every pod's sandbox runs; containerd may have just begun."""
        archive = folder / "pause.tar"
        oci.pack(archive, PAUSE_IMAGE, {"/pause": program_path}, ["/pause"])
        for node in self._nodes:
            wait_until(lambda: self._answers(node), _START_TIMEOUT_S)  # noqa: B023 - as above
        self.load([archive], lambda _line: None)

    def digests(self, node: str) -> dict[str, str]:
        """Image name -> digest, of one node."""
        lines = self._ctr(node, _LIST_TIMEOUT_S, "images", "list").splitlines()[1:]
        return {words[0]: words[2] for words in map(str.split, lines) if len(words) > 2}  # noqa: PLR2004 - name, type, digest

    def _import(self, node: str, archive: Path, wanted: Sequence[oci.ImageReference]) -> bool:
        have = self.digests(node)
        if all(have.get(each.name) == each.digest for each in wanted):
            return False
        self._ctr(node, _IMPORT_TIMEOUT_S, "images", "import", "--snapshotter", self._snapshotter,
                  str(archive))  # fmt: skip
        return True

    def _answers(self, node: str) -> bool:
        try:
            self._ctr(node, _LIST_TIMEOUT_S, "version")
        except CommandError:
            return False
        return True

    def _ctr(self, node: str, timeout_s: float, *words: str) -> str:
        argv = [program("ctr"), "--address", f"{RUN}/{node}/containerd.sock",
                "--namespace", _NAMESPACE, *words]  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603 - a program of containerd, no shell
                [*enter(self._outer), *argv], env={**os.environ, "PATH": search_path()},
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise CommandError(["ctr", *words], -1, f"no answer in {timeout_s:.0f} s") from error
        if done.returncode != 0:
            raise CommandError(["ctr", *words], done.returncode, done.stderr)
        return done.stdout
