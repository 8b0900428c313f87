"""`RLM`: dspy's Recursive Language Model with learned guidance and a rendered protocol."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import dspy
from dspy.adapters.utils import translate_field_type
from dspy.predict.rlm import ACTION_INSTRUCTIONS_TEMPLATE, _strip_code_fences
from dspy.primitives.code_interpreter import (
    CodeExecutionError,
    CodeInterpreter,
    CodeInterpreterError,
    FinalOutput,
    resolve_interpreter_factory,
)
from dspy.primitives.python_interpreter import PythonInterpreter
from dspy.primitives.repl_types import REPLHistory, REPLVariable
from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    format_error_for_lm,
)

from fleet_rlm.errors import LimitReached
from fleet_rlm.lm.cancel import cancel_scope, check_cancelled
from fleet_rlm.lm.metered import current_ledger
from fleet_rlm.program.context_ref import ContextRef, shorten
from fleet_rlm.program.events import DEPTH_SETTING, EVENTS_SETTING, depth, emit
from fleet_rlm.program.history import DEEPEST, compact
from fleet_rlm.program.predict import predict
from fleet_rlm.program.queries import SUB_LM_SETTING, Budget, Queries, QueryRefused
from fleet_rlm.program.recursion import RecursionSettings
from fleet_rlm.program.trail import RlmQuery, Trail, account, told
from fleet_rlm.sandbox.interpreter import LocalInterpreter

InterpreterFactory = Callable[[], CodeInterpreter]

RESTARTS = 2
"""Lost sandbox sessions that one answer survives; a third is an outage."""

PREVIEW_CHARS = 1000
"""Characters of a text that the model is shown at the start, as `dspy.RLM` does."""

RECURSION_DOCS = """\
- `rlm_query(query, context)` - ask a child that has a REPL of its own and works like you; use it \
for a part that is too large or too complex for one `llm_query`. Without a context it reads your \
whole input
- `rlm_query_batched(queries, contexts)` - ask several children concurrently
"""

_AFTER_QUERIES = "- `print()`"


class ChildQuery(dspy.Signature):
    """Answer the query from the context."""

    context: Any = dspy.InputField(desc="what to answer from")
    query: str = dspy.InputField(desc="the question")
    answer: str = dspy.OutputField(desc="the answer alone, in the form that the query asks for")


def _setting(name: str) -> Any:
    """A property over `self.recursion`; values set before it exists wait aside."""

    def read(self: RLM) -> int:
        return self.recursion[name] if "recursion" in self.__dict__ else self.__dict__["_" + name]

    def write(self: RLM, value: int) -> None:
        if "recursion" in self.__dict__:
            self.recursion.update({name: value})
        else:
            self.__dict__["_" + name] = value

    return property(read, write)


class RLM(dspy.RLM):
    """A drop-in for `dspy.RLM` (Zhang, Kraska, Khattab, arXiv 2512.24601).

    What differs from the parent:

    * The optimizable instruction holds the task guidance only. The REPL protocol (SUBMIT,
      llm_query, tools, limits, rules of the sandbox) is rendered per call from live settings, so no
      optimizer can erase it and no number in it is stale.
    * `recursion` is a `RecursionSettings` parameter; `max_iters`, `max_llm_calls`, ... read and
      write it.
    * Generated code may ask children: `rlm_query(query, context)` runs the same learned guidance in
      a sibling session, down to `max_depth`, on the root's budget.
    * Nothing that is paid for is lost. A malformed action becomes an error that the model reads; a
      history that no longer fits is shown shortened; a lost session is rebuilt; at a limit of the
      sample's ledger the answer is extracted from the steps so far. The prediction's `stop` says
      how it ended: "submitted", "iterations", "context", or the limit's kind. An error of the
      model's service carries the steps so far as `trajectory`.
    * Code runs in a `LocalInterpreter` unless another sandbox was chosen, here or with
      `dspy.configure(interpreter_factory=...)`.
    * Sub-queries and children use `sub_lm`, else the DSPy setting `fleet_sub_lm`, else the caller's
      `lm`.

    Args:
        signature: inputs and outputs, as `dspy.RLM` takes it.
        guidance: initial task guidance; the signature's own instructions when empty.
        recursion: settings; the keyword arguments of `dspy.RLM` are used when absent.
        arguments: the remaining arguments of `dspy.RLM`, and any recursion setting by name.

    Raises:
        UsageError: a setting out of range.
    """

    max_iters = _setting("max_iters")
    max_llm_calls = _setting("max_llm_calls")
    max_output_chars = _setting("max_output_chars")
    batch_workers = _setting("batch_workers")
    max_depth = _setting("max_depth")
    max_children = _setting("max_children")
    call_timeout_s = _setting("call_timeout_s")

    _RESERVED_SANDBOX_NAMES = dspy.RLM._RESERVED_SANDBOX_NAMES | {"rlm_query", "rlm_query_batched"}
    _RESERVED_RESULT_NAMES = dspy.RLM._RESERVED_RESULT_NAMES | {"stop", "trail"}

    def __init__(
        self,
        signature: type[dspy.Signature] | str,
        *,
        guidance: str = "",
        recursion: RecursionSettings | None = None,
        **arguments: Any,
    ) -> None:
        given = {name: arguments.pop(name) for name in RecursionSettings.SPEC if name in arguments}
        settings = RecursionSettings(**(recursion.to_json() if recursion else {}))
        settings.update(given)
        super().__init__(signature, **arguments)
        for name in RecursionSettings.SPEC:
            self.__dict__.pop("_" + name, None)
        self.recursion = settings
        text = guidance or self.signature.instructions
        self.generate_action.signature = self.generate_action.signature.with_instructions(text)

    def forward(
        self, *, interpreter_factory: InterpreterFactory | None = None, **inputs: Any
    ) -> dspy.Prediction:
        """Answer from the inputs.

        Args:
            interpreter_factory: overrides the configured sandbox for this call.
            inputs: the signature's input fields; a `ContextRef` stands for its text.

        Returns:
            The output fields, `trajectory` (a list of reasoning, code and output), `trail` (the
            same steps with time, spending and queries, see `trail.Step`), `final_reasoning` and
            `stop`.

        Raises:
            ValueError: inputs that the signature does not declare, or missing ones.
            CodeInterpreterError: the sandbox failed more often than can be survived.
            LMError: the model's service failed after retries.
            Cancelled: whoever watched stopped it.
        """
        return self._start(interpreter_factory, inputs)

    async def aforward(
        self, *, interpreter_factory: InterpreterFactory | None = None, **inputs: Any
    ) -> dspy.Prediction:
        """`forward` in a worker thread: running sandbox code on the event loop would block it.

        Args:
            interpreter_factory: as of `forward`.
            inputs: as of `forward`.
        """
        prediction: dspy.Prediction = await dspy.asyncify(self._start)(interpreter_factory, inputs)
        return prediction

    def _start(
        self, factory: InterpreterFactory | None, inputs: Mapping[str, Any]
    ) -> dspy.Prediction:
        self._validate_inputs(dict(inputs))
        factory = factory or _usual(resolve_interpreter_factory(self._interpreter_factory))
        return _Run(self, factory, inputs, Budget(self.recursion), depth=depth()).answer()

    def render_protocol(self, factory: InterpreterFactory, *, recursive: bool) -> str:
        """The part of the action prompt that is never learned: live limits, tools, sandbox.

        It fills DSPy's own template, so it follows DSPy's wording.

        Args:
            factory: of the sandbox, whose rules are shown.
            recursive: whether children may be asked.
        """
        outputs = self.signature.output_fields
        rules = self._format_interpreter_rules(self._get_execution_instructions(factory), "")
        protocol = ACTION_INSTRUCTIONS_TEMPLATE.format(
            inputs=", ".join(f"`{name}`" for name in self.signature.input_fields),
            final_output_names=", ".join(outputs),
            output_fields="\n".join(f"- {translate_field_type(n, f)}" for n, f in outputs.items()),
            max_llm_calls=self.max_llm_calls,
            interpreter_rules=rules,
        )
        if recursive:
            protocol = protocol.replace(_AFTER_QUERIES, RECURSION_DOCS + _AFTER_QUERIES, 1)
        return str(protocol + self._format_tool_docs(self._user_tools))

    def action_signature(
        self, factory: InterpreterFactory, *, recursive: bool
    ) -> type[dspy.Signature]:
        """The learned guidance followed by the protocol.

        Args:
            factory: of the sandbox, whose rules are shown.
            recursive: whether children may be asked.
        """
        learned = self.generate_action.signature
        parts = [learned.instructions, self.render_protocol(factory, recursive=recursive)]
        return with_text(learned, "\n\n".join(part for part in parts if part))

    def _build_variables(self, **inputs: Any) -> list[REPLVariable]:
        return [self._variable(name, value) for name, value in inputs.items()]

    def _variable(self, name: str, value: Any) -> REPLVariable:
        if type(value) is str:
            chars, preview = len(value), shorten(value, PREVIEW_CHARS)
        elif isinstance(value, ContextRef):
            chars, preview = value.chars, value.preview
        else:
            (other,) = super()._build_variables(**{name: value})
            return other
        shown: REPLVariable = _text_variable(self.signature, name).model_copy(
            update={"total_length": chars, "preview": preview}
        )
        return shown

    def make_child(self) -> RLM:
        """A program for one child: same guidance, demos, settings, tools and sandbox."""
        child = RLM(
            ChildQuery,
            recursion=self.recursion,
            tools=list(self._user_tools.values()),
            sub_lm=self.sub_lm,
            interpreter_factory=self._interpreter_factory,
        )
        learned = self.generate_action
        signature = child.generate_action.signature
        child.generate_action.signature = signature.with_instructions(
            learned.signature.instructions
        )
        child.generate_action.demos = learned.demos
        return child


class _Run:
    """One answer of one program, at one depth."""

    def __init__(
        self,
        program: RLM,
        factory: InterpreterFactory,
        inputs: Mapping[str, Any],
        budget: Budget,
        *,
        depth: int,
    ) -> None:
        self.program = program
        self.factory = self.child_factory = factory
        self.budget = budget
        # References are read once; the same object in every turn travels to the sandbox once.
        self.inputs = {
            name: value.read() if isinstance(value, ContextRef) else value
            for name, value in inputs.items()
        }
        self.arguments: dict[str, Any] = {}
        self.variables = [v.format() for v in program._build_variables(**dict(inputs))]
        self.history = REPLHistory(max_output_chars=program.max_output_chars)
        self.trail = Trail()
        self.depth = depth
        self.opened: CodeInterpreter | None = None
        self.child: RLM | None = None
        self.lock = threading.Lock()
        self.compaction = 0
        self.restarts = 0

    def answer(self) -> dspy.Prediction:
        try:
            found = self._turns()
        except (dspy.LMError, CodeInterpreterError) as error:
            # Paid for, so the caller may store it.
            error.trajectory = self.trail.steps
            raise
        if isinstance(found, dspy.Prediction):
            return found
        return self._extract(found)

    def _turns(self) -> dspy.Prediction | str:
        """Take turns until an answer is submitted; else give the reason to stop."""
        recursive = self.depth < self.budget.max_depth
        signature = self.program.action_signature(self.factory, recursive=recursive)
        with ExitStack() as stack:
            repl = stack.enter_context(self._session())
            for turn in range(self.program.max_iters):
                try:
                    action = self._act(signature, turn)
                except LimitReached as limit:
                    return limit.kind
                except QueryRefused:
                    return "sub_calls"
                except ContextWindowExceededError:
                    return "context"
                self.trail.lap("think_s")
                if action is None:
                    continue
                try:
                    result = self._execute(repl, action.code)
                except LimitReached as limit:
                    self._append(action.reasoning, action.code, f"[Stopped] {limit}")
                    return limit.kind
                except CodeInterpreterError as error:
                    repl = self._restart(stack, repl, action, error)
                    continue
                final = self._take(action, result)
                if final is not None:
                    return final
        return "iterations"

    def _act(self, signature: type[dspy.Signature], turn: int) -> dspy.Prediction | None:
        """The next action, its code stripped of fences; None when it was malformed."""
        check_cancelled()
        if self.depth:
            self.budget.take_calls(1)
        try:
            action = self._ask(signature, turn)
        except AdapterParseError:
            note = "[Error] The reply did not hold the fields `reasoning` and `code`. Send both."
            self._append("", "", note)
            return None
        emit("thought", action.reasoning or "", turn=turn + 1)
        try:
            action.code = _strip_code_fences(action.code or "")
        except SyntaxError as error:
            self._append(action.reasoning, action.code, f"[Error] {error}")
            return None
        emit("code", action.code, turn=turn + 1)
        return action

    def _ask(self, signature: type[dspy.Signature], turn: int) -> dspy.Prediction:
        """Ask for an action, with a shorter history each time that it does not fit."""
        while True:
            try:
                return predict(
                    self.program.generate_action,
                    signature,
                    variables_info=self.variables,
                    repl_history=compact(self.history, self.compaction),
                    iteration=f"{turn + 1}/{self.program.max_iters}",
                )
            except ContextWindowExceededError:
                if self.compaction == DEEPEST or not self.history:
                    raise
                self.compaction += 1

    def _execute(self, repl: CodeInterpreter, code: str) -> FinalOutput | str:
        """What the model reads of a block of code, or what it submitted."""
        try:
            with self._interruptible(repl):
                if repl is not self.opened:
                    repl.start()
                    self.opened = repl
                    self.trail.lap("start_s")
                value = repl.execute(code, variables=dict(self.arguments))
        except CodeExecutionError as error:
            # What was printed before the failure is evidence that the model paid for.
            printed = (getattr(error, "stdout", "") or "").rstrip("\n")
            return f"{printed}\n[Error] {error}" if printed else f"[Error] {error}"
        except SyntaxError as error:
            return f"[Error] {format_error_for_lm(error)}"
        if isinstance(value, FinalOutput):
            return value
        # A block that prints and ends in an expression has both.
        printed = getattr(getattr(repl, "last", None), "stdout", "")
        shown = "\n".join(map(str, value)) if isinstance(value, list) else value
        text = "" if shown is None else str(shown)
        return f"{printed}{text}" if printed and text != printed else text

    def _take(self, action: dspy.Prediction, result: FinalOutput | str) -> dspy.Prediction | None:
        """Note the step; the prediction when it submitted an answer that fits."""
        if isinstance(result, str):
            self._append(action.reasoning, action.code, result)
            return None
        names = list(self.program.signature.output_fields)
        outputs, error = self.program._process_final_output(result, names)
        self._append(action.reasoning, action.code, error or f"FINAL: {outputs}")
        if error:
            return None
        if self.depth == 0:
            emit("final", str(outputs), outputs=outputs)
        return dspy.Prediction(
            trajectory=self._trajectory(),
            trail=self.trail.steps,
            final_reasoning=action.reasoning,
            stop="submitted",
            **outputs,
        )

    def _extract(self, stop: str) -> dspy.Prediction:
        names = list(self.program.signature.output_fields)
        ledger = current_ledger()
        outputs: dict[str, Any] = dict.fromkeys(names)
        with ExitStack() as stack:
            if ledger is not None:
                stack.enter_context(ledger.grace())
            try:
                found = self.program.extract(
                    variables_info=self.variables,
                    repl_history=compact(self.history, DEEPEST if stop == "context" else 0),
                )
                outputs = {name: getattr(found, name) for name in names}
            except (AdapterParseError, ContextWindowExceededError):
                pass  # no field could be read: the steps stay, the answer is empty
        if self.depth == 0:
            emit("final", str(outputs), outputs=outputs, stop=stop)
        return dspy.Prediction(
            trajectory=self._trajectory(),
            trail=self.trail.steps,
            final_reasoning="Extracted from the trajectory.",
            stop=stop,
            **outputs,
        )

    @contextmanager
    def _session(self) -> Iterator[CodeInterpreter]:
        queries = Queries(
            budget=self.budget,
            workers=self.program.batch_workers,
            timeout_s=self.program.call_timeout_s,
            depth=self.depth,
            sub_lm=self.program.sub_lm,
            ask_child=self._ask_child,
            note=self.trail.note,
        )
        tools = queries.functions() | {
            name: self.trail.watched(name, self.program._make_interpreter_tool(tool))
            for name, tool in self.program._user_tools.items()
        }
        with self.program._interpreter_context(tools, self.factory) as repl:
            if hasattr(repl, "on_stdout") and dspy.settings.get(EVENTS_SETTING):
                repl.on_stdout = lambda piece: emit("stdout", piece)
            self.child_factory = getattr(repl, "siblings", self.factory)
            self.arguments = self.program._prepare_serializable_vars(self.inputs, repl)
            yield repl

    def _restart(
        self,
        stack: ExitStack,
        repl: CodeInterpreter,
        action: dspy.Prediction,
        error: CodeInterpreterError,
    ) -> CodeInterpreter:
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise error
        if rebuild := getattr(repl, "rebuild", None):
            self._append(action.reasoning, action.code, f"[Error] {rebuild()}")
            return repl
        stack.close()
        self._append(
            action.reasoning,
            action.code,
            f"[Error] The sandbox session was lost ({error}). A new one was started: the inputs "
            "are set, variables and functions of earlier steps are gone.",
        )
        return stack.enter_context(self._session())

    def _ask_child(self, query: str, context: Any) -> str:
        program = self.program
        if context is None:
            texts = [value for value in self.inputs.values() if isinstance(value, str)]
            context = max(texts, key=len) if texts else next(iter(self.inputs.values()))
        lm = program.sub_lm or dspy.settings.get(SUB_LM_SETTING) or dspy.settings.lm
        inputs = {"context": context, "query": query}
        below = self.depth + 1
        answer, stop, failure = "", "error", ""
        # A trace of its own: optimizers must not take a child's steps for the root's.
        with account() as spent, dspy.context(lm=lm, trace=[], **{DEPTH_SETTING: below}):
            emit("child_start", query)
            child = _Run(self._child(), self.child_factory, inputs, self.budget, depth=below)
            try:
                found = child.answer()
                answer, stop = "" if found.answer is None else str(found.answer), found.stop
            except Exception as error:  # any: it is noted, and raised again
                failure = told(error)
                raise
            finally:
                asked = RlmQuery(
                    kind="rlm",
                    query=query,
                    context_chars=len(context) if isinstance(context, str) else 0,
                    answer=answer,
                    stop=stop,
                    steps=child.trail.steps,
                    **spent(),
                )
                self.trail.note(asked | {"error": failure} if failure else asked)
            emit("child_end", answer, stop=stop, turns=len(child.trail.steps))
        return answer

    def _child(self) -> RLM:
        """The program of all children: nothing that it is made of changes while they run."""
        with self.lock:
            if self.child is None:
                self.child = self.program.make_child()
            return self.child

    @contextmanager
    def _interruptible(self, repl: CodeInterpreter) -> Iterator[None]:
        scope = cancel_scope()
        interrupt = getattr(repl, "interrupt", None)
        if scope is None or interrupt is None:
            yield
            return
        with scope.guard(interrupt):
            yield
        scope.check()

    def _append(self, reasoning: str | None, code: str | None, output: str) -> None:
        shown = self.program._format_output(output)
        self.history = self.history.append(reasoning=reasoning or "", code=code or "", output=shown)
        self.trail.end_step(reasoning or "", code or "", shown)

    def _trajectory(self) -> list[dict[str, str]]:
        return [entry.model_dump() for entry in self.history]


@functools.lru_cache(256)
def with_text(learned: type[dspy.Signature], text: str) -> type[dspy.Signature]:
    """A signature with other instructions; the same class for the same text.

    A signature is a pydantic class: making one takes a millisecond, and samples share it.
    """
    rendered: type[dspy.Signature] = learned.with_instructions(text)
    return rendered


def _usual(factory: InterpreterFactory) -> InterpreterFactory:
    # dspy takes its own default for "nothing was chosen"; it needs Deno and a download.
    return LocalInterpreter if factory is PythonInterpreter else factory


@functools.lru_cache(256)
def _text_variable(signature: type[dspy.Signature], name: str) -> REPLVariable:
    """How an input is described that is a text; dspy asks pydantic each time what a text is."""
    return REPLVariable.from_value(name, "", field_info=signature.input_fields.get(name))
