"""Asks a model to write instructions; each text is stored as soon as it is paid for."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import orjson
from dspy.propose import GroundedProposer
from dspy.propose.grounded_proposer import TIPS
from dspy.teleprompt.gepa.instruction_proposal import InstructionProposer
from dspy.utils.exceptions import AdapterParseError
from pydantic import ValidationError

from fleet_rlm.errors import Paused, one_line
from fleet_rlm.ledger import Ledger
from fleet_rlm.lm.connect import ModelSpec, connect
from fleet_rlm.lm.metered import LEDGER_SETTING
from fleet_rlm.runner.run import Whole
from fleet_rlm.search.candidates import Demo

SHORTEST, LONGEST = 10, 20_000
"""Characters of an instruction; what is shorter or longer is junk."""

TEMPERATURE = 1.0
"""As in DSPy's proposer: drafts must differ."""

JUNK = (AdapterParseError, ValidationError, ValueError, AttributeError)
"""What a reply without an instruction ends in, in DSPy's proposers."""


class Writer:
    """The model that writes instructions.

    Args:
        spec: which model.
        whole: whose purse it spends from, and whose gate its calls wait at.
        path: file of the texts written so far; a line each, appended.
        say: told of replies that are no instruction.
    """

    def __init__(
        self, spec: ModelSpec, whole: Whole, path: Path, say: Callable[[str], None]
    ) -> None:
        self._spec, self._whole, self._path, self._say = spec, whole, path, say
        self._written = dict(_read(path))
        self._lm: Any = None

    def propose(
        self,
        name: str,
        number: int,
        *,
        program: dspy.Module,
        about: str,
        demo_sets: Sequence[Sequence[Demo]],
        seed: int,
    ) -> str | None:
        """An instruction by MIPROv2's proposer (Opsahl-Ong et al. 2024, arXiv 2406.11695).

        It is given our own description of task and program: DSPy's would put ten training examples
        with their contexts, and the source of the program's class, into each prompt.

        Args:
            name: of the predictor.
            number: of the proposal; each has another tip, and examples from another set.
            program: the baseline.
            about: task and program, in words.
            demo_sets: worked examples of the predictor, the baseline's set first.
            seed: of the choices.

        Returns:
            None when the reply was no instruction.
        """
        names = [own for own, _ in program.named_predictors()]
        position = names.index(name)
        tips = list(TIPS.values())
        shown = [[dspy.Example(dict(demo)) for demo in found] for found in demo_sets]

        def ask() -> str:
            proposer = GroundedProposer(
                prompt_model=dspy.settings.lm,
                program=program,
                trainset=[],
                use_dataset_summary=False,
                program_aware=False,
                use_instruct_history=False,
                set_tip_randomly=False,
                set_history_randomly=False,
                rng=random.Random(f"propose:{seed}:{name}:{number}"),
                init_temperature=TEMPERATURE,
            )
            proposer.use_dataset_summary, proposer.data_summary = True, about
            tip = tips[number % len(tips)]
            proposer.use_tip = bool(tip)
            text: str = proposer.propose_instruction_for_predictor(
                program=program,
                predictor=program.predictors()[position],
                pred_i=position,
                demo_candidates=[shown] * len(names),
                demo_set_i=number % len(shown),
                trial_logs={},
                tip=tip,
            )
            return text

        return self._write(f"propose:{name}:{number}", ask)

    def reflect(
        self, name: str, number: int, *, current: str, examples: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """An instruction that heeds feedback, by GEPA's proposer (Agrawal et al. 2025, 2507.19457).

        Args:
            name: of the predictor.
            number: of the round.
            current: the instruction that the examples were answered with.
            examples: inputs, outputs and feedback, as GEPA's reflective datasets have them.

        Returns:
            None when the reply was no instruction.
        """

        def ask() -> str:
            proposer = InstructionProposer()
            written: dict[str, str] = proposer({name: current}, {name: list(examples)}, [name])
            return written[name]

        return self._write(f"reflect:{name}:{number}", ask)

    def _write(self, key: str, ask: Callable[[], str]) -> str | None:
        if key in self._written:
            return self._written[key]
        with self._connected():
            try:
                text: str | None = ask().strip()
            except dspy.LMError as error:
                raise Paused(
                    f"The job pauses: writing instructions failed:"
                    f" {type(error).__name__}: {one_line(str(error), 200)}",
                    fix="the same command when the service is back",
                ) from error
            except JUNK as error:
                text = None
                self._say(f"No instruction ({key}): {one_line(str(error), 120)}")
        if text is not None and not SHORTEST <= len(text) <= LONGEST:
            self._say(f"No instruction ({key}): {len(text):,} characters.")
            text = None
        with self._path.open("ab") as file:
            line = {"key": key, "text": text}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._written[key] = text
        return text

    @contextmanager
    def _connected(self) -> Iterator[None]:
        self._lm = self._lm or connect(self._spec, "proposer", self._whole.gate)
        self._lm.kwargs["temperature"] = TEMPERATURE
        ledger = Ledger(purse=self._whole.purse)
        # DSPy's proposer gives its prompt more fields than it takes, and logs each time.
        log = logging.getLogger("dspy.predict.predict")
        level = log.level
        log.setLevel(logging.ERROR)
        # No demos of ours: the proposer's own prompts are DSPy's business, in DSPy's form.
        with dspy.context(
            lm=self._lm, adapter=dspy.ChatAdapter(), trace=[], **{LEDGER_SETTING: ledger}
        ):
            try:
                yield
            finally:
                log.setLevel(level)


def _read(path: Path) -> Iterator[tuple[str, str | None]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    for line in whole.splitlines():
        found = orjson.loads(line)
        yield found["key"], found["text"]
