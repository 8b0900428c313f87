"""Train, validation and sealed test of a job: no context, and no line of a bank, on two sides."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple, cast

from fleet_rlm.errors import UsageError
from fleet_rlm.suites.generators.bank import BankPart
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.suite import Suite


class Split(NamedTuple):
    """Three sets of samples without a context in common.

    Their names are those of the parts of a bank.
    """

    train: list[PlannedSample]
    validation: list[PlannedSample]
    """In an order whose every beginning is spread over tasks, lengths and contexts."""

    test: list[PlannedSample]

    @property
    def seal(self) -> dict[str, int | str]:
        """What is published of the test: how many samples, and sha256 of their sorted ids, one a
        line."""
        ids = "\n".join(sorted(sample.id for sample in self.test))
        return {"samples": len(self.test), "sha256": hashlib.sha256(ids.encode()).hexdigest()}


def split_suite(suite: Suite, *, train: int, validation: int, test: int, seed: int) -> Split:
    """As `split` of the suite's plan; the lines of each set are of its own part of each bank.

    Raises:
        UsageError: as `split`; a bank has too few texts for three parts.
    """
    plan = suite.plan()
    drawn = split(plan, train=train, validation=validation, test=test, seed=seed)
    parts = (suite.part(cast("BankPart", name)) for name in Split._fields)
    return Split(*(_redrawn(plan, *pair) for pair in zip(parts, drawn, strict=True)))


def _redrawn(
    plan: Sequence[PlannedSample], part: Suite, samples: list[PlannedSample]
) -> list[PlannedSample]:
    twins = {old.id: new for old, new in zip(plan, part.plan(), strict=True)}
    return [twins[sample.id] for sample in samples]


def split(
    samples: Sequence[PlannedSample], *, train: int, validation: int, test: int, seed: int
) -> Split:
    """Draw contexts for the test, then for validation, then for training.

    Each is spread over tasks and lengths.

    Args:
        samples: a suite's plan.
        train: samples to learn from.
        validation: samples to compare trials on.
        test: samples of the sealed test.
        seed: of the draw.

    Raises:
        UsageError: the suite has too few samples for all three.
    """
    by_context: dict[str, list[PlannedSample]] = {}
    for sample in samples:
        by_context.setdefault(sample.cluster, []).append(sample)
    contexts = _interleaved(list(by_context.values()), random.Random(f"split:{seed}"))
    sealed, rest = _take(contexts, test)
    compared, rest = _take(rest, validation)
    learned, _ = _take(rest, train)
    if len(sealed) < test or len(compared) < validation or len(learned) < train:
        raise UsageError(
            f"The suite has {len(samples)} samples in {len(by_context)} contexts, too few for"
            f" {train} to train on, {validation} to validate on and {test} to test on apart."
            " Raise 'windows' in the recipe's overrides, or lower 'train', 'validation' or 'test'."
        )
    return Split(train=learned, validation=_spread(compared), test=sealed)


def _interleaved(
    contexts: list[list[PlannedSample]], rng: random.Random
) -> list[list[PlannedSample]]:
    rng.shuffle(contexts)
    kinds: dict[tuple[str, int], list[list[PlannedSample]]] = {}
    for context in contexts:
        kinds.setdefault((context[0].task, context[0].length), []).append(context)
    turns = [
        (turn, kind, context)
        for kind, found in enumerate(kinds.values())
        for turn, context in enumerate(found)
    ]
    return [context for _, _, context in sorted(turns, key=lambda turn: turn[:2])]


def _take(
    contexts: list[list[PlannedSample]], wanted: int
) -> tuple[list[PlannedSample], list[list[PlannedSample]]]:
    taken: list[PlannedSample] = []
    for used, context in enumerate(contexts):
        if len(taken) >= wanted:
            return taken[:wanted], contexts[used:]
        taken += context
    return taken[:wanted], []


def _spread(samples: Sequence[PlannedSample]) -> list[PlannedSample]:
    """One question of every context before the second of any."""
    turns: dict[str, int] = {}
    keyed = []
    for sample in samples:
        turn = turns[sample.cluster] = turns.get(sample.cluster, -1) + 1
        keyed.append((turn, sample))
    return [sample for _, sample in sorted(keyed, key=lambda pair: pair[0])]
