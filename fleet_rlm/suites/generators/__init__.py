"""All generators by name; each file writes one kind of context and knows its gold answers."""

from __future__ import annotations

from typing import Any

from fleet_rlm.suites.generators.aggregate import Aggregate
from fleet_rlm.suites.generators.base import Generator
from fleet_rlm.suites.generators.needle import Needle
from fleet_rlm.suites.generators.variables import Variables

_ALL: tuple[Generator[Any], ...] = (Needle(), Variables(), Aggregate())

GENERATORS: dict[str, Generator[Any]] = {generator.name: generator for generator in _ALL}
