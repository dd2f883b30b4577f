"""A reader that stops reading, as `head` does, is no error."""

import os
import subprocess
import sys

from effvl_cli.cli.app import main
from tests.processes import Fork


def test_a_closed_pipe_is_no_internal_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "effvl_cli", "list", "models"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.returncode == 0 and done.stderr == ""


def test_nor_is_one_of_a_list_that_is_longer_than_a_pipe_holds():
    reader, writer = os.pipe()
    os.close(reader)

    def listing():
        os.dup2(writer, 1)
        return main(["list", "models", "timm"])

    assert Fork(listing).end(100) == (0, "")
    os.close(writer)
