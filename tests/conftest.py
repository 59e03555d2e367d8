"""What every test shares: a cache folder of its own, two threads, and no noise from libraries."""

import os
import tempfile

# Set before anything is imported: the cache of a developer who runs the tests must stay untouched, and nothing may reach for a hub.
os.environ["QCORE_HOME"] = os.environ.get("QCORE_TEST_HOME") or tempfile.mkdtemp(prefix="qcore-test-")
os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests share the cores with servers and subprocesses: waiting threads must not spin
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from hypothesis import settings  # noqa: E402

from qcore.quiet import hush  # noqa: E402

settings.register_profile("steady", deadline=None, max_examples=60)  # machines are noisy: no test fails for being slow
settings.load_profile("steady")

hush()
