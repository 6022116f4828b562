"""Prints every device that is seen, one JSON object each, or one line that there is none."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from terrace_runtime.device_telemetry.sample import ReadError
from terrace_runtime.device_telemetry.sampler import open_readers


def main() -> int:
    """Exit status: 0 also without a device, 1 when a driver fails."""
    try:
        samples = [sample for reader in open_readers() for sample in reader.read()]
    except ReadError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for sample in samples:
        sys.stdout.write(f"{json.dumps(asdict(sample))}\n")
    if not samples:
        sys.stderr.write("no device\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
