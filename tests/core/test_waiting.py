"""OpenMP threads sleep while they wait: set before torch is loaded, and what the user has set stays."""

import os
import subprocess
import sys

import pytest

CODE = """
import json, os, sys
from effvl_cli import __main__
sys.argv = ["effvl", "--version"]
try:
    __main__.main()
except SystemExit:
    pass
assert "torch" not in sys.modules
print(json.dumps({name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, '{"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}'),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, '{"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "0"}'),
    ],
)
def test_the_entry_point_sets_the_policy_before_torch(given, expected):
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == expected
