"""The chat agent's 23 tools, each a thin layer over the module that does the work."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dspy

from fleet_rlm.lm.metered import current_ledger
from fleet_rlm.program.agent import files
from fleet_rlm.program.agent.chunking import SIZE, chunk, parse_strategy
from fleet_rlm.program.agent.documents import ACTIVE, CACHE_LIMIT, Document, read_document
from fleet_rlm.program.agent.roots import Refused
from fleet_rlm.program.agent.semantic_map import map_prompt, split_parts
from fleet_rlm.program.events import depth
from fleet_rlm.program.queries import Budget, Queries

if TYPE_CHECKING:
    from fleet_rlm.program.agent.agent import RLMReActChatAgent
    from fleet_rlm.program.agent.state import ChatState
    from fleet_rlm.program.agent.volume import Volume
    from fleet_rlm.program.agent.workbench import Workbench
    from fleet_rlm.program.rlm import InterpreterFactory

PREVIEW_CHARS = 400
MAX_PARTS = 500
MEMORY = "memory/"
"""Folder of the volume in which the memory tools work."""


class AgentTools:
    """The tools over the memory and the session of one turn.

    The first paragraph of a tool's docstring is what the model reads about it. A tool raises when
    it fails; the turn tells the model.

    Args:
        agent: roots, volume, programs.
        state: what the tools may change.
        bench: the chat's sandbox session.
        factory: makes the sandboxes of child programs.
    """

    def __init__(
        self,
        agent: RLMReActChatAgent,
        state: ChatState,
        bench: Workbench,
        factory: InterpreterFactory,
    ) -> None:
        self._agent = agent
        self._state = state
        self._bench = bench
        self._factory = factory

    def load_document(self, path: str, alias: str = ACTIVE) -> dict[str, Any]:
        """Load a file as a document under an alias and make it the active one; of a folder, list
        the files. Text, PDF, Office, HTML, EPUB and RTF are read."""
        real = self._agent.roots.resolve(path)
        if real.is_dir():
            found = files.scan(self._agent.roots, path)
            return {
                "status": "directory",
                "path": path,
                "files": found.files,
                "total_count": found.total,
                "hint": "Load one of these files with load_document.",
            }
        document = read_document(self._agent.roots.resolve_file(path), path)
        result = self._keep(alias, document) | {"path": path}
        if document.source_type != "text":
            result |= {
                "source_type": document.source_type,
                "extraction_method": document.method,
                "page_count": document.page_count,
            }
        return result

    def set_active_document(self, alias: str) -> dict[str, Any]:
        """Make a loaded document the active one."""
        self._state.documents.activate(alias)
        return {"status": "ok", "active_alias": self._state.documents.active_alias}

    def list_documents(self) -> dict[str, Any]:
        """List the loaded documents."""
        documents = self._state.documents
        return {
            "status": "ok",
            "documents": documents.describe(),
            "active_alias": documents.active_alias,
            "cache_size": len(documents),
            "cache_limit": CACHE_LIMIT,
        }

    def list_files(self, path: str = ".", pattern: str = "**/*") -> dict[str, Any]:
        """List the files below a folder that match a glob pattern."""
        return files.list_files(self._agent.roots, path, pattern)

    def read_file_slice(
        self, path: str, start_line: int = 1, num_lines: int = 100
    ) -> dict[str, Any]:
        """Read some lines of a text file; lines are counted from 1."""
        return files.read_file_slice(self._agent.roots, path, start_line, num_lines)

    def find_files(self, pattern: str, path: str = ".", include: str = "") -> dict[str, Any]:
        """Search the content of files for a regular expression; `include` is a glob pattern."""
        return files.find_files(self._agent.roots, pattern, path, include)

    def chunk_host(
        self,
        strategy: str,
        alias: str = ACTIVE,
        size: int = SIZE,
        overlap: int = 0,
        pattern: str = "",
    ) -> dict[str, Any]:
        """Try how a document falls into chunks by size, headers, timestamps or json_keys."""
        compiled = files.Pattern(pattern, multiline=True) if pattern else ""
        text = self._state.documents.get(alias).text
        chunks = chunk(text, strategy, size=size, overlap=overlap, pattern=compiled)
        first = chunks[0] if chunks else ""
        shown = first if isinstance(first, str) else json.dumps(first, ensure_ascii=False)
        return {
            "status": "ok",
            "strategy": parse_strategy(strategy),
            "chunk_count": len(chunks),
            "preview": shown[:PREVIEW_CHARS],
        }

    def chunk_sandbox(
        self,
        strategy: str,
        variable_name: str = "active_document",
        buffer_name: str = "chunks",
        size: int = SIZE,
        overlap: int = 0,
        pattern: str = "",
    ) -> dict[str, Any]:
        """Cut a text into chunks in the sandbox and keep them in a buffer; `variable_name` is a
        document's alias or the name of another buffer."""
        made = "chunk({}, strategy, size=size, overlap=overlap, pattern=pattern)"
        values: dict[str, Any] = {
            "name": buffer_name,
            "strategy": strategy,
            "size": size,
            "overlap": overlap,
            "pattern": pattern,
        }
        documents = self._state.documents
        if variable_name == "active_document" or variable_name in documents:
            alias = ACTIVE if variable_name == "active_document" else variable_name
            values["text"] = documents.get(alias).text
            made = made.format("text")
        else:
            values["source_name"] = variable_name
            if not self._bench.call("len(get_buffer(source_name))", source_name=variable_name):
                raise Refused(f"There is no document and no buffer {variable_name!r}.")
            made = made.format("'\\n'.join(map(str, get_buffer(source_name)))")
        return {
            "status": "ok",
            "strategy": parse_strategy(strategy),
            "chunk_count": self._bench.call(f"set_buffer(name, {made})", **values),
            "buffer_name": buffer_name,
        }

    def parallel_semantic_map(
        self,
        query: str,
        chunk_strategy: str = "headers",
        max_chunks: int = 24,
        buffer_name: str = "findings",
    ) -> dict[str, Any]:
        """Ask a question of every part of the active document in parallel and keep the replies in a
        buffer; parts are sent whole, and what did not go in is told."""
        if not query.strip() or not 1 <= max_chunks <= MAX_PARTS:
            raise Refused(f"A query, and max_chunks from 1 to {MAX_PARTS}, are needed.")
        text = self._state.documents.get().text
        parts = split_parts(text, chunk_strategy, max_chunks)
        prompts = [map_prompt(query, part) for part in parts.texts]
        self._bench.open()  # before anything is paid for that it must hold
        replies = self._ask_in_parallel(prompts)
        found = [{"chunk_index": n, "response": reply} for n, reply in enumerate(replies)]
        self._bench.call("set_buffer(name, values)", name=buffer_name, values=found)
        return {
            "status": "ok",
            "strategy": parse_strategy(chunk_strategy),
            "chunk_count": len(prompts),
            "findings_count": sum(not reply.startswith("[ERROR]") for reply in replies),
            "buffer_name": buffer_name,
            "doc_chars": len(text),
            "left_out_chars": parts.left_out_chars,
        }

    def analyze_long_document(
        self, query: str, alias: str = ACTIVE, include_trajectory: bool = True
    ) -> dict[str, Any]:
        """Have a recursive program answer a query from all of a document, with findings."""
        text = self._state.documents.get(alias).text
        found = self._run(self._agent.analyze, document=text, query=query)
        result = {
            "status": "ok",
            "answer": found.answer,
            "findings": found.findings,
            "sections_examined": found.sections_examined,
            "doc_chars": len(text),
            "stop": found.stop,
        }
        return result | _trajectory(found, wanted=include_trajectory)

    def summarize_long_document(
        self, focus: str, alias: str = ACTIVE, include_trajectory: bool = True
    ) -> dict[str, Any]:
        """Have a recursive program summarise all of a document with a focus."""
        text = self._state.documents.get(alias).text
        found = self._run(self._agent.summarize, document=text, focus=focus)
        covered = found.coverage_pct
        result = {
            "status": "ok",
            "summary": found.summary,
            "key_points": found.key_points,
            "coverage_pct": None if covered is None else min(100, max(0, covered)),
            "doc_chars": len(text),
            "stop": found.stop,
        }
        return result | _trajectory(found, wanted=include_trajectory)

    def extract_from_logs(
        self, query: str, alias: str = ACTIVE, include_trajectory: bool = True
    ) -> dict[str, Any]:
        """Have a recursive program find log entries and the patterns behind them."""
        text = self._state.documents.get(alias).text
        found = self._run(self._agent.extract_logs, logs=text, query=query)
        result = {
            "status": "ok",
            "matches": found.matches,
            "patterns": found.patterns,
            "time_range": found.time_range,
            "stop": found.stop,
        }
        return result | _trajectory(found, wanted=include_trajectory)

    def rlm_query(self, query: str, context: str = "") -> dict[str, Any]:
        """Have a recursive program answer a query from a context of any length; without a context
        it reads the active document."""
        if not query.strip():
            raise Refused("rlm_query takes a query.")
        documents = self._state.documents
        if not context and documents.active_alias is not None:
            context = documents.get().text
        ledger = current_ledger()
        before = ledger.total if ledger else None
        found = self._run(self._agent.rlm, context=context, query=query)
        after = ledger.total if ledger else None
        return {
            "status": "ok",
            "answer": found.answer or "",
            "stop": found.stop,
            "depth": depth() + 1,
            # an unmetered model leaves no count, which is not the same as none
            "calls": (after.calls - before.calls or None) if after and before else None,
            "tokens": (after.tokens - before.tokens or None) if after and before else None,
            "sub_agent_history": found.trajectory,
        }

    def edit_file(self, path: str, old_snippet: str, new_snippet: str) -> dict[str, Any]:
        """Replace a snippet that occurs once in a file of the volume."""
        volume = self._volume
        text = volume.read(path)
        count = text.count(old_snippet) if old_snippet else 0
        if not count:
            raise Refused("old_snippet not found in file")
        if count > 1:
            raise Refused(f"old_snippet is ambiguous (found {count} times)")
        volume.write(path, text.replace(old_snippet, self._agent.clean(new_snippet)))
        volume.commit()
        return {"status": "ok", "path": path, "message": "Replaced 1 snippet."}

    def read_buffer(self, name: str) -> dict[str, Any]:
        """Read what a buffer of the sandbox holds."""
        items = self._bench.call("get_buffer(name)", name=name) if self._bench.is_open else []
        return {"status": "ok", "name": name, "count": len(items), "items": items}

    def clear_buffer(self, name: str = "") -> dict[str, Any]:
        """Forget one buffer, or all of them when no name is given."""
        if self._bench.is_open:
            self._bench.call("clear_buffer(name)", name=name or None)
        return {"status": "ok", "scope": "single" if name else "all"}

    def save_buffer_to_volume(self, name: str, path: str) -> dict[str, Any]:
        """Save a buffer as JSON in a file of the volume."""
        volume = self._volume
        items = self.read_buffer(name)["items"]
        if not items:
            raise Refused(f"There is no buffer {name!r}, or it is empty.")
        volume.write(path, self._agent.clean(json.dumps(items, ensure_ascii=False)))
        volume.commit()
        return {"status": "ok", "saved_path": path, "item_count": len(items)}

    def load_text_from_volume(self, path: str, alias: str = ACTIVE) -> dict[str, Any]:
        """Load a text file of the volume as a document and make it the active one."""
        self._volume.reload()
        return self._keep(alias, Document(text=self._volume.read(path), path=path))

    def memory_read(self, path: str) -> dict[str, Any]:
        """Read a note from the memory folder of the volume."""
        self._volume.reload()
        content = self._volume.read(_note(path))
        return {"status": "ok", "path": path, "content": content, "chars": len(content)}

    def memory_write(self, path: str, content: str) -> dict[str, Any]:
        """Write a note into the memory folder of the volume."""
        content = self._agent.clean(content)
        self._volume.write(_note(path), content)
        self._volume.commit()
        return {"status": "ok", "path": path, "chars": len(content)}

    def memory_list(self, path: str = ".") -> dict[str, Any]:
        """List the notes in the memory folder of the volume."""
        self._volume.reload()
        items = [entry._asdict() for entry in self._volume.entries(_note(path))]
        return {"status": "ok", "path": path, "items": items, "count": len(items)}

    def core_memory_append(self, section: str, content: str) -> str:
        """Add a line to a block of core memory: persona, human or scratchpad."""
        return self._state.memory.append(section, content)

    def core_memory_replace(self, section: str, content: str) -> str:
        """Give a block of core memory new content: persona, human or scratchpad."""
        return self._state.memory.replace(section, content)

    @property
    def _volume(self) -> Volume:
        if self._agent.volume is None:
            raise Refused("No volume is attached.", fix="RLMReActChatAgent(volume='folder')")
        return self._agent.volume

    def _keep(self, alias: str, document: Document) -> dict[str, Any]:
        self._state.documents.add(alias, document)
        return {
            "status": "ok",
            "alias": alias,
            "chars": len(document.text),
            "lines": document.lines,
        }

    def _run(self, program: dspy.Module, **inputs: Any) -> dspy.Prediction:
        found: dspy.Prediction = program(interpreter_factory=self._factory, **inputs)
        return found

    def _ask_in_parallel(self, prompts: list[str]) -> list[str]:
        rlm = self._agent.rlm
        queries = Queries(
            budget=Budget(rlm.recursion),
            workers=rlm.batch_workers,
            timeout_s=rlm.call_timeout_s,
            depth=depth(),
            sub_lm=rlm.sub_lm,
            ask_child=_no_child,
            note=lambda _: None,
        )
        return queries.llm_query_batched(prompts)


