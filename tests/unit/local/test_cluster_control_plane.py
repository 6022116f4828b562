"""The command lines of the control plane, against a golden file and fact by fact."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from terrace.local.addresses import AddressBlock
from terrace.local.control_plane import PORTS, Layout, command_line, components
from terrace.local.state import ClusterFolder, ClusterOptions

GOLDEN = Path(__file__).parent / "golden" / "cluster_command_lines.txt"


def layout(options: ClusterOptions | None = None) -> Layout:
    return Layout(
        folder=ClusterFolder(Path("/cluster")),
        block=AddressBlock(77),
        ports={name: 1000 + index for index, name in enumerate(PORTS)},
        options=options or ClusterOptions(),
        binaries={name: Path("/bin") / name for name in components(ClusterOptions(nodes=0))},
    )


def rendered(whole: Layout) -> str:
    lines = []
    for name in components(whole.options):
        argv = command_line(name, whole)
        lines += [f"[{name}]", *argv, ""]
    return "\n".join(lines).replace(sys.executable, "PYTHON")


def test_the_command_lines_are_those_of_the_golden_file() -> None:
    """UPDATE_GOLDEN=1 writes it anew; read the difference before you commit it."""
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(rendered(layout()))
    assert rendered(layout()) == GOLDEN.read_text()


def test_without_a_node_no_node_agent_starts() -> None:
    assert "node" in components(ClusterOptions())
    assert "node" not in components(ClusterOptions(nodes=0))


def test_extra_arguments_come_last_so_that_they_win() -> None:
    options = ClusterOptions(extra_args={"kube-apiserver": ("--v=4",)})
    assert command_line("kube-apiserver", layout(options))[-1] == "--v=4"
    assert "--v=4" not in command_line("kube-scheduler", layout(options))


def test_every_kubernetes_component_emulates_the_older_version() -> None:
    whole = layout(ClusterOptions(emulated_version="1.34"))
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        assert "--emulated-version=1.34" in command_line(name, whole)


def test_only_an_audited_cluster_writes_an_audit_log() -> None:
    flag = "--audit-log-path=/cluster/audit/audit.log"
    assert flag not in command_line("kube-apiserver", layout())
    assert flag in command_line("kube-apiserver", layout(ClusterOptions(audit=True)))


def test_only_a_test_cluster_skips_fsync() -> None:
    assert "--unsafe-no-fsync" not in command_line("etcd", layout())
    assert "--unsafe-no-fsync" in command_line("etcd", layout(ClusterOptions(fsync=False)))


def test_the_image_map_reaches_the_node() -> None:
    argv = command_line("node", layout(ClusterOptions(images="/images.json")))
    assert "--images=/images.json" in argv
