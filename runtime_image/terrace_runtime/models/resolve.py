"""From a remote source to the files to get, whatever kind of source it is.

Owns: which module answers for which kind. Does not own: parsing URIs (``sources``). Next:
``download`` gets the files, ``remote_header`` reads their headers only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.hub import resolve_hub
from terrace_runtime.models.oci import resolve_oci
from terrace_runtime.models.remote import Bearer, Remote, RemoteFile
from terrace_runtime.models.s3 import resolve_s3
from terrace_runtime.models.sources import HttpSource, HubSource, OciSource, S3Source
from terrace_runtime.models.split import part_paths

if TYPE_CHECKING:
    from terrace_runtime.contract import FetchSpec
    from terrace_runtime.models.secrets import Secrets
    from terrace_runtime.models.sources import RemoteSource
    from terrace_runtime.models.web import Web


async def resolve(source: RemoteSource, spec: FetchSpec, web: Web, secrets: Secrets) -> Remote:
    """The files of ``source`` and how to be given them; raises FetchError."""
    match source:
        case HttpSource():
            return _resolve_http(source, secrets)
        case HubSource():
            return await resolve_hub(source, spec, web, secrets)
        case S3Source():
            return resolve_s3(source, spec, secrets)
        case OciSource():
            return await resolve_oci(source, spec, web, secrets)


def _resolve_http(source: HttpSource, secrets: Secrets) -> Remote:
    parts = urlsplit(source.url)
    if secrets.is_login and parts.scheme != "https":
        raise FetchError("Unauthorized", "a secret is never sent over http://; use https://")
    if secrets.is_login and not secrets.get("token"):
        raise FetchError("Unauthorized", "an https:// source's secret needs the key token")
    files = (RemoteFile(urlunsplit(parts._replace(path=path))) for path in part_paths(parts.path))
    return Remote(tuple(files), Bearer(source.url, secrets.get("token")))
