"""For all tests: the same examples on every run, and no verdict that depends on how busy the machine is."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A deadline per example would make a busy machine fail a right program.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("quick", settings.get_profile("steady"), max_examples=5)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
