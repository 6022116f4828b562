"""The command line's Kubernetes client against a small server: pages, refusals, odd answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from terrace.api.names import Key
from terrace.cli.cluster import KubeReader
from terrace.cli.errors import InputError
from terrace.controller.kinds import NODE, POD
from terrace.controller.port import ForbiddenError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = {"": (["a", "b"], "next"), "next": (["c"], "")}


class Handler(BaseHTTPRequestHandler):
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        Handler.asked.append((self.path, self.headers.get("Authorization", "")))
        if parts.path == "/api/v1/nodes":
            names, token = PAGES[query.get("continue", [""])[0]]
            items = [{"metadata": {"name": name}} for name in names]
            self._answer(200, {"metadata": {"continue": token}, "items": items})
        elif parts.path.endswith("/pods/secret"):
            self._answer(403, {"message": 'pods "secret" is forbidden'})
        elif parts.path.endswith("/pods/odd"):
            self._answer(200, "<html>a proxy's login page</html>")
        else:
            self._answer(404, {"message": f"{parts.path} not found"})

    def _answer(self, status: int, body: object) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is named there
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def kubeconfig(path: Path, server: str) -> Path:
    contexts = [
        {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}},
        {"name": "two", "context": {"cluster": "c", "user": "u"}},
    ]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "a-token"}}],
        "contexts": contexts,
        "current-context": "one",
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def reader(server: str, tmp_path: Path) -> KubeReader:
    return KubeReader.connect(kubeconfig(tmp_path / "config", server), None)


def test_lists_are_read_page_by_page(reader: KubeReader) -> None:
    found = reader.list_all(NODE, None, labels="a=b", fields="metadata.name=x")
    assert [node["metadata"]["name"] for node in found] == ["a", "b", "c"]
    first, second = Handler.asked
    assert "labelSelector=a%3Db" in first[0]
    assert "fieldSelector=metadata.name%3Dx" in first[0]
    assert "continue=next" in second[0]
    assert first[1] == "Bearer a-token"


def test_answers_become_errors_that_say_what_was_said(reader: KubeReader) -> None:
    with pytest.raises(ForbiddenError, match="is forbidden"):
        reader.get(POD, Key("default", "secret"))
    with pytest.raises(NotFoundError, match="pods/none not found"):
        reader.get(POD, Key("default", "none"))
    with pytest.raises(UnavailableError, match="is not JSON"):
        reader.get(POD, Key("default", "odd"))


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    reader = KubeReader.connect(kubeconfig(tmp_path / "c", "http://127.0.0.1:1"), None)
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1 does not answer"):
        reader.list_all(NODE, None)


def test_contexts_have_their_namespaces(server: str, tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", server)
    assert KubeReader.connect(path, None).namespace == "team-a"
    assert KubeReader.connect(path, "two").namespace == "default"
    with pytest.raises(InputError, match="three"):
        KubeReader.connect(path, "three")


def test_no_kubeconfig_says_where_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        KubeReader.connect(tmp_path / "none", None)
    bad = tmp_path / "bad"
    bad.write_text("just text")
    with pytest.raises(InputError, match="no usable kubeconfig"):
        KubeReader.connect(bad, None)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InputError, match="set KUBECONFIG"):
        KubeReader.connect(None, None)
