"""A process that spills without end, to be killed: ``python -m support.kv_disk_child FOLDER SEED``.

Prints a line for each group that is on disk. Blocks follow from their numbers, so that whoever
comes after can tell a right block from a wrong one.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from support.kv_disk import Answers, block_of, key_of, open_tier

NUM_NUMBERS = 5000
CHILD_BLOCK_BYTES = 40_000
CHILD_LIMIT_BYTES = 100 * CHILD_BLOCK_BYTES


def main(folder: Path, seed: int) -> None:
    choose = random.Random(seed)
    blocks = [block_of(number, CHILD_BLOCK_BYTES) for number in range(50)]
    tier = open_tier(folder, block_bytes=CHILD_BLOCK_BYTES, limit_bytes=CHILD_LIMIT_BYTES)
    while True:
        answers = Answers()
        numbers = choose.sample(range(NUM_NUMBERS), 10)
        accepted = [
            tier.write(key_of(number), blocks[number % len(blocks)], answers, choose.randrange(3))
            for number in numbers
        ]
        print(sum(answers.wait(sum(accepted))), flush=True)  # noqa: T201 - the parent counts


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
