"""`pytest --cpu-times`: CPU seconds of every test, with its share of fixtures and processes that it started.

Wall time says little on cores that something else uses too. The ceilings are for `make test` on one core of 2026; a
technique that passes its own is looked at before another one is added.
"""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

CEILINGS = {
    "pretrain": 120,
    "prompt_tune": 60,
    **dict.fromkeys(("prune_blocks", "prune_tokens"), 150),
    **{"cpr_mine": 120, "continual": 115, "detect": 110},
    "": 400,
}
"""CPU seconds of the tests of a technique; of all the others."""
PARTS = {
    "pretrain": ("pretrain", "invariance", "schedule_search"),
    "cpr_mine": ("cpr", "test_clip_", "test_video_"),
    "detect": ("detect", "box_", "coco_", "road_scenes"),
}
"""What the names of a technique's test files have, where it is not the technique's own name."""
SHOWN = 25
KEY = "cpu_seconds"


def _spent() -> float:
    return sum(os.times()[:4])  # this process and those that it waited for, user and system


class CpuTimes:
    """Plug-in; on worker processes it adds a property to the reports, where they meet it adds up."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """What was spent since the last report of this process."""
        report = yield
        now = _spent()
        report.user_properties = [*report.user_properties, (KEY, now - self._last)]
        self._last = now
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        """A test begins."""
        self._last = _spent()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A part of a test ended, here or on a worker."""
        self.seconds[report.nodeid] += dict(report.user_properties).get(KEY, 0.0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tests, files and techniques, the dearest first."""
        files, groups = Counter(), Counter(dict.fromkeys(CEILINGS, 0.0))
        for name, seconds in self.seconds.items():
            file = name.partition("::")[0]
            files[file] += seconds
            groups[technique_of(file)] += seconds
        for title, found in (("tests", self.seconds), ("files", files)):
            terminalreporter.section(f"CPU seconds: {title}")
            for name, seconds in found.most_common(SHOWN):
                terminalreporter.write_line(f"{seconds:8.2f} {name}")
        terminalreporter.section(f"CPU seconds: {sum(groups.values()):.0f}")
        for name, seconds in groups.most_common():
            over = "  OVER" if seconds > CEILINGS[name] else ""
            terminalreporter.write_line(f"{seconds:8.2f} of {CEILINGS[name]} {name or 'everything else'}{over}")


def technique_of(file: str) -> str:
    """The technique that a test file is of; empty: of none, or of all."""
    return next((name for name in CEILINGS if name and any(part in file for part in PARTS.get(name, (name,)))), "")
