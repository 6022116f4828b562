"""Pages of ``docs/`` that are made from code: written, or compared with what was written.

Owns: the command line of such a page and its file. Does not own: what stands on it
(``disruption.py``, ``accelerator_page.py``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def keep_page(module: str, usual: str, text: str, arguments: Sequence[str] | None) -> int:
    """Write ``text`` or, with ``--check``, say whether the file differs. Returns the exit status.

    ``module`` makes the page; ``usual`` is where it is in the repository.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description="Write the page or, with --check, say whether it differs.",
    )
    parser.add_argument("page", type=Path, help=f"where the page is, usually {usual}")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(arguments)
    if options.page.exists() and options.page.read_text() == text:
        return 0
    if not options.check:
        options.page.write_text(text)
        return 0
    sys.stderr.write(f"{options.page} is stale: run `python -m {module}` on it\n")
    return 1
