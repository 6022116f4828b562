"""Lists what the Python distribution depends on as CycloneDX 1.6, from uv.lock.

Owns: which packages a user of the wheel can get (all extras, no development tools), in the versions
that our tests ran with, and which needs which. Does not own: the lists of images (``sbom.py``),
which name the very files in them. No date and no serial number: one lock gives one list.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Package = dict[str, Any]


def distribution_sbom(lock: str, name: str, files: Iterable[Path]) -> str:
    """The list of ``name`` as JSON. ``lock``: text of uv.lock; ``files``: the built archives."""
    packages = tomllib.loads(lock)["package"]
    own = next(package for package in packages if package["name"] == name)
    required = _closure(packages, own["dependencies"])
    optional = _closure(packages, _all_dependencies(own))
    refs = {_ref(package): package for package in (own, *optional)}
    always = {_ref(package) for package in required}
    components = [
        _component(refs[ref], is_required=ref in always) for ref in sorted(refs) if ref != _ref(own)
    ]
    root = _component(own, is_required=True)
    root |= {"licenses": [{"license": {"id": "Apache-2.0"}}], "externalReferences": _built(files)}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(map(_ref, _closure_step(packages, refs[ref])))}
            for ref in sorted(refs)
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _closure(packages: list[Package], first: Iterable[Mapping[str, Any]]) -> list[Package]:
    """All packages that ``first`` lead to, whatever the platform: markers are not evaluated."""
    found: dict[str, Package] = {}
    waiting = list(first)
    while waiting:
        for package in _matching(packages, waiting.pop()):
            if _ref(package) not in found:
                found[_ref(package)] = package
                waiting += _all_dependencies(package)
    return list(found.values())


def _closure_step(packages: list[Package], package: Package) -> list[Package]:
    direct = _all_dependencies(package)
    return list({_ref(p): p for each in direct for p in _matching(packages, each)}.values())


def _all_dependencies(package: Package) -> list[Mapping[str, Any]]:
    """uv.lock keeps of a package's extras only those that somebody asked for."""
    extras = package.get("optional-dependencies", {}).values()
    return [*package.get("dependencies", []), *(each for extra in extras for each in extra)]


def _matching(packages: list[Package], wanted: Mapping[str, Any]) -> list[Package]:
    version = wanted.get("version")
    return [
        package
        for package in packages
        if package["name"] == wanted["name"] and version in {None, package["version"]}
    ]


def _ref(package: Package) -> str:
    return f"pkg:pypi/{package['name']}@{package['version']}"


def _component(package: Package, *, is_required: bool) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": _ref(package),
        "name": package["name"],
        "version": package["version"],
        "scope": "required" if is_required else "optional",
        "purl": _ref(package),
    }


def _built(files: Iterable[Path]) -> list[dict[str, Any]]:
    return [
        {
            "type": "distribution",
            "url": file.name,
            "hashes": [
                {"alg": "SHA-256", "content": hashlib.sha256(file.read_bytes()).hexdigest()}
            ],
        }
        for file in sorted(files)
    ]
