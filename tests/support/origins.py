"""Local servers that play the places models come from: a hub, an S3 store, an OCI registry, a CDN.

Each records what it was asked, and answers one request per entry of ``faults`` otherwise.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Self

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COMMIT = "c" * 40


@dataclass
class Origin:
    """An HTTP server on a port of its own."""

    faults: list[Handler] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)
    url: str = ""

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.faults:
            return await self.faults.pop(0)(request)
        return await self.answer(request)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """What an honest server says."""
        raise NotImplementedError("each kind of origin answers for itself")

    def asked(self, part: str) -> list[web.Request]:
        """Requests whose path holds ``part``."""
        return [request for request in self.requests if part in request.raw_path]


def ranged(request: web.Request, content: bytes) -> web.Response:
    """``content``, or the bytes of it that were asked for."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if match is None or request.headers.get("If-Range", etag) != etag:
        return web.Response(body=content, headers={"ETag": etag})
    start, size = int(match[1]), len(content)
    if start >= size:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
    end = min(int(match[2] or size - 1), size - 1)
    headers = {"ETag": etag, "Content-Range": f"bytes {start}-{end}/{size}"}
    return web.Response(status=206, body=content[start : end + 1], headers=headers)


@dataclass
class Cdn(Origin):
    """Gives what it holds by name to everybody, and must never see a secret."""

    files: dict[str, bytes] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            return web.Response(status=400, text="I must not see this")
        content = self.files.get(request.path[1:])
        return web.Response(status=404) if content is None else ranged(request, content)


