"""A disk that is full, for tests of what is written."""

import resource
from contextlib import contextmanager

import pytest


@contextmanager
def limited(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_after():
    """Let no file grow beyond so many bytes: what is beyond them in a write is lost, as if full."""
    return limited
