"""A pytest plugin for the machine with the GPU: failures are told when they happen, and a lost GPU costs one test.

What a failed test said goes to the file POLYCHROME_FAILURES names, at once: a run that is cut off has told them. A
kernel that faults leaves its process without the GPU, so that such a worker ends and pytest-xdist starts another.
"""

import os
import time

import pytest
import torch

from bench.gpu import lookups


def pytest_configure(config):
    lookups.count()
    config.pluginmanager.register(Worker() if hasattr(config, "workerinput") else Teller())


class Teller:
    """What the process does that gets the reports of all."""

    def pytest_runtest_logreport(self, report):
        """Append a failure to the file."""
        path = os.environ.get("POLYCHROME_FAILURES")
        if report.failed and path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"---- {report.nodeid} ({report.when})\n{report.longreprtext}\n")
            print(f"FAILED {report.nodeid}", flush=True)


class Worker:
    """What a process of pytest-xdist does besides running tests."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """End this process after a test that lost the GPU."""
        result = yield
        if _is_lost():
            time.sleep(1)  # the report is on its way
            os._exit(3)
        return result


def _is_lost() -> bool:
    """Return whether a kernel of this process has failed on the GPU: every later call fails then."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
