"""Cache entries are whole or absent, however a build ends; and a build says how far it is."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from build import workshop
from build.source import REPOSITORY
from build.workshop import BuildError, Workshop, cached
from support.waiting import wait_for

_BUILDER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
sys.path.insert(0, {path!r})
from pathlib import Path
from build.workshop import Workshop, cached

def make(workshop, folder):
    with open({root!r} + "/made", "a") as file:
        file.write("x")
    (folder / "part").write_text("half")
    workshop.run([sys.executable, "-c", {child!r}], "child")
    (folder / "part").write_text("whole")

print(cached(Path({root!r}) / "entry", make))
"""


def _start_builder(root: Path, child: str) -> subprocess.Popen[bytes]:
    code = _BUILDER.format(path=str(REPOSITORY / "runtime_image"), root=str(root), child=child)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def _run(folder: Path, child: str) -> None:
    (folder / "staging").mkdir()
    with (folder / "lock").open("w") as lock:
        place = Workshop(folder / "staging", folder / "build.log", lock.fileno(), every_s=0.05)
        place.run([sys.executable, "-c", child], "building it")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def make(_: Workshop, folder: Path) -> None:
        calls.append(1)
        (folder / "file").write_text("content")

    for _ in range(2):
        entry = cached(tmp_path / "cache" / "entry", make)
        assert (entry / "file").read_text() == "content"
    assert calls == [1]


def test_a_build_that_fails_leaves_no_entry(tmp_path: Path) -> None:
    def make(_: Workshop, folder: Path) -> None:
        (folder / "half").write_text("made")
        raise BuildError("no")

    with pytest.raises(BuildError):
        cached(tmp_path / "entry", make)
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def test_a_builder_that_is_killed_leaves_no_entry_and_the_next_one_makes_it(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    child = (
        f"import os, time\nopen({str(gate)!r}, 'w').write(str(os.getpid()))\nwhile 1: time.sleep(1)"
    )
    builder = _start_builder(tmp_path, child)
    pid = int(wait_for("the build's child", lambda: gate.is_file() and gate.read_text()))
    builder.kill()
    builder.communicate()
    assert not (tmp_path / "entry").exists()
    os.kill(pid, signal.SIGKILL)  # the orphan keeps the lock until it ends
    successor = _start_builder(tmp_path, "pass")
    successor.communicate(timeout=90)
    assert successor.returncode == 0
    assert (tmp_path / "entry/part").read_text() == "whole"


def test_of_two_builders_at_once_one_builds_and_both_get_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    child = f"open({str(gate)!r}).read()"
    builders = [_start_builder(tmp_path, child) for _ in range(2)]
    wait_for("the first to build", (tmp_path / "made").exists)
    gate.write_text("go on")  # returns when the child has opened it
    for builder in builders:
        builder.communicate(timeout=90)
    assert [builder.returncode for builder in builders] == [0, 0]
    assert (tmp_path / "made").read_text() == "x"


def test_of_two_who_find_an_entry_out_of_date_one_makes_it_anew(tmp_path: Path) -> None:
    entry, made, found_old = tmp_path / "entry", [], threading.Barrier(2)
    entry.mkdir()
    (entry / "file").write_text("old")

    def make(_: Workshop, folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("new")

    def ask() -> None:
        looks = iter([lambda: found_old.wait(30)])

        def is_current(folder: Path) -> bool:
            file = folder / "file"
            found = file.is_file() and file.read_text() == "new"
            next(looks, lambda: 0)()
            return found

        cached(entry, make, 0, is_current)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(made) == 1
    assert (entry / "file").read_text() == "new"


def test_what_several_entries_are_made_with_one_builder_has_at_a_time(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "staging").mkdir()
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def is_free() -> bool:
        with (tmp_path / ".store.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    with (tmp_path / "lock").open("w") as own:
        place = Workshop(tmp_path / "staging", tmp_path / "build.log", own.fileno())
        orphan = f"import os; os.fork() or open({str(gate)!r}).read()"
        with place.alone_with(store):
            assert not is_free()
            place.run([sys.executable, "-c", orphan], "what goes on by itself")
    assert not is_free(), "a child of the build goes on"
    gate.write_text("end")
    wait_for("the end of the build's child", is_free)


def test_a_build_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    child = f"print('  [7/213] c++ x.cpp', flush=True); open({str(gate)!r}).read()"
    lines: list[str] = []

    def said() -> list[str]:
        lines.extend(capsys.readouterr().err.splitlines())
        return [line for line in lines if "step 7 of 213" in line]

    def let_go_when_told() -> None:
        wait_for("progress", said)
        gate.write_text("go on")

    watcher = threading.Thread(target=let_go_when_told)
    watcher.start()
    _run(tmp_path, child)
    watcher.join()
    lines.extend(capsys.readouterr().err.splitlines())
    assert any(re.match(r"building it: step 7 of 213, \d:\d\d$", line) for line in lines)
    assert re.match(r"building it: done in \d:\d\d$", lines[-1])


def test_a_failure_shows_the_end_of_the_log_and_where_it_is(tmp_path: Path) -> None:
    child = "import sys\nfor i in range(100): print('line', i)\nsys.exit(3)"
    with pytest.raises(BuildError) as caught:
        _run(tmp_path, child)
    message = str(caught.value)
    assert "building it failed (exit code 3)" in message
    assert "line 99" in message
    assert "line 59\n" not in message
    assert message.endswith(f"The log: {tmp_path / 'build.log'}")


def test_an_interrupt_ends_the_builds_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = (
        "import os, subprocess, sys\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r} + '.part', 'w').write(f'{{os.getpid()}} {{inner.pid}}')\n"
        f"os.rename({str(pids)!r} + '.part', {str(pids)!r})\n"
        "inner.wait()"
    )
    builder = _start_builder(tmp_path, child)
    wait_for("the build's children", pids.exists)
    builder.send_signal(signal.SIGINT)
    builder.communicate(timeout=90)
    family = [int(pid) for pid in pids.read_text().split()]
    assert len(family) == 2
    wait_for("the build's children to end", lambda: not any(map(_is_running, family)))
    assert not (tmp_path / "entry").exists()


def test_an_interruption_before_the_build_is_known_ends_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        """As on a busy machine: the interruption comes before we know the child."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            builds.append(self.pid)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path, "import time; time.sleep(600)")
    finally:
        signal.signal(signal.SIGINT, inherited)
    (build,) = builds
    assert not _is_running(build)


def test_too_little_room_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"MiB free, a build needs .* set XDG_CACHE_HOME"):
        cached(tmp_path / "entry", lambda *_: None, needed_bytes=1 << 60)
    assert not list(tmp_path.iterdir())


def test_the_cache_follows_the_users_setting() -> None:
    assert workshop.cache_root({"XDG_CACHE_HOME": "/c"}) == Path("/c/terrace")
    assert workshop.cache_root({}) == Path.home() / ".cache/terrace"


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # an orphan's zombie waits for whoever reaps it here
