"""Settings of all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = ["unit_fixtures"]

# A test fails for what it computes, never for the time that a busy machine takes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