def cut(content: bytes, count: int) -> Handler:
    """Announce ``content``, send ``count`` bytes of it and break the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = dict(ranged(request, content).headers)
        response = web.StreamResponse(
            headers={"ETag": headers["ETag"], "Content-Length": str(len(content))}
        )
        await response.prepare(request)
        await response.write(content[:count])
        await asyncio.sleep(0)
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


@dataclass
class Hub(Origin):
    """The hub's REST API; files whose names end in .gguf are LFS files and lie on ``cdn``."""

    files: dict[str, bytes] = field(default_factory=dict)
    repo: str = "owner/repo"
    revision: str = "main"
    token: str = ""
    cdn: Cdn | None = None
    lies: dict[str, str] = field(default_factory=dict)
    """Checksums that are said instead of the true ones."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, headers={"X-Error-Code": "RepoNotFound"})
        path = unquote(request.raw_path.partition("?")[0])
        if path.startswith(f"/api/models/{self.repo}/revision/"):
            if path.rpartition("/revision/")[2] != self.revision:
                return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
            return web.json_response({"sha": COMMIT, "siblings": self._siblings(request)})
        name = path.removeprefix(f"/{self.repo}/resolve/{COMMIT}/")
        if name not in self.files:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        if self.cdn is None:
            return ranged(request, self.files[name])
        self.cdn.files[name] = self.files[name]
        return web.Response(status=302, headers={"Location": f"{self.cdn.url}/{quote(name)}"})

    def _siblings(self, request: web.Request) -> list[dict[str, object]]:
        assert request.query["blobs"] == "true"
        siblings: list[dict[str, object]] = []
        for name, content in self.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content)}
            if name.endswith(".gguf"):
                digest = self.lies.get(name, hashlib.sha256(content).hexdigest())
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 135}
            siblings.append(entry)
        return siblings


@dataclass
class S3Store(Origin):
    """An S3-compatible store, path style, which checks Signature Version 4 for itself."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """By BUCKET/KEY."""
    keys: dict[str, str] = field(default_factory=dict)
    """Secret by access key id; empty: everybody may read."""
    session_token: str = ""
    region: str = "us-east-1"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        why = self._refusal(request) if self.keys else ""
        if why:
            headers = {"x-amz-bucket-region": self.region}
            return web.Response(
                status=403, text=f"<Error><Code>{why}</Code></Error>", headers=headers
            )
        content = self.objects.get(unquote(request.raw_path[1:]))
        return web.Response(status=404) if content is None else ranged(request, content)

    def _refusal(self, request: web.Request) -> str:
        match = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([a-z0-9-]+)/s3/aws4_request, "
            r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
            request.headers.get("Authorization", ""),
        )
        if match is None or match[1] not in self.keys:
            return "InvalidAccessKeyId"
        if match[3] != self.region:
            return "AuthorizationHeaderMalformed"
        if request.headers.get("x-amz-security-token", "") != self.session_token:
            return "InvalidToken"
        if "host" not in match[4].split(";"):
            return "HostNotSigned"
        expected = self._signature(request, match[2], match[4], self.keys[match[1]])
        return "" if hmac.compare_digest(expected, match[5]) else "SignatureDoesNotMatch"

    def _signature(self, request: web.Request, day: str, names: str, secret: str) -> str:
        path, _, query = request.raw_path.partition("?")
        pairs = sorted(parse_qsl(query, keep_blank_values=True))
        lines = [request.method, path, "&".join(f"{quote(k)}={quote(v)}" for k, v in pairs)]
        lines += [f"{name}:{request.headers[name].strip()}" for name in names.split(";")]
        lines += ["", names, request.headers["x-amz-content-sha256"]]
        hashed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        time, scope = request.headers["x-amz-date"], f"{day}/{self.region}/s3/aws4_request"
        assert time.startswith(day)
        key = ("AWS4" + secret).encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}"
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


@dataclass
class Registry(Origin):
    """An OCI registry with token authentication; blobs lie on ``cdn`` if there is one."""

    name: str = "ai/model"
    login: tuple[str, str] | None = None
    """Who may have a token; ``None``: everybody, but everybody needs one."""
    scheme: str = "Bearer"
    token_host: str = ""
    """Where the token service lies; empty: here."""
    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    cdn: Cdn | None = None
    tokens: set[str] = field(default_factory=set)

    def push(self, tag: str, files: list[tuple[str, str, bytes]], *, index: bool = False) -> str:
        """Store an artifact of (media type, title, content); returns its digest."""
        layers = []
        for media_type, title, content in files:
            digest = self._blob(content)
            layer: dict[str, object] = {
                "mediaType": media_type,
                "digest": digest,
                "size": len(content),
            }
            if title:
                layer["annotations"] = {"org.opencontainers.image.title": title}
            layers.append(layer)
        digest = self._manifest({"schemaVersion": 2, "layers": layers})
        if index:
            media_type = "application/vnd.oci.image.manifest.v1+json"
            size = len(self.manifests[digest])
            entry = {"mediaType": media_type, "digest": digest, "size": size}
            digest = self._manifest({"schemaVersion": 2, "manifests": [entry]})
        self.manifests[tag] = self.manifests[digest]
        return digest

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return self._token(request)
        if request.headers.get("Authorization", "") not in self._accepted():
            return web.Response(status=401, headers={"WWW-Authenticate": self._challenge()})
        kind, _, reference = request.path.removeprefix(f"/v2/{self.name}/").partition("/")
        if kind == "manifests" and reference in self.manifests:
            return web.Response(body=self.manifests[reference])
        if kind == "blobs" and reference in self.blobs:
            if self.cdn is None:
                return ranged(request, self.blobs[reference])
            self.cdn.files[reference] = self.blobs[reference]
            return web.Response(status=307, headers={"Location": f"{self.cdn.url}/{reference}"})
        return web.Response(status=404)

    def _accepted(self) -> set[str]:
        if self.scheme == "Basic":
            return {_basic(self.login)} if self.login else {""}
        return {f"Bearer {token}" for token in self.tokens}

    def _challenge(self) -> str:
        realm = f"{self.token_host or self.url}/token"
        return (
            f'{self.scheme} realm="{realm}",service="registry",scope="repository:{self.name}:pull"'
        )

    def _token(self, request: web.Request) -> web.Response:
        if self.login is not None and request.headers.get("Authorization") != _basic(self.login):
            return web.Response(status=401)
        if request.query["scope"] != f"repository:{self.name}:pull":
            return web.Response(status=400)
        token = f"token-{len(self.tokens)}"
        self.tokens.add(token)
        return web.json_response({"token": token, "expires_in": 60})

    def _blob(self, content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return digest

    def _manifest(self, value: object) -> str:
        raw = json.dumps(value).encode()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self.manifests[digest] = raw
        return digest


def _basic(login: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(f"{login[0]}:{login[1]}".encode()).decode()
