"""The volumes of a pod as folders, and the folder that stands for a container's root.

Owns: filling and refreshing volumes (emptyDir, hostPath, claim, configMap, secret, downwardAPI,
projected) and laying mounts out as links below TERRACE_POD_ROOT. Does not own: where data come
from (``ports.Sources``). There is no mount namespace: a program finds ``/models`` under
``$TERRACE_POD_ROOT/models``, and ``readOnly`` is not enforced. Next: ``pod.py``.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from terrace.local.pods import scratch
from terrace.local.pods.downward import Facts, field_value, resource_value
from terrace.local.pods.environment import expand
from terrace.local.pods.files import File, is_inside, publish
from terrace.local.pods.ports import Data, NotReadyError, Sources, Token
from terrace.local.pods.spec import Container, InvalidPodError, Json, Mount, Pod

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN_SECONDS = 3600
_TOKEN_RENEW_AT = 0.8
"""kubelet renews a token once 80 % of its life has passed."""


class Volumes:
    """The volumes of one pod, below ``folder``."""

    def __init__(self, facts: Facts, folder: Path, sources: Sources) -> None:
        self._facts = facts
        self._folder = folder
        self._sources = sources
        self._tokens: dict[tuple[str, str], tuple[Token, float]] = {}
        self._paths: dict[str, Path] = {}

    @property
    def paths(self) -> Mapping[str, Path]:
        """Volume -> its folder, once prepared."""
        return self._paths

    async def prepare(self) -> None:
        """Makes every volume ready; raises NotReadyError or InvalidPodError, names the volume."""
        for name, volume in self._facts.pod.volumes.items():
            try:
                self._paths[name] = await self._prepare(name, volume)
            except NotReadyError as error:
                raise NotReadyError(
                    f'MountVolume.SetUp failed for volume "{name}": {error}'
                ) from error

    async def refresh(self) -> None:
        """Brings configMap, secret, downwardAPI and projected volumes up to date.

        A source that vanished keeps its last content, as with kubelet.
        """
        for name, volume in self._facts.pod.volumes.items():
            projection = _projection(volume)
            if projection is not None and name in self._paths:
                try:
                    files = await self._project(*projection)
                except NotReadyError:
                    continue
                publish(self._paths[name], files)

    async def _prepare(self, name: str, volume: Json) -> Path:
        folder = self._folder / name
        projection = _projection(volume)
        if projection is not None:
            publish(folder, await self._project(*projection))
        elif "emptyDir" in volume:
            await asyncio.to_thread(_empty_dir, folder)
        elif "hostPath" in volume:
            return _host_path(volume["hostPath"])
        elif "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            return await self._sources.claim(self._facts.pod.namespace, claim)
        elif "ephemeral" in volume:
            # The controller-manager makes this claim for the pod, under this name.
            claim = f"{self._facts.pod.name}-{name}"
            return await self._sources.claim(self._facts.pod.namespace, claim)
        else:
            kind = next((key for key in volume if key != "name"), "nothing")
            raise InvalidPodError(
                f'volume "{name}": the host node has no {kind} volumes; it knows emptyDir, '
                "hostPath, persistentVolumeClaim, configMap, secret, downwardAPI and projected"
            )
        return folder

    async def _project(self, parts: list[Json], default_mode: int) -> dict[str, File]:
        files: dict[str, File] = {}
        for part in parts:
            files |= await self._part(part, default_mode)
        return files

    async def _part(self, part: Json, mode: int) -> dict[str, File]:
        namespace = self._facts.pod.namespace
        if "configMap" in part:
            entry = part["configMap"]
            found = await self._sources.config_map(namespace, entry.get("name", ""))
            return _keys(found, entry, f'configmap "{entry.get("name")}"', mode)
        if "secret" in part:
            entry = part["secret"]
            found = await self._sources.secret(namespace, entry.get("name", ""))
            return _keys(found, entry, f'secret "{entry.get("name")}"', mode)
        if "downwardAPI" in part:
            return {
                item["path"]: File(self._downward(item).encode(), item.get("mode") or mode)
                for item in part["downwardAPI"].get("items") or ()
            }
        if "serviceAccountToken" in part:
            entry = part["serviceAccountToken"]
            return {entry["path"]: File((await self._token(entry)).encode(), 0o600)}
        raise InvalidPodError(f"projected source {', '.join(part)}: not known on the host node")

    def _downward(self, item: Json) -> str:
        if "fieldRef" in item:
            return field_value(item["fieldRef"]["fieldPath"], self._facts)
        reference = item["resourceFieldRef"]
        for container in self._facts.pod.all_containers:
            if container.name == reference.get("containerName"):
                return resource_value(reference, container, self._facts)
        raise InvalidPodError("resourceFieldRef.containerName names no container of the pod")

    async def _token(self, entry: Json) -> str:
        audience = entry.get("audience") or ""
        seconds = int(entry.get("expirationSeconds") or _TOKEN_SECONDS)
        held = self._tokens.get((entry["path"], audience))
        if held is None or time.time() >= held[1]:
            asked = time.time()
            token = await self._sources.token(self._facts.pod, audience, seconds)
            renew_at = asked + _TOKEN_RENEW_AT * (token.expires_at - asked)
            held = (token, renew_at)
            self._tokens[entry["path"], audience] = held
        return held[0].value


def lay_out(
    root: Path, pod: Pod, container: Container, paths: Mapping[str, Path], env: Mapping[str, str]
) -> None:
    """Makes ``root`` show the container's mounts, an empty termination log and a /tmp.

    Raises:
        InvalidPodError: a mount names no volume, leaves it, or lies in another volume's mount.
    """
    scratch.remove(root)
    shutil.rmtree(root, ignore_errors=True)
    scratch.make(root)
    for mount in sorted(container.mounts, key=lambda mount: mount.path.count("/")):
        if mount.volume not in paths:
            raise InvalidPodError(f"volumeMounts: there is no volume {mount.volume!r}")
        place = root / mount.path.strip("/")
        if not is_inside(mount.path.strip("/")):
            raise InvalidPodError(f"volumeMounts: mountPath {mount.path!r} is not a folder")
        _check_nesting(root, place, pod, container, mount)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        elif place.is_dir():
            place.rmdir()
        place.symlink_to(_mounted(paths[mount.volume], mount, env))
    log = root / container.message_path.lstrip("/")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")


def _mounted(volume: Path, mount: Mount, env: Mapping[str, str]) -> Path:
    sub_path = mount.sub_path or expand(mount.sub_path_expression, env)
    if not sub_path:
        return volume
    target = volume / sub_path
    if not is_inside(sub_path) or not target.resolve().is_relative_to(volume.resolve()):
        raise InvalidPodError(f"volumeMounts: subPath {sub_path!r} leaves volume {mount.volume!r}")
    if not target.exists():
        target.mkdir(parents=True)
    return target


def _check_nesting(root: Path, place: Path, pod: Pod, container: Container, mount: Mount) -> None:
    """A mount inside another would be a link inside that volume, which others may share."""
    if place.parent.resolve().is_relative_to(root.resolve()):
        return
    above = next(
        other
        for other in container.mounts
        if other is not mount and mount.path.startswith(other.path.rstrip("/") + "/")
    )
    if "emptyDir" not in pod.volumes[above.volume]:
        raise InvalidPodError(
            f"volumeMounts: {mount.path} lies inside {above.path}; without a mount namespace the "
            "host node can nest mounts in emptyDir volumes only"
        )


def _projection(volume: Json) -> tuple[list[Json], int] | None:
    if "projected" in volume:
        entry = volume["projected"]
        return list(entry.get("sources") or ()), entry.get("defaultMode") or 0o644
    if "configMap" in volume:
        return [volume], volume["configMap"].get("defaultMode") or 0o644
    if "secret" in volume:
        entry = {**volume["secret"], "name": volume["secret"].get("secretName")}
        return [{"secret": entry}], entry.get("defaultMode") or 0o644
    if "downwardAPI" in volume:
        return [volume], volume["downwardAPI"].get("defaultMode") or 0o644
    return None


def _keys(found: Data | None, entry: Json, what: str, mode: int) -> dict[str, File]:
    if found is None:
        if entry.get("optional"):
            return {}
        raise NotReadyError(f"{what} not found")
    items = entry.get("items")
    if not items:
        return {key: File(content, mode) for key, content in found.items()}
    files = {}
    for item in items:
        if item["key"] in found:
            files[item["path"]] = File(found[item["key"]], item.get("mode") or mode)
        elif not entry.get("optional"):
            raise NotReadyError(f"{what} has no key {item['key']!r}")
    return files


def _empty_dir(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)


def _host_path(entry: Json) -> Path:
    path, kind = Path(entry["path"]), entry.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate" and not path.exists():
        path.touch(mode=0o644)
    elif kind.startswith("Directory") and not path.is_dir():
        raise NotReadyError(f"hostPath {path} is not a directory")
    elif kind.startswith("File") and not path.is_file():
        raise NotReadyError(f"hostPath {path} is not a file")
    elif not path.exists():
        raise NotReadyError(f"hostPath {path} does not exist")
    return path
