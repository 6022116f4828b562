"""kubectl and helm against one cluster.

Owns: their environment (own kubeconfig, own caches), running them, their errors. Does not own:
what is installed with them (the charts, the demo, the tests).
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

from terrace.local.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from terrace.local.state import ClusterFolder


class Tools:
    """Runs kubectl and helm as the admin of one cluster."""

    def __init__(self, folder: ClusterFolder, binaries: Mapping[str, Path]) -> None:
        self._folder = folder
        self._binaries = binaries

    def kubectl(self, *args: str, stdin: str | None = None, timeout_s: float = 60.0) -> str:
        """What kubectl prints."""
        return self._run("kubectl", args, stdin, timeout_s)

    def kubectl_command(self, *args: str) -> list[str]:
        """The argv with which any process, whatever its environment, talks to this cluster."""
        return [
            str(self._binaries["kubectl"]),
            f"--kubeconfig={self._folder.kubeconfig}",
            f"--cache-dir={self._folder.tools / 'kubectl'}",
            *args,
        ]

    def helm(self, *args: str, stdin: str | None = None, timeout_s: float = 120.0) -> str:
        """What helm prints."""
        return self._run("helm", args, stdin, timeout_s)

    def apply(self, path: Path) -> str:
        """``kubectl apply`` of a file, or of a folder of manifests."""
        return self.kubectl("apply", "-f", str(path))

    def install_chart(
        self,
        chart: Path,
        values: Mapping[str, Any],
        *,
        release: str = "terrace",
        namespace: str = "terrace-system",
    ) -> str:
        """Install or upgrade a chart into a namespace of its own, made where it is missing."""
        return self.helm(
            "upgrade", release, str(chart), "--install", "--namespace", namespace,
            "--create-namespace", "--values", "-",
            stdin=json.dumps(values),
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Our environment, turned to this cluster, with caches that no other cluster shares."""
        tools = self._folder.tools
        return {
            **os.environ,
            "KUBECONFIG": str(self._folder.kubeconfig),
            "KUBECACHEDIR": str(tools / "kubectl"),
            "HELM_CACHE_HOME": str(tools / "helm" / "cache"),
            "HELM_CONFIG_HOME": str(tools / "helm" / "config"),
            "HELM_DATA_HOME": str(tools / "helm" / "data"),
        }

    def _run(self, tool: str, args: tuple[str, ...], stdin: str | None, timeout_s: float) -> str:
        argv = [str(self._binaries[tool]), *args]
        shown = [tool, *args]
        try:
            done = subprocess.run(  # noqa: S603 - our own binary, no shell
                argv, input=stdin, env=self.environment(), capture_output=True, text=True,
                timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = (error.stderr or b"").decode(errors="replace")
            raise CommandError(shown, -1, f"no answer in {timeout_s:.0f} s. {said}") from error
        if done.returncode != 0:
            raise CommandError(shown, done.returncode, done.stderr)
        return done.stdout
