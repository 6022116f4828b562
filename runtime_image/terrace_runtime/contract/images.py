"""Bounds of images in prompts that a plan counts memory for, so that both sides mean the same.

Owns: the numbers alone. Does not own: keeping them (``terrace_runtime.api``, ``engine``), what a
plan makes of them (``terrace.planner.projector``).
"""

from __future__ import annotations

MAX_IMAGE_PIXELS = 16 * 2**20
"""Most pixels of one image, width times height: more is refused before it is decoded."""
MAX_DECODING = 1
"""Images that are decoded at the same time in a replica; more wait."""
IMAGE_ROWS_BYTES = 64 * 2**20
"""Most bytes of encoded images (float32 rows) that a replica keeps for requests to come."""
