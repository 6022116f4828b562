"""Settings of all tests: in CI, property tests draw the same examples every time.

A run that fails must fail for the change under test. New examples are drawn at every run elsewhere,
and a counterexample found there becomes an ``@example`` of its test.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
