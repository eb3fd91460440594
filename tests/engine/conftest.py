"""Hypothesis' profiles: quick while editing and in CI, ``HYPOTHESIS_PROFILE=thorough`` before a release."""

import os

from hypothesis import settings

# No deadline: the machines that run this share their cores with benchmarks.
settings.register_profile("quick", max_examples=60, deadline=None, print_blob=True)
settings.register_profile("thorough", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
