"""Small recorded episodes; networks of a test are too small for more than one thread."""

import polars as pl
import pytest
import torch

from drl_assets.learning.data.episodes import Episodes, from_experiences
from drl_assets.sources.synthetic import generate_events
from drl_assets.tables import transforms


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def frame() -> pl.DataFrame:
    """Experiences of 24 synthetic episodes of 15 windows."""
    return transforms.experiences_of([list(generate_events(24, 15, seed=1))])


@pytest.fixture(scope="session")
def few() -> pl.DataFrame:
    """Experiences of 8 synthetic episodes of 4 windows."""
    return transforms.experiences_of([list(generate_events(8, 4, seed=1))])


@pytest.fixture(scope="session")
def episodes(frame: pl.DataFrame) -> Episodes:
    return from_experiences(frame)
