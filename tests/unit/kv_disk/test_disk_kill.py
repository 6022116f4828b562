"""A process killed while it spills leaves nothing that is served wrong, and a folder that works."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from support.kv_disk import block_of, folder_bytes, key_of, open_tier, read
from support.kv_disk_child import CHILD_BLOCK_BYTES, CHILD_LIMIT_BYTES, NUM_NUMBERS

TESTS = Path(__file__).parents[2]
ROUNDS = 6


def spill_and_kill(folder: Path, seed: int, num_groups: int) -> int:
    """How many blocks a child said it wrote before it was killed, in the midst of the next."""
    with subprocess.Popen(
        [sys.executable, "-m", "support.kv_disk_child", str(folder), str(seed)],
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'runtime_image'}"},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        num_written = sum(int(child.stdout.readline()) for _ in range(num_groups))
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    return num_written


def test_kill_while_spilling_serves_nothing_wrong(tmp_path: Path) -> None:
    choose = random.Random(4)
    for seed in range(ROUNDS):
        num_written = spill_and_kill(tmp_path, seed, choose.randrange(1, 60))
        assert num_written > 0
        assert folder_bytes(tmp_path) <= CHILD_LIMIT_BYTES
        tier = open_tier(tmp_path, block_bytes=CHILD_BLOCK_BYTES, limit_bytes=CHILD_LIMIT_BYTES)
        assert tier.problem == ""
        there = [number for number in range(NUM_NUMBERS) if tier.has(key_of(number))]
        assert len(there) == len(tier) >= min(num_written, 50)
        for number in there:
            data = read(tier, number, CHILD_BLOCK_BYTES)
            assert data == block_of(number % 50, CHILD_BLOCK_BYTES).tobytes()
        # A process that dies loses nothing that the kernel took: at most its last files were torn.
        assert tier.stats().rejected <= 2
        tier.close()
