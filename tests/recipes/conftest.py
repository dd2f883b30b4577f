"""Recipes run with few passes of what is timed, and without torch.export programs."""

import pytest

from tests.engines.conftest import little_beside, no_programs


@pytest.fixture(autouse=True)
def _little_beside(monkeypatch):
    little_beside(monkeypatch)
    no_programs(monkeypatch)
