"""The Hugging Face hub: from ``hf://`` to files at a pinned commit, with the hub's own checksums.

Owns: the two REST calls (``/api/models/REPO/revision/REV?blobs=true`` and
``/REPO/resolve/COMMIT/FILE``), which mirrors answer as well (HF_ENDPOINT). Does not own: which file
is chosen (``choice``), requests (``web``). Why not huggingface-hub: docs/adr/0020. Next:
``download`` or ``remote_header``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from terrace_runtime.models.choice import choose
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.remote import Bearer, Remote, RemoteFile
from terrace_runtime.models.sources import HubSource, endpoint_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace_runtime.contract import FetchSpec
    from terrace_runtime.models.secrets import Secrets
    from terrace_runtime.models.web import Web

HUB: Final = "https://huggingface.co"
_MAX_FILES: Final = 100_000


class _Lfs(BaseModel):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: int = Field(ge=0)


class _File(BaseModel):
    rfilename: str = Field(max_length=4096)
    size: int | None = None
    lfs: _Lfs | None = None


class _Repo(BaseModel):
    sha: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]
    siblings: list[_File] = Field(default_factory=list, max_length=_MAX_FILES)


class _HubAccess(Bearer):
    """Says in the hub's words why it refuses."""

    def __init__(self, base_url: str, token: str, repo: str) -> None:
        super().__init__(base_url, token)
        self._repo = repo

    def explain(self, status: int, headers: Mapping[str, str]) -> str:
        """The hub answers 401 also for what does not exist."""
        code = headers.get("X-Error-Code", "")
        if code == "GatedRepo":
            return f"{self._repo} is gated: accept its terms at the hub and set secretRef (token)"
        if code == "RevisionNotFound":
            return f"{self._repo} has no such revision"
        if code == "RepoNotFound" or status == 401:  # noqa: PLR2004 - as named above
            if self._token:
                return f"{self._repo} does not exist, or the secret's token may not read it"
            return f"{self._repo} does not exist, or it is private and needs secretRef (token)"
        said = "".join(c for c in headers.get("X-Error-Message", "") if c.isprintable())
        return said[:200]


async def resolve_hub(source: HubSource, spec: FetchSpec, web: Web, secrets: Secrets) -> Remote:
    """The files of ``source`` at the commit its revision names now; raises FetchError."""
    base = endpoint_url(spec.hf_endpoint or HUB, "sources.huggingFaceEndpoint")
    if secrets.is_login and not secrets.get("token"):
        raise FetchError("Unauthorized", "an hf:// source's secret needs the key token")
    access = _HubAccess(base, secrets.get("token"), source.repo)
    revision = quote(source.revision, safe="")
    url = f"{base}/api/models/{source.repo}/revision/{revision}?blobs=true"
    body, _ = await web.document(url, access, {"Accept": "application/json"})
    try:
        repo = _Repo.model_validate_json(body)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise FetchError(
            "DownloadFailed", f"{base} does not answer as the hub does ({where or 'no JSON'})"
        ) from None
    names = [file.rfilename for file in repo.siblings]
    chosen = choose(source, names, role=spec.role)
    by_name = {file.rfilename: file for file in repo.siblings}
    files = tuple(_remote_file(base, source.repo, repo.sha, by_name[name]) for name in chosen)
    return Remote(files, access)


def _remote_file(base: str, repo: str, commit: str, file: _File) -> RemoteFile:
    if re.search(r"(^|/)\.{0,2}(/|$)", file.rfilename):
        raise FetchError("DownloadFailed", f"the hub names a file {file.rfilename[:200]!r}")
    url = f"{base}/{repo}/resolve/{commit}/{quote(file.rfilename)}"
    if file.lfs is None:
        return RemoteFile(url, file.size or 0)
    return RemoteFile(url, file.lfs.size, file.lfs.sha256)
