"""The cluster's folder, its state file and its lock."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from terrace.local.cluster import LocalCluster
from terrace.local.errors import ComponentError, LocalClusterError
from terrace.local.pods import scratch
from terrace.local.shutdown import delete
from terrace.local.state import (
    ClusterFolder,
    ClusterOptions,
    ClusterState,
    ProcessRecord,
    cluster_path,
    forget,
    known_clusters,
    register,
    write_private,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def state(name: str = "x") -> ClusterState:
    record = ProcessRecord(pid=7, start_ticks=8, boot_id="b")
    return ClusterState(
        name=name,
        options=ClusterOptions(nodes=0, extra_args={"etcd": ("--a",)}),
        block=20,
        ports={"apiserver": 1},
        processes={"etcd": record},
    )


def test_the_state_survives_a_round_trip(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "c")
    folder.make()
    folder.save(state())
    assert folder.load() == state()
    assert folder.state_file.stat().st_mode & 0o777 == 0o600
    assert folder.root.stat().st_mode & 0o777 == 0o700


def test_no_state_file_means_no_cluster(tmp_path: Path) -> None:
    assert ClusterFolder(tmp_path).load() is None


@pytest.mark.parametrize("text", ["", "{", '{"version":"v2"}', '{"surprise":1}'])
def test_an_unreadable_state_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    folder = ClusterFolder(tmp_path)
    folder.state_file.write_text(text)
    with pytest.raises(LocalClusterError, match=r"state\.json cannot be read .* delete the folder"):
        folder.load()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")
    with pytest.raises(TypeError):
        write_private(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a/b", "..", "a" * 41, "a b"])
def test_a_name_that_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(LocalClusterError, match="is no cluster name"):
        cluster_path(name)


def test_a_folder_with_other_files_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("my work")
    with pytest.raises(LocalClusterError, match=r"holds no cluster \(found thesis\.txt\)"):
        ClusterFolder(tmp_path).check()


def test_a_refused_up_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("my work")
    with pytest.raises(LocalClusterError, match="holds no cluster"):
        LocalCluster("x", directory=tmp_path).up()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]
    assert known_clusters() == []


def test_an_up_without_programs_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match="is no folder"):
        LocalCluster("x", directory=tmp_path / "c", bin_dir=tmp_path / "none").up()
    assert list(tmp_path.iterdir()) == []


def test_deleting_a_cluster_keeps_files_that_are_not_its_own(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "c")
    folder.make()
    folder.save(state())
    (folder.root / "note.txt").write_text("mine")
    delete(folder, "x")
    assert [path.name for path in folder.root.iterdir()] == ["note.txt"]


def test_a_deleted_cluster_leaves_no_folder(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "c")
    with folder.locked():
        folder.make()
        folder.save(state())
        delete(folder, "x")
    assert not folder.root.exists()


def test_a_cluster_in_a_folder_of_its_own_is_found_by_name(tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    folder = ClusterFolder(root)
    folder.make()
    folder.save(state())
    register("x", root)
    assert cluster_path("x") == root
    assert known_clusters() == ["x"]
    forget("x", root)
    assert known_clusters() == []


def test_two_clusters_cannot_have_one_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = ClusterFolder(tmp_path / name)
        folder.make()
        folder.save(state())
    register("x", tmp_path / "one")
    with pytest.raises(LocalClusterError, match=r"exists in .*/one; choose another --name"):
        register("x", tmp_path / "two")


def test_the_name_of_a_vanished_cluster_is_free(tmp_path: Path) -> None:
    register("x", tmp_path / "gone")
    register("x", tmp_path / "new")
    assert cluster_path("x") == tmp_path / "new"


def test_a_waiting_command_takes_the_lock_anew_when_the_folder_was_deleted(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "c")
    seen: list[bool] = []

    def second() -> None:
        with folder.locked():
            seen.append(folder.lock_file.exists())

    with folder.locked():
        waiting = threading.Thread(target=second)
        waiting.start()
        folder.make()
        folder.save(state())
        delete(folder, "x")
    waiting.join(timeout=60)
    assert seen == [True]


def test_a_folder_that_goes_while_it_is_locked_is_made_again(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "c")

    def come_and_go() -> None:
        for _ in range(500):
            with folder.locked():
                folder.remove_if_empty()

    with ThreadPoolExecutor(2) as pool:
        for running in [pool.submit(come_and_go) for _ in range(2)]:
            running.result()
    assert not folder.root.exists()


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("mine")
    with pytest.raises(FileExistsError), ClusterFolder(tmp_path / "c").locked():
        pass


def test_an_error_of_a_component_ends_with_the_last_lines_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    text = str(ComponentError("etcd", "ended", log))
    assert text.startswith(f"etcd ended. Log: {log}; its last lines:\nline 88\n")
    assert text.endswith("line 99")
    assert str(ComponentError("etcd", "ended", tmp_path / "none")).endswith("none (empty)")


def test_a_cluster_that_goes_down_takes_its_pods_temporary_folders_along(tmp_path: Path) -> None:
    cluster = LocalCluster("x", directory=tmp_path / "c")
    cluster.folder.make()
    cluster.folder.save(state())
    root = cluster.folder.root / "node/pods/uid/containers/main/root"
    scratch.make(root)
    temporary = root / "tmp"
    assert temporary.is_dir()
    real = temporary.resolve()
    assert cluster.down()
    assert not real.exists()