def _note(path: str) -> str:
    if path.startswith("/"):
        raise Refused(f"{path!r} leads out of the volume: use a relative path inside of it.")
    return MEMORY + path


def _no_child(query: str, context: Any) -> str:
    raise Refused("A map asks no children.")


def _trajectory(found: dspy.Prediction, *, wanted: bool) -> dict[str, Any]:
    if not wanted:
        return {}
    result: dict[str, Any] = {
        "trajectory_steps": len(found.trajectory),
        "trajectory": found.trajectory,
    }
    if found.final_reasoning:
        result["final_reasoning"] = found.final_reasoning
    return result


def _public(owner: type) -> dict[str, Callable[..., Any]]:
    return {name: value for name, value in vars(owner).items() if not name.startswith("_")}


TOOLS = _public(AgentTools)
"""Name -> function of every built-in tool."""

FILE_TOOLS = ("load_document", "list_files", "read_file_slice", "find_files")
VOLUME_TOOLS = (
    "edit_file",
    "save_buffer_to_volume",
    "load_text_from_volume",
    "memory_read",
    "memory_write",
    "memory_list",
)


def usable_tools(agent: RLMReActChatAgent) -> dict[str, Callable[..., Any]]:
    """The tools that can work: without a folder or a volume, some could only refuse."""
    idle = {*(() if agent.roots.folders else FILE_TOOLS), *(() if agent.volume else VOLUME_TOOLS)}
    return {name: function for name, function in TOOLS.items() if name not in idle}


def describe_tool(name: str, function: Callable[..., Any]) -> dspy.Tool:
    """A built-in tool as DSPy calls it; reading its annotations takes a millisecond, once.

    Args:
        name: one of `TOOLS`.
        function: the method of an `AgentTools`.
    """
    if name not in _DESCRIBED:
        described = dspy.Tool(function)
        _DESCRIBED[name] = described.model_copy(update={"func": TOOLS[name]})  # holds no agent
    return _DESCRIBED[name].model_copy(update={"func": function})


_DESCRIBED: dict[str, dspy.Tool] = {}


def list_react_tool_names() -> list[str]:
    """Names of the built-in tools, in the order in which the model is shown them."""
    return list(TOOLS)
