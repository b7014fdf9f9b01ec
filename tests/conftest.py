"""Settings of all tests: one thread, the same hypothesis examples every time, and what may run side by side."""

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "saol",
    deadline=None,
    derandomize=True,
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("saol")

AFTER = {"03": "02", "04": "01"}  # notebooks that read what another one has trained
LONG = ["01", "02", "test_study", "test_training", "test_distributed", "test_explorer_browser", "06", "test_faults"]


def pytest_collection_modifyitems(items):
    """A file's tests stay together and in order, in one process; long files begin first; notebooks take their time."""
    names = {item: item.path.stem[:2] if item.path.suffix == ".ipynb" else item.path.stem for item in items}
    for item, name in names.items():
        item.add_marker(pytest.mark.xdist_group(AFTER.get(name, name)))
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.timeout(0))
    items.sort(key=lambda item: [*LONG, AFTER.get(names[item], names[item])].index(AFTER.get(names[item], names[item])))
