"""Logging in to an OCI registry: Basic, or Bearer tokens as its challenge says.

Owns: the challenge (distribution's token specification), the token's life, whom a password goes to.
Does not own: what is asked for (``oci``). A password goes to the registry itself, or over https to
the token service that the registry names; nothing follows a redirect to another host.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, Field, ValidationError

from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.sources import http_url, origin
from terrace_runtime.models.web import Access

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace_runtime.models.secrets import Secrets
    from terrace_runtime.models.web import Web

_UNAUTHORIZED: Final = 401
_PARAMETER: Final = re.compile(r'([a-zA-Z_]{1,32})="([^"\\]{0,2048})"')
_MAX_LOGINS: Final = 64
"""Of one fetch: a token lasts for minutes, a download for hours."""


class _Token(BaseModel):
    token: str = Field(default="", max_length=65_536)
    access_token: str = Field(default="", max_length=65_536)


class RegistryAccess(Access):
    """Answers the challenges of one registry for pulling one repository."""

    def __init__(self, base_url: str, name: str, registry: str, secrets: Secrets) -> None:
        """Raises FetchError for a secret that holds nothing for this registry."""
        self._origin = origin(base_url)
        self._scope = f"repository:{name}:pull"
        self._login = secrets.login(registry)
        self._authorization = f"Bearer {secrets.get('token')}" if secrets.get("token") else ""
        self._is_anonymous = self._login is None and not self._authorization
        if secrets.is_login and self._is_anonymous:
            raise FetchError(
                "Unauthorized",
                f"the secret holds no login for {registry}: it needs username and password, "
                "token, or a .dockerconfigjson with that host",
            )
        self._logins = 0

    def headers(self, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """What the registry last accepted, for the registry alone."""
        del headers
        if not self._authorization or origin(url) != self._origin:
            return {}
        return {"Authorization": self._authorization}

    async def again(
        self, web: Web, url: str, status: int, headers: Mapping[str, str]
    ) -> str | None:
        """Log in as the registry's challenge says, and ask again."""
        if status != _UNAUTHORIZED or origin(url) != self._origin or self._logins >= _MAX_LOGINS:
            return None
        scheme, _, rest = headers.get("WWW-Authenticate", "").partition(" ")
        answer = ""
        if scheme.lower() == "basic" and self._login is not None:
            answer = _basic(self._login)
        elif scheme.lower() == "bearer":
            answer = await self._token(web, dict(_PARAMETER.findall(rest[:8192])))
        if not answer or answer == self._authorization:
            return None
        self._authorization = answer
        self._logins += 1
        return url

    def explain(self, status: int, headers: Mapping[str, str]) -> str:
        """Registries answer 401 also for what does not exist."""
        del headers
        if status not in (401, 403):
            return ""
        if self._is_anonymous:
            return "it does not exist, or it is private and needs secretRef"
        return "it does not exist, or the secret's login may not read it"

    async def _token(self, web: Web, challenge: Mapping[str, str]) -> str:
        realm = http_url(challenge.get("realm", ""))
        if urlsplit(realm).scheme != "https" and origin(realm) != self._origin:
            raise FetchError("DownloadFailed", "the registry's token service is plain http")
        query = {"service": challenge.get("service", ""), "scope": self._scope}
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
        body, _ = await web.document(url, _Password(realm, self._login))
        try:
            found = _Token.model_validate_json(body)
        except ValidationError:
            raise FetchError(
                "DownloadFailed", "the registry's token service gives no token"
            ) from None
        token = found.token or found.access_token
        return f"Bearer {token}" if token.isprintable() and token else ""


class _Password(Access):
    """Sends a login to the token service alone."""

    def __init__(self, realm: str, login: tuple[str, str] | None) -> None:
        self._origin = origin(realm)
        self._login = login

    def headers(self, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The login, where ``url`` lies at the token service."""
        del headers
        if self._login is None or origin(url) != self._origin:
            return {}
        return {"Authorization": _basic(self._login)}

    def explain(self, status: int, headers: Mapping[str, str]) -> str:
        """Of a refused login."""
        del headers
        return "the registry's token service refuses the login" if status in (401, 403) else ""


def _basic(login: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(f"{login[0]}:{login[1]}".encode()).decode()
