"""Core memory: small named blocks of text that stand in every prompt of a chat."""

from __future__ import annotations

from collections.abc import Mapping

from fleet_rlm.program.agent.roots import Refused

LIMITS: Mapping[str, int] = {"persona": 2_000, "human": 2_000, "scratchpad": 1_000}
"""Block -> characters it may hold."""


class CoreMemory:
    """The blocks of one chat, empty at first.

    Too much text is refused, never cut: the caller must summarise, because only it knows what
    matters. `append` and `replace` answer in words, refusals included, as a model reads them.
    """

    def __init__(self) -> None:
        self._blocks = dict.fromkeys(LIMITS, "")

    def append(self, section: str, content: str) -> str:
        """Add a line to a block; the line break counts."""
        if section not in self._blocks:
            return self._unknown(section)
        old = self._blocks[section]
        length = len(old) + 1 + len(content)
        if length > LIMITS[section]:
            return (
                f"Error: Appending content would exceed limit for '{section}' "
                f"({length} > {LIMITS[section]}). Please summarize or replace."
            )
        self._blocks[section] = f"{old}\n{content}" if old else content
        return f"Appended to '{section}'. New content length: {len(self._blocks[section])} chars."

    def replace(self, section: str, content: str) -> str:
        """Give a block new content."""
        if section not in self._blocks:
            return self._unknown(section)
        if len(content) > LIMITS[section]:
            return (
                f"Error: Content exceeds limit for '{section}' "
                f"({len(content)} > {LIMITS[section]})."
            )
        self._blocks[section] = content
        return f"Updated block '{section}'."

    def render(self) -> str:
        """All blocks, as a prompt shows them."""
        return "\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in self._blocks.items())

    def to_json(self) -> dict[str, str]:
        """Block -> content; a copy."""
        return dict(self._blocks)

    @classmethod
    def from_json(cls, blocks: Mapping[str, str]) -> CoreMemory:
        """The memory that `to_json` described; blocks that are left out are empty.

        Raises:
            Refused: an unknown block or one over its limit.
        """
        memory = cls()
        for section, content in blocks.items():
            answer = memory.replace(section, content)
            if answer.startswith("Error: "):
                raise Refused(answer.removeprefix("Error: "))
        return memory

    def _unknown(self, section: str) -> str:
        return f"Error: Core memory block '{section}' does not exist. Available: {list(LIMITS)}"
