"""Portable graphs with random weights, made once a session: tracing is what takes the time."""

from pathlib import Path

import pytest
from random_graphs import write_graphs

from exporter.plan.parallel import Plan


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory):
    """``graphs(family, tensor, pipeline, precision=…)``: a folder, made on first asking; copy one to spoil it."""
    made: dict[tuple, Path] = {}

    def make(family: str = "v3", tensor: int = 1, pipeline: int = 1, precision: str = "fp32", **options) -> Path:
        key = (family, tensor, pipeline, precision, *options.items())
        if key not in made:
            made[key] = write_graphs(tmp_path_factory.mktemp("graphs") / "graphs", family, Plan(tensor, pipeline), precision, **options)
        return made[key]

    return make
