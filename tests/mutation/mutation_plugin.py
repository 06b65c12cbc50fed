"""Plugin of pytest for mutation testing: chooses and orders the tests, and reports what they took.

MUTATION_TESTS, a JSON list of test ids, says which tests to run, in this order (all where it is missing).
MUTATION_REPORT names a file for {"seconds": {test id: s}, "failed": [test ids]}.
"""

import json
import os
from pathlib import Path

import pytest

seconds, failed = {}, []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    if "MUTATION_TESTS" in os.environ:
        place = {test: i for i, test in enumerate(json.loads(os.environ["MUTATION_TESTS"]))}
        items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])


def pytest_runtest_logreport(report):
    seconds[report.nodeid] = seconds.get(report.nodeid, 0) + report.duration
    if report.failed:
        failed.append(report.nodeid)


def pytest_sessionfinish():
    if "MUTATION_REPORT" in os.environ:
        Path(os.environ["MUTATION_REPORT"]).write_text(json.dumps({"seconds": seconds, "failed": failed}))
