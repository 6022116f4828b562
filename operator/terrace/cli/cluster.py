"""A cluster over HTTP: the one file of the command line that imports the Kubernetes client.

Owns: the kubeconfig, its contexts, timeouts, pages, the translation of answers into errors. Does
not own: what is asked. It reads and never writes. Next: ``snapshot.py``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import yaml
from kubernetes import config
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from terrace import __version__
from terrace.cli.errors import InputError
from terrace.controller.port import (
    ClusterError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.api.names import Key
    from terrace.controller.kinds import Kind, Manifest

TIMEOUT_S = 15.0
PAGE_SIZE = 500
HTTP_ERROR = 300
MAX_OBJECTS = 50_000
"""Of one kind; a cluster with more is not read to the end."""
_BAD_CONFIG = (
    ConfigException,
    OSError,
    yaml.YAMLError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)
"""What the client's reader of kubeconfigs raises for files that are none."""
_ERRORS: dict[int, type[ClusterError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    410: GoneError,
}


class KubeReader:
    """``reader.ClusterReader`` on a real API server."""

    def __init__(self, client: ApiClient, configuration: Configuration, namespace: str) -> None:
        self._client = client
        self._configuration = configuration
        self._namespace = namespace

    @classmethod
    def connect(cls, kubeconfig: Path | None, context: str | None) -> KubeReader:
        """Reads the credentials; does not yet talk to the server. Raises InputError."""
        configuration = Configuration()
        # The client would repeat what fails for up to a minute; a person waits for this one.
        configuration.retries = False
        path = str(kubeconfig) if kubeconfig else None
        if kubeconfig is not None and not kubeconfig.is_file():
            raise InputError(f"--kubeconfig {kubeconfig}: there is no such file")
        try:
            config.load_kube_config(path, context, client_configuration=configuration)
            namespace = _namespace_of(path, context)
        except _BAD_CONFIG as error:
            if context is None and kubeconfig is None and _in_cluster(configuration):
                return cls(ApiClient(configuration), configuration, "default")
            raise InputError(
                f"no usable kubeconfig: {error}; set KUBECONFIG, --kubeconfig or --kube-context"
            ) from error
        return cls(ApiClient(configuration), configuration, namespace)

    @property
    def server(self) -> str:
        """See ``reader.ClusterReader``."""
        return str(self._configuration.host)

    @property
    def namespace(self) -> str:
        """See ``reader.ClusterReader``."""
        return self._namespace

    def get(self, kind: Kind, key: Key) -> Manifest:
        """See ``reader.ClusterReader``."""
        return self._read(f"{kind.path(key.namespace)}/{key.name}", {})

    def list_all(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        """See ``reader.ClusterReader``."""
        query = {"limit": str(PAGE_SIZE)}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        items: list[Manifest] = []
        while len(items) < MAX_OBJECTS:
            page = self._read(kind.path(namespace), query)
            items += page.get("items") or ()
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                break
            query["continue"] = token
        return items

    def _read(self, path: str, query: dict[str, str]) -> Manifest:
        headers = {"Accept": "application/json", "User-Agent": f"terrace/{__version__}"}
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            auth = self._configuration.auth_settings().get("BearerToken")
            if auth:
                headers["Authorization"] = str(auth["value"])
            answer: Any = self._client.call_api("GET", url, headers, _request_timeout=TIMEOUT_S)
            data: bytes = answer.read()
        except (ApiException, HTTPError, OSError) as error:
            why = getattr(error, "reason", None) or error
            raise UnavailableError(f"{self.server} does not answer: {why}") from error
        if answer.status >= HTTP_ERROR:
            raise _error(path, answer.status, data)
        try:
            parsed: Manifest = json.loads(data)
        except ValueError as error:
            raise UnavailableError(f"{path}: the answer is not JSON") from error
        return parsed


def _error(path: str, status: int, data: bytes) -> ClusterError:
    try:
        message = str(json.loads(data).get("message", ""))
    except (ValueError, AttributeError):
        message = data[:200].decode(errors="replace")
    return _ERRORS.get(status, UnavailableError)(f"{path}: {status} {message}")


def _namespace_of(path: str | None, context: str | None) -> str:
    contexts, active = config.list_kube_config_contexts(path)
    wanted = next((each for each in contexts if each["name"] == context), active)
    return str((wanted.get("context") or {}).get("namespace") or "default")


def _in_cluster(configuration: Configuration) -> bool:
    try:
        config.load_incluster_config(client_configuration=configuration)
    except ConfigException:
        return False
    return True
