"""A pytest plugin for the machine with the GPU: failures are written at once, and a lost GPU costs one test.

The report of a failed test goes at once to the file named by POLYCHROME_FAILURES, so a run that is cut off keeps it. A
kernel that faults leaves its process without the GPU; the worker then ends, and pytest-xdist starts another.
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
    """Hooks of the process that gets all reports."""

    def pytest_runtest_logreport(self, report):
        """Append a failure to the file."""
        path = os.environ.get("POLYCHROME_FAILURES")
        if report.failed and path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"---- {report.nodeid} ({report.when})\n{report.longreprtext}\n")
            print(f"FAILED {report.nodeid}", flush=True)


class Worker:
    """Hooks of a worker process of pytest-xdist."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """End this process after a test that lost the GPU."""
        result = yield
        if _is_lost():
            time.sleep(1)  # for the report to be sent
            os._exit(3)
        return result


def _is_lost() -> bool:
    """Return whether a kernel of this process has faulted, after which every call to the GPU fails."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
