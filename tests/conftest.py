"""Settings of all tests: one thread, the same hypothesis examples every time, and what may run side by side."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
settings.register_profile(
    "saol",
    deadline=None,
    derandomize=True,
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("saol")

FIRST = ["01", "02", "test_study", "test_training", "test_distributed", "test_explorer_browser", "06", "test_faults"]
THEN = ["04", "03"]  # notebooks that read what 01 and 02 have trained, and train a little more
# What must say the same with every instruction set and number of threads: make test-numeric. Of test_attach.py, whose
# networks are large, what is marked there.
NUMERIC = ["test_layers", "test_cutmix", "test_losses"]


def place(item):
    """What takes long begins first, so that the processes end together; what reads others' runs after these."""
    name = item.path.stem[:2] if item.path.suffix == ".ipynb" else item.path.stem
    order = [*FIRST, *THEN]
    return order.index(name) if name in order else len(order)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    items.sort(key=place)
    for item in items:
        if item.path.stem in NUMERIC:
            item.add_marker(pytest.mark.numeric)
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.timeout(0))  # nbval's own limit is for each cell
