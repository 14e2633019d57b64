"""Settings of all tests: threads per worker, and no deadline of hypothesis, which a busy machine would miss."""

import os

import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
