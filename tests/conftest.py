"""Settings for all tests."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("tersor", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("tersor")


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    torch.set_num_threads(2)
