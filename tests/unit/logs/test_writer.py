"""Lines come out whole and in order, and a reader that stops holds nobody up."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

from terrace_runtime.logs.writer import QUEUE_BYTES, LineWriter

if TYPE_CHECKING:
    from pathlib import Path


def note(count: int) -> bytes:
    return b"dropped %d\n" % count


def test_a_pipe_with_room_has_the_line_at_once() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb", buffering=0) as reader:
        writer = LineWriter(theirs, note)
        writer.write(b"one\n")
        assert reader.read(100) == b"one\n"
        os.close(theirs)


def test_a_reader_that_stops_holds_nobody_up_and_gaps_are_told() -> None:
    ours, theirs = os.pipe()
    line = b"%07d" + b"x" * 992 + b"\n"
    count = 3 * QUEUE_BYTES // 1000
    with os.fdopen(ours, "rb", buffering=0) as reader:
        writer = LineWriter(theirs, note)
        # Nobody reads: a writer that waited would never get to the end of this loop.
        for number in range(count):
            writer.write(line % number)
        assert not writer.flush(0.01)
        got = bytearray()
        done = threading.Event()

        def read_all() -> None:
            while data := reader.read(65536):
                got.extend(data)
            done.set()

        threading.Thread(target=read_all, daemon=True).start()
        assert writer.flush(60)
        writer.write(b"last\n")
        assert writer.flush(60)
        os.close(theirs)
        assert done.wait(60)
    lines = bytes(got).splitlines()
    numbers = [int(each[:7]) for each in lines if each[:7].isdigit()]
    dropped = [int(each.split()[1]) for each in lines if each.startswith(b"dropped")]
    assert numbers == sorted(numbers)
    assert len(numbers) + sum(dropped) == count
    assert len(dropped) == 1
    assert lines[-1] == b"last"


def test_lines_longer_than_a_pipe_takes_at_once_come_out_whole() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reader:
        writer = LineWriter(theirs, note)
        lines = [bytes([65 + number]) * 15_000 + b"\n" for number in range(20)]
        for line in lines:
            writer.write(line)
        assert [reader.readline() for _ in lines] == lines
        assert writer.flush(60)
        os.close(theirs)


def test_many_threads_never_mix_their_lines() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reader:
        writer = LineWriter(theirs, note)

        def write(name: bytes) -> None:
            for _ in range(50):
                writer.write(name * 3000 + b"\n")

        threads = [threading.Thread(target=write, args=(bytes([97 + at]),)) for at in range(4)]
        for thread in threads:
            thread.start()
        found = [reader.readline().rstrip() for _ in range(200)]
        for thread in threads:
            thread.join()
        assert writer.flush(60)
        os.close(theirs)
    assert all(line == line[:1] * 3000 for line in found)


def test_a_file_and_a_socket_take_lines_too(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        LineWriter(file.fileno(), note).write(b"one\n")
        assert (tmp_path / "log").read_bytes() == b"one\n"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        LineWriter(theirs.fileno(), note).write(b"two\n")
        assert ours.recv(100) == b"two\n"


def test_a_reader_that_is_gone_is_no_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    writer = LineWriter(theirs, note)
    writer.write(b"one\n")
    writer.write(b"x" * 20_000 + b"\n")
    assert writer.flush(60)
    os.close(theirs)


def test_a_full_disk_is_no_error() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(fd, note)
    writer.write(b"one\n")
    assert writer.flush(60)
    os.close(fd)
