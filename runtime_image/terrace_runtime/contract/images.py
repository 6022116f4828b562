"""Bounds of images in prompts that a plan counts memory for, so that both sides mean the same.

Owns: the numbers alone. Does not own: keeping them (``terrace_runtime.api``, ``engine``), what a
plan makes of them (``terrace.planner.projector``).
"""

from __future__ import annotations

MAX_IMAGES = 16
"""Most images of one request."""
MAX_IMAGE_BYTES = 10 * 2**20
"""Most bytes of one image as a file: what base64 decodes to."""
MAX_REQUEST_IMAGE_BYTES = 16 * 2**20
"""The same of all images of a request together."""
MAX_IMAGE_PIXELS = 16 * 2**20
"""Most pixels of one image, width times height: more is refused before it is decoded."""
MAX_DECODING = 1
"""Images that are decoded at the same time in a replica; more wait."""
IMAGE_SIDE = 2048
"""Pixels: a larger image is scaled to fit a square of this side before anything else sees it."""
MAX_REQUEST_PIXELS = 16 * 2**20
"""Most pixels of a request's images together, after that; three bytes each."""
HELD_PIXEL_BYTES = 128 * 2**20
"""Most bytes of pixels that the requests under way in a replica hold together; more get 429."""
IMAGE_ROWS_BYTES = 64 * 2**20
"""Most bytes of encoded images (float32 rows) that a replica keeps for requests to come."""
IMAGE_ENCODE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds; upper ends of the counts in ImageReport, the last count is of those beyond."""
