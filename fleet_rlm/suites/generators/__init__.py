"""All generators by name; each file writes one kind of context and knows its gold answers."""

from __future__ import annotations

from typing import Any

from fleet_rlm.suites.generators.aggregate import Aggregate
from fleet_rlm.suites.generators.babi import Babi
from fleet_rlm.suites.generators.base import Generator
from fleet_rlm.suites.generators.chat import Chat
from fleet_rlm.suites.generators.codeqa import Codeqa
from fleet_rlm.suites.generators.graphwalks import Graphwalks
from fleet_rlm.suites.generators.lookup import Lookup
from fleet_rlm.suites.generators.mrcr import Mrcr
from fleet_rlm.suites.generators.needle import Needle
from fleet_rlm.suites.generators.pairs import Pairs
from fleet_rlm.suites.generators.routing import Routing
from fleet_rlm.suites.generators.ruler import Ruler
from fleet_rlm.suites.generators.ruler_qa import RulerQa
from fleet_rlm.suites.generators.ruler_words import RulerWords
from fleet_rlm.suites.generators.variables import Variables

_ALL: tuple[Generator[Any], ...] = (
    Needle(),
    Variables(),
    Aggregate(),
    Pairs(),
    Ruler(),
    RulerWords(),
    RulerQa(),
    Graphwalks(),
    Mrcr(),
    Babi(),
    Lookup(),
    Codeqa(),
    Routing(),
    Chat(),
)

GENERATORS: dict[str, Generator[Any]] = {generator.name: generator for generator in _ALL}
