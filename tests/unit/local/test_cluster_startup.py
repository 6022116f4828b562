"""What `up` puts into a control plane that has just started, and may be too busy to take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from terrace.local.errors import LocalClusterError
from terrace.local.startup import Startup
from terrace.local.state import ClusterFolder, ClusterOptions, ClusterState

if TYPE_CHECKING:
    from pathlib import Path

STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "a"},
}


class Server:
    """An API server that answers with these, one after the other."""

    def __init__(self, *statuses: int) -> None:
        self.left = list(statuses)

    def apply(self, path: str, _: dict[str, Any]) -> tuple[int, str]:
        assert path == "/apis/storage.k8s.io/v1/storageclasses/a"
        status = self.left.pop(0)
        return status, f"answer {status}"


def put(folder: Path, server: Server) -> None:
    state = ClusterState(name="c", options=ClusterOptions(), block=77, ports={})
    startup = Startup(ClusterFolder(folder), state, lambda _line: None)
    startup._put(server, STORAGE_CLASS)  # type: ignore[arg-type]  # all of a client that it needs


def test_a_server_that_is_too_busy_is_asked_again(tmp_path: Path) -> None:
    server = Server(0, 500, 429, 504, 201, 403)
    put(tmp_path, server)
    assert server.left == [403]


def test_a_refusal_is_told_at_once_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match="refused StorageClass a: answer 403"):
        put(tmp_path, Server(403, 201))
