"""Takes secrets out of text: known values, and what looks like a key.

The last fence only: no secret is put into a box to begin with. Linear in the text; words that
merely contain the prefix of a key (`task-...`, `risk-...`) stay.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from fleet_rlm.sandbox.cut import window
from fleet_rlm.sandbox.driver import MARGIN

MIN_TEXT = 8
"""No secret, known or recognised, is shorter."""
MIN_VALUE = 8
"""Shorter values of the environment are settings, not secrets."""
_NUMBERS = frozenset({int, float, bool, type(None)})
_SECRET_NAME = re.compile(r"key|token|secret|passw(or)?d|credential", re.IGNORECASE)
_HARMLESS_NAME = re.compile(r"_(file|path|dir|name|url|helper)$", re.IGNORECASE)


class _Pattern(NamedTuple):
    name: str
    mark: str
    """A character of every match that most short texts lack; none where there is no such."""
    triggers: tuple[str, ...]
    """One of them is in every match: a cheap test before the regular expression."""
    expression: re.Pattern[str]
    group: int = 0
    """The part that is secret."""


def _starting(prefix: str, rest: str) -> re.Pattern[str]:
    """`prefix` at the start of a word, then `rest`.

    The look-behind comes after the prefix, so that the engine can search for the literal first.
    """
    return re.compile(rf"{prefix}(?<![A-Za-z0-9]{prefix}){rest}")


# `+` behind a count: what was taken is not given back, so that a failure is not tried 40 times.
# ASCII only: with \s and \d in the class each character takes four times as long.
_DIGIT = r"(?=[^\t-\r \"',;&()0-9]{0,40}+[0-9])"

_PATTERNS = (
    _Pattern(
        "pem",
        "-",
        ("-----BEGIN",),
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{1,64}-----[A-Za-z0-9+/=\s\\]*(?:-----END [A-Z0-9 ]{1,64}-----)?"
        ),
    ),
    _Pattern("api-key", "-", ("sk-",), _starting("sk-", r"[A-Za-z0-9_-]{8,}")),
    _Pattern(
        "aws-key", "A", ("AKIA", "ASIA"), _starting("A[KS]IA", r"[A-Z0-9]{16}(?![A-Za-z0-9])")
    ),
    _Pattern("github-token", "_", ("gh",), _starting("gh[pousr]_", r"[A-Za-z0-9]{16,}")),
    _Pattern("github-token", "_", ("github_pat_",), _starting("github_pat_", r"[A-Za-z0-9_]{16,}")),
    _Pattern("hf-token", "_", ("hf_",), _starting("hf_", r"[A-Za-z0-9]{12,}")),
    _Pattern("google-key", "A", ("AIza",), _starting("AIza", r"[A-Za-z0-9_-]{20,}")),
    _Pattern("slack-token", "-", ("xox",), _starting("xox[abeoprs]-", r"[A-Za-z0-9-]{10,}")),
    _Pattern(
        "modal-token",
        "-",
        ("ak-", "as-"),
        _starting("a[ks]-", r"(?=[a-z]{0,40}[A-Z0-9])[A-Za-z0-9]{12,}"),
    ),
    # What starts as one and is none is taken whole too, and kept: every character is read once.
    _Pattern(
        "jwt",
        ".",
        ("eyJ",),
        re.compile(
            r"(eyJ(?<![A-Za-z0-9]eyJ)[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*)"
            r"|eyJ(?<![A-Za-z0-9]eyJ)[A-Za-z0-9_-]*"
        ),
        1,
    ),
    _Pattern(
        "bearer",
        "",
        ("earer",),
        re.compile(rf"[Bb]earer\s{{1,3}}((?:{_DIGIT}|(?=\S{{16}}))[A-Za-z0-9._~+/=-]{{6,}})"),
        1,
    ),
    _Pattern(
        "authorization",
        "",
        ("uthorization",),
        re.compile(r"[Aa]uthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:Basic|Token)\s{1,3}(\S{6,})"),
        1,
    ),
    _Pattern("dsn", "@", ("://",), re.compile(r"://[^\s:/@]{0,100}+:([^\s@/]{3,200}+)@"), 1),
)


_GAP = r"[ \t]{0,30}+"
# Without quotes an index or a call is code that fetches a secret, not the secret: token = row[3].
_LITERAL = r"[ \t]{0,3}+(?:[\"']|(?![\w.]{0,60}+[\[(]))"
_DONE = r"(?!\[redacted:)"
_EQUALS = rf"[\"']?+{_GAP}={_LITERAL}{_DONE}([^\s\"',;&]{{4,}})"
_KEY_EQUALS = rf"[\"']?+{_GAP}={_LITERAL}{_DONE}({_DIGIT}[^\s\"',;&()]{{8,}})"
_QUOTED = rf"[\"']{_GAP}:\s{{0,3}}[\"']{_DONE}([^\"'\s]{{4,}})[\"']"
_COLON = rf"{_GAP}:[ \t]{{1,3}}{_DONE}({_DIGIT}[^\s\"',;&()]{{6,}})"
_NAMES = {
    # Names as they end, _ or - for a space. What is assigned to these is secret ...
    (_EQUALS, _QUOTED, _COLON): ("pass word", "pass wd", "pwd", "pass phrase", "client secret"),
    # ... and to these if it reads like a key: it has a digit and some length.
    (_KEY_EQUALS, _QUOTED, _COLON): (
        *("api key", "access key", "secret key", "private key", "auth key"),
        *("auth token", "access token", "refresh token", "bearer token"),
    ),
    (_KEY_EQUALS, _QUOTED): ("token", "secret"),
}
_NAMED = ("passw", "pass_", "pass-", "pwd", "phrase", "key", "token", "secret")
"""One of them is in every assignment that counts, in lower case."""


def _assigned() -> re.Pattern[str]:
    """`password = ...`, `"api_key": "..."` and the like, in lower case; the last group is secret.

    The first letters stand in front, so that the engine skips to the next one of them, and each way
    to go on begins with a letter, so that it takes one look to leave it.
    """
    ways = []
    for assignments, names in _NAMES.items():
        for name in names:
            rest = name[2:].replace(" ", "[_-]{0,2}")
            ways.append(f"{name[1]}(?<={name[:2]}){rest}(?:{'|'.join(assignments)})")
    first = {name[0] for names in _NAMES.values() for name in names}
    return re.compile(f"[{''.join(sorted(first))}](?:{'|'.join(ways)})")


_ASSIGNED = _assigned()


class Redactor:
    """Replaces secrets by `[REDACTED:name]`. Immutable; use it from any thread."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        """Know `values`, by the name to show in their place, also base64- and URL-encoded."""
        known: dict[str, str] = {}
        for name, value in (values or {}).items():
            if len(value) >= MIN_VALUE:
                known |= dict.fromkeys(_forms(value), name)
        # longest first: a secret that contains another is replaced whole
        self._known = sorted(known.items(), key=lambda item: -len(item[0]))

    @classmethod
    def from_env(cls, env: Mapping[str, str], extra: Iterable[str] = ()) -> Redactor:
        """Know the values of `env` whose names speak of secrets, and those in `extra`."""
        found = {
            name: value
            for name, value in env.items()
            if _SECRET_NAME.search(name) and not _HARMLESS_NAME.search(name)
        }
        return cls(found | {f"value-{i}": value for i, value in enumerate(extra, start=1)})

    def clean(self, text: str) -> str:
        """`text` without secrets."""
        if len(text) < MIN_TEXT:
            return text
        for value, name in self._known:
            if value in text:
                mark = f"[REDACTED:{name}]"
                # a value that reads like a word is a secret only where it stands alone
                if value.isalpha() and value.islower():
                    text = re.sub(rf"(?<!\w){value}(?!\w)", mark, text)
                else:
                    text = text.replace(value, mark)
        # Loops without calls: a run cleans a dozen texts for each model call, most of them short.
        for pattern in _PATTERNS:
            if pattern.mark in text:
                for trigger in pattern.triggers:
                    if trigger in text:
                        text = _replace(pattern, text)
                        break
        return _hide_assigned(text) if "=" in text or ":" in text else text

    def clean_data(self, value: Any) -> Any:
        """`clean` for every string in plain data, keys included."""
        if type(value) in _NUMBERS:
            return value
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, list | tuple):
            return [self.clean_data(item) for item in value]
        if isinstance(value, dict):
            return {self.clean_data(key): self.clean_data(item) for key, item in value.items()}
        return value

    def complete(self, text: str) -> int:
        """How much of the start of `text` can be cleaned whatever follows it."""
        end = text.rfind("\n") + 1
        begin = text.rfind("-----BEGIN ", 0, end)
        if begin >= 0 and "-----END " not in text[begin:end]:
            end = begin
        for value, _ in self._known:
            if "\n" in value:
                end = min(end, _start_of(value, text))
        return end

    def stream(self) -> StreamRedactor:
        """A cleaner for text that comes in pieces."""
        return StreamRedactor(self)


class StreamRedactor:
    """Cleans text that comes in pieces: whole lines only, so that no secret is cut in two.

    The start of a PEM block, or of a known value of several lines, waits for the rest of it.
    """

    HOLD = 64 << 10
    """Characters held back at most; a line that is longer is shown without its middle."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""
        self._skipping = False
        """In a line of which a part was left out already."""

    def feed(self, piece: str) -> str:
        """What may be shown by now."""
        if self._skipping:
            _, ended, piece = piece.partition("\n")
            self._skipping = not ended
        self._held += piece
        end = self._redactor.complete(self._held)
        if len(self._held) - end > self.HOLD:
            self._skipping = not self._held.endswith("\n")
            return self.flush(cut=True) + "\n[... cut ...]\n"
        ready, self._held = self._held[:end], self._held[end:]
        return self._redactor.clean(ready)

    def flush(self, *, cut: bool = False) -> str:
        """The rest; without its last part, in which a secret may be cut off, if there was more."""
        ready, self._held = self._held, ""
        if cut:
            return window(ready, 0, len(ready) - MARGIN, self._redactor.clean)
        return self._redactor.clean(ready)


