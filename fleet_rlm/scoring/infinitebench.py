"""InfiniteBench's own scoring rules, bug for bug.

Source: OpenBMB/InfiniteBench 88b3daa (MIT), src/compute_scores.py. `fleet-eval conformance`
reproduces the published table with them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from fleet_rlm.scoring.squad import f1, token_f1

Label = str | int | float
_DIGITS = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"\d+\.\d+|\d+")
_CHINESE = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_NO_MARKS = str.maketrans("", "", _CHINESE + string.punctuation)


def first_digits(output: str, gold: Sequence[Label]) -> float:
    """Passkey and number string: the first run of digits is the gold one."""
    found = _DIGITS.search(output)
    return float(found is not None and found[0] == gold[0])


def key_value(output: str, gold: Sequence[Label]) -> float:
    """The gold value is one of the words, with \\n:"'.,?!{} read as spaces."""
    return float(gold[0] in _words(output, "\n:\"'.,?!{}"))


def code_run(output: str, gold: Sequence[Label]) -> float:
    """The last word is the gold integer."""
    words = _words(output.strip(), "\n.`'\":")
    try:
        return float(bool(words) and int(words[-1]) == int(gold[0]))
    except ValueError:
        return 0.0


def code_debug(output: str, gold: Sequence[Label]) -> float:
    """The answer begins with the gold letter, or what follows a phrase does.

    Args:
        output: the model's whole answer.
        gold: name of the faulty function, then its letter.
    """
    name, letter = map(str, gold)
    text = output.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    for mark in ("\n", "`", "'", '"', "-", "*", "Option", "option"):
        text = text.replace(mark, " ")
    text = _single_spaces(text)
    for phrase in ("answer is:", "is:", "answer:", "correct option is:"):
        _, found, tail = text.partition(phrase)
        if found:
            return float(tail[1:].startswith((letter, name)) if tail else False)
    return 0.0


def choice(output: str, gold: Sequence[Label]) -> float:
    """The first letter, else the whole text, else what follows a phrase, else a lone letter.

    Args:
        output: the model's whole answer.
        gold: text of the right option, then its letter.
    """
    text = output.strip()
    right = tuple(map(str, gold))
    if not text:
        return 0.0
    if text[0] in "ABCD":
        return float(text[0] in right)
    if text in right:
        return 1.0
    for mark in "\n\"'.,?!{}":
        text = text.replace(mark, " ")
    text = _single_spaces(text)
    for phrase in ("answer is:", "answer:", "answer is", "option is"):
        _, found, tail = text.partition(phrase)
        if found:
            return float(tail[1:].startswith(right) if tail else False)
    lone = next((word for word in text.split() if word in "ABCD"), None)
    return float(lone in right)


def dialogue(output: str, gold: Sequence[Label]) -> float:
    """The first gold name, in capitals, is a word of the answer; its other forms do not count."""
    return float(gold[0] in _words(output.upper(), "\n:\"'.,?!{}"))


def question_english(output: str, gold: Sequence[Label]) -> float:
    """Best token F1 over the gold answers, SQuAD's normalization."""
    return token_f1(output, [str(answer) for answer in gold])


def question_chinese(output: str, gold: Sequence[Label]) -> float:
    """Best F1 over characters, without punctuation and spaces."""
    said = Counter(_characters(output))
    return max(f1(said, Counter(_characters(str(answer)))) for answer in gold)


def math_find(output: str, gold: Sequence[Label]) -> float:
    """The first number is the gold one."""
    found = _NUMBER.search(output)
    return float(found is not None and float(found[0]) == float(gold[0]))


def math_calc(output: str, gold: Sequence[Label], *, skip: int = 0) -> float:
    """Share of the gold values that the answer's integers give, in order, from the start.

    Args:
        output: the model's whole answer.
        gold: the intermediate values.
        skip: integers to pass over first; the benchmark passes over one of GPT-4's.
    """
    said = [int(text) for text in _DIGITS.findall(output)][skip:]
    right = 0
    for value, wanted in zip(said, gold, strict=False):
        if value != int(wanted):
            break
        right += 1
    return right / len(gold)


RULES: dict[str, Callable[[str, Sequence[Label]], float]] = {
    "passkey": first_digits,
    "number_string": first_digits,
    "kv_retrieval": key_value,
    "longdialogue_qa_eng": dialogue,
    "longbook_choice_eng": choice,
    "longbook_qa_eng": question_english,
    "longbook_qa_chn": question_chinese,
    "math_find": math_find,
    "math_calc": math_calc,
    "code_run": code_run,
    "code_debug": code_debug,
}
"""Task -> its rule, answer and gold answers to a score in [0, 1]."""


def _words(text: str, marks: str) -> list[str]:
    for mark in marks:
        text = text.replace(mark, " ")
    return text.split()


def _single_spaces(text: str) -> str:
    return re.sub(" +", " ", text)


def _characters(text: str) -> str:
    return "".join(text.lower().translate(_NO_MARKS).split())
