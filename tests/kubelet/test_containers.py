"""How our containers run: without rights, on a root that nobody can write to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.chain import processes_of

if TYPE_CHECKING:
    import psutil

    from support.real_chain import RealChain

PROGRAMS = {"operator": "-m terrace.controller", "gateway": "-m terrace.gateway"}
pytestmark = pytest.mark.timeout(600)


def main_process(chain: RealChain, name: str) -> psutil.Process:
    """The first process of the container that runs ``name``."""
    if name == "runtime":
        words, pod = "terrace_runtime serve", chain.pods("demo")[0]
    else:
        words, pod = PROGRAMS[name], chain.program(name)
    (process,) = processes_of(words, pod["status"]["podIP"])
    return process


@pytest.mark.parametrize("name", ["operator", "gateway", "runtime"])
def test_a_container_has_no_rights_and_a_root_to_read_alone(chain: RealChain, name: str) -> None:
    proc = Path("/proc") / str(main_process(chain, name).pid)
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["65532"] * 4
    assert status["Gid"].split() == ["65532"] * 4
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2", "the runtime's default profile filters system calls"
    mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    (root,) = [fields for fields in mounts if fields[4] == "/"]
    assert "ro" in root[5].split(",")


def test_the_replica_computes_with_one_set_of_kernels(chain: RealChain) -> None:
    server = main_process(chain, "runtime")
    (engine,) = [c for c in server.children() if "terrace_runtime engine" in " ".join(c.cmdline())]
    maps = Path(f"/proc/{engine.pid}/maps").read_text()
    loaded = {line.rsplit("/", 1)[-1] for line in maps.splitlines() if "libggml-cpu-" in line}
    assert len(loaded) == 1