def _start_of(value: str, text: str) -> int:
    """Where `text` ends in a first part of `value`; its length if it does not."""
    at = text.find(value[0], max(0, len(text) - len(value)))
    while at >= 0 and not value.startswith(text[at:]):
        at = text.find(value[0], at + 1)
    return at if at >= 0 else len(text)


def _forms(value: str) -> set[str]:
    """The value as it stands, URL-encoded and in both kinds of base64, without padding."""
    raw = value.encode("utf-8", "replace")
    encoded = {base64.b64encode(raw), base64.urlsafe_b64encode(raw)}
    return {value, quote(value, safe="")} | {form.decode().rstrip("=") for form in encoded}


def _replace(pattern: _Pattern, text: str) -> str:
    mark = f"[REDACTED:{pattern.name}]"
    if not pattern.group:
        return pattern.expression.sub(mark, text)

    def keep_rest(match: re.Match[str]) -> str:
        secret = match[pattern.group]
        if secret is None or secret.startswith("[REDACTED:"):
            return match[0]
        return _hide(match, pattern.group, mark)

    return pattern.expression.sub(keep_rest, text)


def _hide_assigned(text: str) -> str:
    lower = text.lower()
    for name in _NAMED:
        if name in lower:
            break
    else:
        return text
    # The one letter that is two in lower case would shift what is found.
    lower = text.replace("\u0130", "I").lower()
    parts, done = [], 0
    for match in _ASSIGNED.finditer(lower):
        start, end = match.span(match.lastindex or 0)
        parts += [text[done:start], "[REDACTED:assigned]"]
        done = end
    return "".join([*parts, text[done:]])


def _hide(match: re.Match[str], group: int, mark: str) -> str:
    """The match with `mark` in place of one group."""
    start, end = (position - match.start() for position in match.span(group))
    return match[0][:start] + mark + match[0][end:]
