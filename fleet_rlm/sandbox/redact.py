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

MIN_TEXT = 8
"""No secret, known or recognised, is shorter."""
MIN_VALUE = 8
"""Shorter values of the environment are settings, not secrets."""
_SECRET_NAME = re.compile(r"key|token|secret|passw(or)?d|credential", re.IGNORECASE)
_HARMLESS_NAME = re.compile(r"_(file|path|dir|name|url|helper)$", re.IGNORECASE)


class _Pattern(NamedTuple):
    name: str
    triggers: tuple[str, ...]
    """One of them is in every match, in lower case: a cheap test before the regular expression."""
    expression: re.Pattern[str]
    group: int = 0
    """The part that is secret."""


def _starting(prefix: str, rest: str) -> re.Pattern[str]:
    """`prefix` at the start of a word, then `rest`.

    The look-behind comes after the prefix, so that the engine can search for the literal first.
    """
    return re.compile(rf"{prefix}(?<![A-Za-z0-9]{prefix}){rest}")


_DIGIT = r"(?=[^\s\"',;&()]{0,40}\d)"

_PATTERNS = (
    _Pattern(
        "pem",
        ("-----begin",),
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{1,64}-----[A-Za-z0-9+/=\s\\]*(?:-----END [A-Z0-9 ]{1,64}-----)?"
        ),
    ),
    _Pattern("api-key", ("sk-",), _starting("sk-", r"[A-Za-z0-9_-]{8,}")),
    _Pattern("aws-key", ("akia", "asia"), _starting("A[KS]IA", r"[A-Z0-9]{16}(?![A-Za-z0-9])")),
    _Pattern("github-token", ("gh",), _starting("gh[pousr]_", r"[A-Za-z0-9]{16,}")),
    _Pattern("github-token", ("github_pat_",), _starting("github_pat_", r"[A-Za-z0-9_]{16,}")),
    _Pattern("hf-token", ("hf_",), _starting("hf_", r"[A-Za-z0-9]{12,}")),
    _Pattern("google-key", ("aiza",), _starting("AIza", r"[A-Za-z0-9_-]{20,}")),
    _Pattern("slack-token", ("xox",), _starting("xox[abeoprs]-", r"[A-Za-z0-9-]{10,}")),
    _Pattern(
        "modal-token",
        ("ak-", "as-"),
        _starting("a[ks]-", r"(?=[a-z]{0,40}[A-Z0-9])[A-Za-z0-9]{12,}"),
    ),
    _Pattern(
        "jwt", ("eyj",), _starting("eyJ", r"[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*")
    ),
    _Pattern(
        "bearer",
        ("bearer",),
        re.compile(rf"[Bb]earer\s{{1,3}}((?:{_DIGIT}|(?=\S{{16}}))[A-Za-z0-9._~+/=-]{{6,}})"),
        1,
    ),
    _Pattern(
        "authorization",
        ("authorization",),
        re.compile(r"[Aa]uthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:Basic|Token)\s{1,3}(\S{6,})"),
        1,
    ),
    _Pattern("dsn", ("://",), re.compile(r"://[^\s:/@]{0,100}:([^\s@/]{3,200})@"), 1),
)

# Names as they end, lower case and without _ and -; what is assigned to them is secret ...
_ALWAYS = ("password", "passwd", "pwd", "passphrase", "clientsecret")
# ... or is so if it reads like a key: it has a digit and some length.
_KEYS = (
    *("apikey", "accesskey", "secretkey", "privatekey", "authkey"),
    *("authtoken", "accesstoken", "refreshtoken", "bearertoken"),
)
_WORDS = ("token", "secret")
_ASSIGNED = re.compile(r"[=:]")
# Without quotes an index or a call is code that fetches a secret, not the secret: token = row[3].
_LITERAL = r"[ \t]{0,3}(?:[\"']|(?![\w.]{0,60}[\[(]))"
_AFTER_EQUALS = re.compile(rf"{_LITERAL}([^\s\"',;&]{{4,}})")
_KEY_AFTER_EQUALS = re.compile(rf"{_LITERAL}({_DIGIT}[^\s\"',;&()]{{8,}})")
_QUOTED = re.compile(r"\s{0,3}[\"']([^\"'\s]{4,})[\"']")
_AFTER_COLON = re.compile(rf"[ \t]{{1,3}}({_DIGIT}[^\s\"',;&()]{{6,}})")


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
        lower = text.lower()
        for pattern in _PATTERNS:
            if any(trigger in lower for trigger in pattern.triggers):
                text = _replace(pattern, text)
        return _clean_assignments(text)

    def clean_data(self, value: Any) -> Any:
        """`clean` for every string in plain data, keys included."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, list | tuple):
            return [self.clean_data(item) for item in value]
        if isinstance(value, dict):
            return {self.clean_data(key): self.clean_data(item) for key, item in value.items()}
        return value

    def stream(self) -> StreamRedactor:
        """A cleaner for text that comes in pieces."""
        return StreamRedactor(self)


class StreamRedactor:
    """Cleans text that comes in pieces: whole lines only, so that no secret is cut in two."""

    HOLD = 64 << 10
    """Characters held back at most while a line or a PEM block is open."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def feed(self, piece: str) -> str:
        """What may be shown by now."""
        self._held += piece
        end = self._held.rfind("\n") + 1
        begin = self._held.rfind("-----BEGIN ", 0, end)
        if begin >= 0 and "-----END " not in self._held[begin:end]:
            end = begin
        if len(self._held) - end > self.HOLD:
            end = len(self._held)
        ready, self._held = self._held[:end], self._held[end:]
        return self._redactor.clean(ready)

    def flush(self) -> str:
        """The rest."""
        ready, self._held = self._held, ""
        return self._redactor.clean(ready)


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
        if secret.startswith("[REDACTED:"):
            return match[0]
        start, end = (position - match.start() for position in match.span(pattern.group))
        return match[0][:start] + mark + match[0][end:]

    return pattern.expression.sub(keep_rest, text)


def _clean_assignments(text: str) -> str:
    """`password = ...`, `"api_key": "..."` and the like, found by their = and : signs."""
    pieces, done = [], 0
    for sign in _ASSIGNED.finditer(text):
        if sign.start() < done:
            continue
        rule = _rule(text[max(0, sign.start() - 32) : sign.start()], sign[0])
        match = rule.match(text, sign.end()) if rule else None
        if match and not match[1].startswith("[REDACTED:"):
            pieces += [text[done : match.start(1)], "[REDACTED:assigned]"]
            done = match.end(1)
    return "".join([*pieces, text[done:]]) if pieces else text


def _rule(before: str, sign: str) -> re.Pattern[str] | None:
    """How a secret looks after the name that `before` ends with; None if it names none."""
    name = before.rstrip(" \t")
    bare = name.rstrip("\"'")
    if bare[-1:] not in "yYnNtTdDeE":
        return None
    quoted = len(bare) < len(name)
    word = bare.lower().replace("_", "").replace("-", "")
    always, key = word.endswith(_ALWAYS), word.endswith(_KEYS)
    if not (always or key or word.endswith(_WORDS)):
        return None
    if sign == "=":
        return _AFTER_EQUALS if always else _KEY_AFTER_EQUALS
    if quoted:
        return _QUOTED
    return _AFTER_COLON if always or key else None
