"""A reader that stops reading, as `head` does, is no error."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("line", ["list models", "list models timm"])
def test_a_closed_pipe_is_no_internal_error(line):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "effvl_cli", *line.split()], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.returncode == 0 and done.stderr == ""
