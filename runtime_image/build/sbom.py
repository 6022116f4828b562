"""Lists the parts of an image as CycloneDX 1.6, from the wheels that it installs.

Owns: what stands in the list. Does not own: which wheels (``wheelhouse.py``). No date and no serial
number, so that equal wheels give equal lists. Standard library only.
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from email.message import Message
    from pathlib import Path


def sbom_text(image: str, wheels: Iterable[Path]) -> str:
    """The list for ``image`` as JSON."""
    components = sorted((_component(wheel) for wheel in wheels), key=lambda each: each["purl"])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": f"terrace-{image}"}},
        "components": components,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _component(wheel: Path) -> dict[str, Any]:
    about = _metadata(wheel)
    name, version = str(about["Name"]), str(about["Version"])
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    component: dict[str, Any] = {
        "type": "library",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name.lower().replace('_', '-').replace('.', '-')}@{version}",
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    # An expression where the project writes one; the older field is free text.
    expression, text = about["License-Expression"], about["License"]
    if expression:
        component["licenses"] = [{"expression": expression}]
    elif text and "\n" not in text:
        component["licenses"] = [{"license": {"name": text}}]
    return component


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.parser.BytesParser().parsebytes(archive.read(name), headersonly=True)
