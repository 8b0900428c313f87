"""What is taken out of texts, and what stays."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm.sandbox.redact import Redactor

PLAIN = Redactor()
KEY = "Zx9kQ2mB7vN4tR8w"
SECRETS = {
    "openai": f"sk-proj-{KEY}",
    "anthropic": f"sk-ant-api03-{KEY}_{KEY}",
    "bearer": f"Bearer {KEY}",
    "json": f'{{"api_key": "{KEY}"}}',
    "json password": '{"password": "hunter2"}',
    "password": "password=hunter2",
    "assigned": f"OPENAI_API_KEY={KEY}",
    "quoted": f"MODAL_TOKEN_SECRET = '{KEY}'",
    "yaml": f"api_key: {KEY}",
    "toml": f'client_secret = "{KEY}"',
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "github": f"ghp_{KEY}{KEY}",
    "github fine": f"github_pat_{KEY}_{KEY}",
    "hugging face": f"hf_{KEY}{KEY}",
    "google": f"AIza{KEY}{KEY}abc",
    "modal id": f"ak-{KEY}",
    "modal secret": f"as-{KEY}",
    "slack": f"xoxb-1234567890-{KEY}",
    "jwt": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{KEY}",
    "dsn": f"postgres://user:{KEY}@db.example/x",
    "header": f"Authorization: Basic {KEY}",
    "pem": f"-----BEGIN PRIVATE KEY-----\n{KEY}\n{KEY}\n-----END PRIVATE KEY-----",
}
HARMLESS = [
    "task-abcdefghijkl",
    "risk-assessment-report",
    "token = words[10:12]",
    "secret = text[1000:2000]",
    "password = row[3].strip()",
    "desk-top-publishing and ask-me-anything-now",
    "The bearer of this letter; bearer certificates",
    "max_tokens=100000, tokens: 12345678, num_keys=8",
    "monkey = donkey_and_turkey_together",
    "the password is not here; a token of love",
    "https://example.org:8080/path?query=1 and mailto:someone@example.org",
    "The special magic number for otter-heron is 48291733.",
    "the secret code: 48291733",
    "has-a-very-long-hyphenated-name-indeed",
    "key: value",
    "0123456789abcdef0123456789abcdef",
]


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS.keys())
def test_secrets_go(text: str) -> None:
    clean = PLAIN.clean(f"before {text} after")
    assert KEY not in clean
    assert "hunter2" not in clean
    assert "EXAMPLE" not in clean
    assert "[REDACTED:" in clean
    assert clean.startswith("before ")
    assert clean.endswith(" after")


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str) -> None:
    assert PLAIN.clean(text) == text


def test_values_of_the_environment() -> None:
    env = {
        "SERVICE_TOKEN": "a b/c+d&e=f!",
        "DB_PASSWORD": "swordfish",
        "SHORT_KEY": "abc",
        "PATH": "/usr/local/bin",
        "SSH_KEY_PATH": "/home/me/.ssh/id",
    }
    redactor = Redactor.from_env(env, extra=["given-value"])
    value = env["SERVICE_TOKEN"].encode()
    for form in (
        env["SERVICE_TOKEN"],
        base64.b64encode(value).decode(),
        "a%20b%2Fc%2Bd%26e%3Df%21",
    ):
        assert redactor.clean(f"<{form}>").startswith("<[REDACTED:SERVICE_TOKEN]")
    assert redactor.clean("swordfish, swordfishes") == "[REDACTED:DB_PASSWORD], swordfishes"
    assert redactor.clean("given-value") == "[REDACTED:value-1]"
    untouched = "abc /usr/local/bin /home/me/.ssh/id"
    assert redactor.clean(untouched) == untouched


def test_plain_data_is_cleaned_inside() -> None:
    data = {"a": [SECRETS["openai"], 1, None], SECRETS["aws"]: True}
    assert PLAIN.clean_data(data) == {
        "a": ["[REDACTED:api-key]", 1, None],
        "[REDACTED:aws-key]": True,
    }


def test_a_web_token_is_found_behind_what_looks_like_one() -> None:
    token = SECRETS["jwt"]
    for before in ("AeyJaaa-", "_eyJ.", "eyJ-", "eyJabcdef. "):
        assert KEY not in PLAIN.clean(before + token)
        assert "eyJzdWIi" not in PLAIN.clean(before + token)


@pytest.mark.parametrize(
    "text",
    [f"api-key={KEY}", f"API__KEY = {KEY}", f'"AccessToken" : "{KEY}"', f"auth_token: {KEY}"],
)
def test_spellings_of_names(text: str) -> None:
    assert KEY not in PLAIN.clean(text)


@given(st.data())
def test_pieces_are_cleaned_as_the_whole(data: st.DataObject) -> None:
    text = "\n".join(f"line {i} {secret}" for i, secret in enumerate(SECRETS.values())) + "\nend"
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    stream = PLAIN.stream()
    out = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        out += stream.feed(text[start:end])
    assert out + stream.flush() == PLAIN.clean(text)


@pytest.mark.parametrize("line", ["{{\n{}\n}}", "{} " * 9_000])
def test_no_part_of_a_long_secret_is_shown_in_pieces(line: str) -> None:
    """One of several lines is held back until it is complete; of an endless line, the end is."""
    secret = "\n".join([KEY] * 3)
    redactor = Redactor({"KEY": line.format(*[secret] * 9_000) if "\n" in line else KEY})
    text = "first\n" + line.format(*[secret if "\n" in line else KEY] * 9_000) + "\nlast\n"
    for step in (7, 4_000, 70_000):
        stream = redactor.stream()
        pieces = [stream.feed(text[at : at + step]) for at in range(0, len(text), step)]
        shown = "".join(pieces) + stream.flush()
        assert [KEY[i : i + 4] for i in range(12) if KEY[i : i + 4] in shown] == []
        assert shown.startswith("first\n")
        assert shown.endswith("last\n")


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = PLAIN.clean(text)
    assert PLAIN.clean(once) == once


@pytest.mark.parametrize(
    "unit",
    [
        *("plain words, nothing else. ", "sk-", "eyJa.", "token=", "://a:", "password: x "),
        *("Bearer ", "-----BEGIN ", "-----BEGIN A-----", "api_key", "ak-a", "secret_key='"),
        *("Authorization: ", "_eyJ", "-eyJaaaaa.", "token = ", "secret_", "'token':'", "password"),
    ],
)
def test_time_is_linear(unit: str) -> None:
    """Four times the text in about four times the time; sixteen would be quadratic."""

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        start = time.process_time()
        PLAIN.clean(text)
        return time.process_time() - start

    small = min(seconds(200_000) for _ in range(3))
    assert min(seconds(800_000) for _ in range(2)) < 10 * small + 0.05
