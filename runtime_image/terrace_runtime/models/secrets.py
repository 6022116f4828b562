"""The secret of a source: read from its mounted folder, and kept out of every text.

Owns: which keys are read, their bounds, and hiding their values. Does not own: whom they are sent
to (``web.Access`` and its kinds in ``remote``, ``s3`` and ``registry_access``).
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import quote

from terrace_runtime.contract import pod_path
from terrace_runtime.models.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS: Final = (
    "token",
    "username",
    "password",
    ".dockerconfigjson",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "ca.crt",
)
_DOCUMENTS: Final = frozenset({".dockerconfigjson", "ca.crt"})
"""Keys whose values have lines and never become a header."""
_MAX_VALUE_BYTES: Final = 64 * 2**10
_MAX_FILE_BYTES: Final = 2**20
_MIN_HIDDEN: Final = 4
"""Shorter values are no secrets, and hiding them would garble messages."""


class Secrets:
    """The values of one Secret; prints as nothing."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        """Raises FetchError for a value that could not be put into a header."""
        self._values = dict(values or {})
        self.is_login = bool(self._values) and self._values.keys() != {"ca.crt"}
        """Whether there is anything to log in with."""
        for key, value in self._values.items():
            is_text = all(c.isprintable() for c in value) or key in _DOCUMENTS
            if not is_text or len(value) > _MAX_VALUE_BYTES:
                _refuse(f"the secret's key {key} holds control characters or is too long")
        self._hidden = sorted(_hidden(self._values), key=len, reverse=True)

    def __repr__(self) -> str:
        return "Secrets(...)"

    def get(self, key: str) -> str:
        """The value of ``key``; empty when it is absent."""
        return self._values.get(key, "")

    def hide(self, text: str) -> str:
        """``text`` with every secret value taken out."""
        for value in self._hidden:
            text = text.replace(value, "***")
        return text

    def login(self, registry: str) -> tuple[str, str] | None:
        """User name and password for an OCI registry; raises FetchError for a broken file."""
        if self.get("username") or self.get("password"):
            return self.get("username"), self.get("password")
        raw = self.get(".dockerconfigjson")
        return _docker_logins(raw).get(_registry_host(registry)) if raw else None


def read_secrets(secret_dir: str) -> Secrets:
    """The secret mounted at the container path ``secret_dir``; empty: none. Raises FetchError."""
    if not secret_dir:
        return Secrets()
    folder, values = pod_path(secret_dir), {}
    if not folder.is_dir():
        _refuse("the source's secret is not mounted", permanent=False)
    for key in KEYS:
        try:
            with (folder / key).open("rb") as file:
                values[key] = file.read(_MAX_FILE_BYTES + 1).decode().strip()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError):
            _refuse(f"the secret's key {key} cannot be read")
    if not values:
        _refuse(f"the source's secret has none of the keys {', '.join(KEYS)}")
    return Secrets(values)


def _hidden(values: Mapping[str, str]) -> set[str]:
    found = {v for key, v in values.items() if key != "username" and key not in _DOCUMENTS}
    raw = values.get(".dockerconfigjson", "")
    if raw:
        try:
            logins = _docker_logins(raw)
        except FetchError:
            logins = {}  # Told where it is used; a file of no meaning hides nothing.
        found |= {password for _, password in logins.values()}
    found |= {quote(value, safe="") for value in found}
    found |= {
        base64.b64encode(f"{values.get('username', '')}:{v}".encode()).decode() for v in found
    }
    return {value for value in found if len(value) >= _MIN_HIDDEN}


def _docker_logins(raw: str) -> dict[str, tuple[str, str]]:
    """Logins by host, from the JSON that ``kubectl create secret docker-registry`` writes."""
    try:
        entries = json.loads(raw)["auths"].items()
        return {_registry_host(host): _login(entry) for host, entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        _refuse("the secret's .dockerconfigjson is not the JSON of a docker login")


def _login(entry: Mapping[str, str]) -> tuple[str, str]:
    if entry.get("auth"):
        name, _, password = (
            base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
        )
        return name, password
    return str(entry.get("username", "")), str(entry.get("password", ""))


def _registry_host(text: str) -> str:
    """``https://index.docker.io/v1/`` and ``docker.io`` are one host."""
    host = text.partition("://")[2] or text
    host = host.partition("/")[0].lower()
    return "docker.io" if host in {"index.docker.io", "registry-1.docker.io"} else host


def _refuse(why: str, *, permanent: bool = True) -> NoReturn:
    raise FetchError("Unauthorized", why, permanent=permanent)
