"""Texts, vectors and model outputs that lie outside the project, where this machine has them."""

from __future__ import annotations

from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The path of `name` in a folder `shared/data` beside the checkout or above; skips without."""
    for folder in Path(__file__).parents:
        path = folder / "shared" / "data" / name
        if path.exists():
            return path
    pytest.skip(f"{name} is not on this machine: it lies outside the project")
