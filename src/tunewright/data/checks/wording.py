"""What the texts contain: languages, control tokens and whole templates, personal data, characters
read in a wrong encoding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tunewright.core.types import Origin, Row, Sample
from tunewright.data.checks.base import TRAIN, Finding, Severity, Tally, by_share, view_of
from tunewright.data.files.mojibake import damage

# ---- languages

LOOKED_AT = 300
"""Characters of a text from which its language is told."""
FEWEST_LETTERS = 12
OTHER_WARN, OTHER_ROWS = 0.02, 5
_SCRIPTS = {
    "kana": re.compile(r"[\u3040-\u30ff]"),
    "han": re.compile(r"[\u3400-\u9fff]"),
    "hangul": re.compile(r"[\uac00-\ud7af]"),
    "latin": re.compile(r"[a-zA-Z\u00c0-\u024f]"),
    "cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "arabic": re.compile(r"[\u0600-\u06ff]"),
    "other": re.compile(r"[\u0370-\u03ff\u0590-\u05ff\u0900-\u0dff\u0e00-\u0fff]"),
}
_ENGLISH = frozenset(
    "the of and to is in that it for you with are what how this be on your a i by from an".split()
)
_EUROPEAN = frozenset(
    re.findall(
        r"\w+",
        "der die das und ist nicht ein eine zu den mit von für auf wie le la les des et est une "
        "un du que qui dans pour pas el los las y es una por con para "
        "como il di che non per una sono come o os e da do que não uma em com ve bir bu için ne "
        "nasıl ile da de het een van en dat niet się na jest nie do jak",
    )
)
_latin_word = re.compile(r"[^\W\d_]+")
_translation = re.compile(
    r"translat|翻译|译成|译为|traduc|traduis|übersetz|中文|英文|英语|汉语|法语|日语|德语|西班牙语"
    r"|\b(?:in|into|to) (?:english|chinese|french|spanish|german|japanese)\b"
    r"|\b(?:chinese|english)\b",
    re.IGNORECASE,
)
_code = re.compile(r"```|[{};]\s*$|=>|def |import |</\w+>|\bSELECT\b|https?://", re.MULTILINE)


def language_of(text: str) -> str:
    """zh, en, latin (another language in Latin letters), ja, ko, cyrillic, arabic, other; mixed; ""
    where too few letters stand."""
    sample = text[:LOOKED_AT]
    if sample.isascii():
        letters = len(_SCRIPTS["latin"].findall(sample))
        return _latin(sample) if letters >= FEWEST_LETTERS else ""
    counts = {name: len(pattern.findall(sample)) for name, pattern in _SCRIPTS.items()}
    # A Chinese character says about as much as three letters.
    weighed = {
        name: count * (3 if name in ("han", "kana") else 2 if name == "hangul" else 1)
        for name, count in counts.items()
    }
    total = sum(weighed.values())
    if total < FEWEST_LETTERS:
        return ""
    if weighed["kana"] > 0.15 * total:
        return "ja"
    name, most = max(weighed.items(), key=lambda item: item[1])
    if most < 0.6 * total:
        return "mixed"
    return _latin(sample) if name == "latin" else {"han": "zh", "hangul": "ko"}.get(name, name)


def _latin(text: str) -> str:
    words = [word.lower() for word in _latin_word.findall(text)]
    english = sum(word in _ENGLISH for word in words)
    others = sum(word in _EUROPEAN for word in words)
    return "latin" if others > english and others >= 3 else "en"


class Languages:
    """The mix of languages, and answers in another language than their question."""

    name = "languages"

    def __init__(self) -> None:
        self._questions: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._pairs = 0
        self._other = Tally()
        self._ways: Counter[str] = Counter()

    def feature(self, row: Row, sample: Sample | None) -> tuple[str, str, bool]:
        """Language of the last question, of the last answer, and whether the two were meant to
        differ."""
        view = view_of(row)
        asked, said = language_of(view.question), language_of(view.last)
        meant = asked != said and bool(
            _translation.search(view.question[:2000])
            or any(map(_translation.search, view.others))
            or _code.search(view.last[:LOOKED_AT])
        )
        return asked, said, meant

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Count a row that is trained on."""
        if side != TRAIN:
            return
        asked, said, meant = feature
        self._questions[asked] += bool(asked)
        self._answers[said] += bool(said)
        if not asked or not said or "mixed" in (asked, said):
            return
        self._pairs += 1
        # Between two languages in Latin letters the guess is too weak to accuse a row.
        if _writing(asked) != _writing(said) and not meant:
            self._other.add(origin)
            self._ways[f"{asked}-{said}"] += 1

    def findings(self) -> list[Finding]:
        """`languages` always, `other_language` where there are enough."""
        found = []
        total = sum(self._answers.values())
        if total:
            counts, asked = (dict((+c).most_common()) for c in (self._answers, self._questions))
            fields = {"answers": counts, "questions": asked, "languages": counts}
            found.append(Finding("languages", "info", total, total, [], fields))
        if self._other.count >= max(OTHER_ROWS, OTHER_WARN * self._pairs):
            ways = dict(self._ways.most_common())
            told = {"ways": ways, "languages": ways}
            found.append(self._other.finding("other_language", "warn", self._pairs, **told))
        return found


def _writing(language: str) -> str:
    return "latin" if language == "en" else language


# ---- control tokens

CONTROL = tuple(
    """
    <|im_start|> <|im_end|> <|im_sep|> <|endoftext|> <|begin_of_text|> <|end_of_text|>
    <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|> [INST] [/INST]
    <<SYS>> <</SYS>> <start_of_turn> <end_of_turn> <|user|> <|assistant|> <|system|> <|end|>
    <|observation|> [gMASK] <sop> <eop> <|User|> <|Assistant|> <｜User｜> <｜Assistant｜>
    <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <bos> <eos> <|channel|> <|message|> <|start|>
    <|return|> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> [AVAILABLE_TOOLS] [TOOL_CALLS]
    <|eot|> <|header_start|> <|header_end|> <unused0> </s>
    """.split()
)
"""Tokens that structure dialogues in well-known families of models."""
WRITTEN = frozenset(
    "<s> <think> </think> <tool_call> </tool_call> <tool_response> </tool_response>".split()
)
"""Added tokens of some models that answers may well contain."""
_TEMPLATES = re.compile(
    r"<\|im_start\|>\s*(?:system|user|assistant)|<\|start_header_id\|>\s*(?:system|user"
    r"|assistant)|\[INST\].*?\[/INST\]|<<SYS>>"
    r"|<start_of_turn>\s*(?:user|model)|<\|(?:user|system)\|>.*?<\|(?:assistant|end)\|>|<["
    r"|｜]User[|｜]>.*?<[|｜]Assistant[|｜]>"
    r"|<\|START_OF_TURN_TOKEN\|>|#{2,3} ?(?:Instruction|指令|Human"
    r"|User) ?[:：].*?#{2,3} ?(?:Response|Answer|回答|Assistant|Output) ?[:：]"
    r"|(?:^|\n)(?:Human|USER|User) ?: .*?\n\s*(?:Assistant|ASSISTANT) ?:",
    re.DOTALL,
)
_maybe_template = re.compile(
    r"<\||\[/?INST\]|<<SYS>>|<start_of_turn>|<｜|##|(?:Assistant|ASSISTANT) ?:"
)
_strike = re.compile(r"<s>[^<\[\n]{1,200}</s>")
WRONG_STOP = 0.5


class ControlTokens:
    """Control tokens that stand in the data as text, and rows that are a rendered dialogue of some
    template already.

    `own` are the control tokens of the model that will be trained; those of other families are
    looked for always, except `words`, which are tokens of this model that rows may use. A control
    token typed by a person stays text (it is neutralised). A rendered template inside a turn means
    that the data was written for another program: the model would learn to write the markup.
    """

    name = "control_tokens"

    def __init__(self, own: Iterable[str] = (), words: Iterable[str] = ()):
        strings = {
            s for s in (*CONTROL, *own) if len(s) > 2 and not s.isspace() and s not in WRITTEN
        }.difference(words)
        self._pattern = "|".join(map(re.escape, sorted(strings, key=lambda s: (-len(s), s))))
        self._compiled: re.Pattern[str] | None = None
        self._rows = 0
        self._typed, self._templates = Tally(), Tally()
        self._with_tokens = 0
        self._tokens: Counter[str] = Counter()
        self._forms: Counter[str] = Counter()

    def feature(self, row: Row, sample: Sample | None) -> tuple[tuple[str, ...], str]:
        """The control tokens of a row, and the beginning of a rendered template."""
        if self._compiled is None:
            self._compiled = re.compile(self._pattern)
        view = view_of(row)
        found: list[str] = []
        form = ""
        for text in view.all():
            if "<" in text or "[" in text:
                found += self._compiled.findall(_strike.sub("", text) if "</s>" in text else text)
            # Running text and system prompts may describe a template; a turn that contains one is
            # one.
            if (
                not form
                and view.kind == "dialogue"
                and text not in view.others
                and _maybe_template.search(text)
            ):
                match = _TEMPLATES.search(text)
                form = match.group().strip()[:24].split("\n")[0] if match else ""
        return tuple(found[:50]), form

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Count a row that is trained on."""
        if side != TRAIN:
            return
        self._rows += 1
        found, form = feature
        if form:
            self._templates.add(origin)
            self._with_tokens += bool(found)
            self._forms[form] += 1
        elif found:
            self._typed.add(origin)
            self._tokens.update(found)

    def findings(self) -> list[Finding]:
        """`wrong_template` and `control_tokens`; a row is in one of them only."""
        found = []
        if self._templates.count:
            # Headings such as "### Instruction:" are only words and can be learnt; control tokens
            # that became text are noise in every row.
            severity: Severity = "stop" if self._with_tokens >= WRONG_STOP * self._rows else "warn"
            shown = ", ".join(form for form, _ in self._forms.most_common(3))
            found.append(
                self._templates.finding("wrong_template", severity, self._rows, shown=shown)
            )
        if self._typed.count:
            shown = ", ".join(f"{token} {count}" for token, count in self._tokens.most_common(5))
            fields = {"tokens": sum(self._tokens.values()), "shown": shown}
            severity = by_share(self._typed.count, self._rows)
            found.append(self._typed.finding("control_tokens", severity, self._rows, **fields))
        return found


# ---- personal data

_email = re.compile(r"[\w.+-]{1,64}@(?P<host>[\w-]+(?:\.[\w-]+)*\.[a-zA-Z]{2,12})\b")
_EXAMPLES = re.compile(
    r"(?:^|\.)(?:example|test|email|domain|yourdomain|company|mail)\.|localhost|\.(?:invalid"
    r"|example|test)$",
    re.IGNORECASE,
)
_chinese_mobile = re.compile(r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d(?:[- ]?\d{4}){2}(?![\d.]*\d)")
_phone = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ -.]?(?:\(?\d{1,4}\)?[ -.]?){2,4}\d{2,4}|\(\d{3}\) ?\d{3}-\d{4}"
    r"|\d{3}-\d{3}-\d{4})(?![\w-])"
)
_chinese_id = re.compile(
    r"(?<!\d)[1-8]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)"
)
_card = re.compile(
    r"(?<![\d.-])(?:(?:4\d|5[1-5]|6\d)\d{2}(?:[ -]?\d{4}){3}|3[47]\d{2}[ -]?\d{6}[ -]?\d{5}"
    r"|62\d{15,17})(?![\d-]|\.\d)"
)
_digits = re.compile(r"\d(?:[ ().-]?\d){8}")
_NUMBERS = (
    ("id_number", _chinese_id),
    ("card", _card),
    ("phone", _chinese_mobile),
    ("phone", _phone),
)
ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def chinese_id_is_valid(number: str) -> bool:
    """The check character of an 18-digit identity number. Source: GB 11643-1999 (ISO 7064, MOD
    11-2)."""
    total = sum(int(d) * w for d, w in zip(number[:17], ID_WEIGHTS, strict=True))
    return "10X98765432"[total % 11] == number[17].upper()


def luhn_is_valid(number: str) -> bool:
    """The check digit of a payment card, without blanks. Source: ISO/IEC 7812-1."""
    digits = [int(d) for d in reversed(number)]
    doubled = (2 * d - 9 if d > 4 else 2 * d for d in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def personal_values(text: str) -> list[tuple[str, str]]:
    """(kind, value) of everything that seems to be an `email`, `phone`, `id_number` or `card`.
    Numbers with a check digit must have the right one."""
    found: list[tuple[str, str]] = []
    if "@" in text:
        hits = _email.finditer(text)
        found += [("email", m.group()) for m in hits if not _EXAMPLES.search(m["host"])]
    if not _digits.search(text):
        return found
    taken: list[tuple[int, int]] = []
    for kind, pattern in _NUMBERS:
        for m in pattern.finditer(text):
            bare = re.sub(r"[^\dXx]", "", m.group())
            overlaps = any(m.start() < after and first < m.end() for first, after in taken)
            if not overlaps and _is_real(kind, bare):
                taken.append(m.span())
                found.append((kind, m.group()))
    return found


def personal_data(text: str) -> Counter[str]:
    """How many of each kind a text seems to hold."""
    return Counter(kind for kind, _ in personal_values(text))


def _is_real(kind: str, bare: str) -> bool:
    if kind == "id_number":
        return chinese_id_is_valid(bare)
    if kind == "card":
        return 13 <= len(bare) <= 19 and len(set(bare)) > 3 and luhn_is_valid(bare)
    # Numbers for films and examples: 555, 123456789, one digit repeated.
    return (
        7 <= len(bare) <= 15
        and "555" not in bare[:6]
        and "123456" not in bare
        and len(set(bare)) > 3
    )


class Personal:
    """E-mail addresses, telephone numbers, Chinese identity numbers and payment cards."""

    name = "personal"

    def __init__(self) -> None:
        self._rows = 0
        self._found = Tally()
        self._kinds: Counter[str] = Counter()

    def feature(self, row: Row, sample: Sample | None) -> dict[str, int]:
        """Counts by kind."""
        counts: Counter[str] = Counter()
        for text in view_of(row).all():
            counts.update(personal_data(text))
        return dict(counts)

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Count a row of either side: the held-out rows lie in the run folder too."""
        self._rows += 1
        if feature:
            self._found.add(origin)
            self._kinds.update(feature)

    def findings(self) -> list[Finding]:
        """`personal_data`."""
        if not self._found.count:
            return []
        kinds = dict(self._kinds.most_common())
        shown = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        severity = by_share(self._found.count, self._rows)
        if kinds.keys() & {"id_number", "card"}:
            severity = "warn"
        told = {"kinds": kinds, "shown": shown}
        return [self._found.finding("personal_data", severity, self._rows, **told)]


# ---- encoding


class Encodings:
    """Texts that were read in a wrong encoding before they were written to this file."""

    name = "encodings"

    def __init__(self) -> None:
        self._rows = 0
        self._repairable, self._lost = Tally(), Tally()

    def feature(self, row: Row, sample: Sample | None) -> int:
        """0 sound, 1 everything can be brought back, 2 something is lost."""
        kinds = {damage(text) for text in view_of(row).all()}
        return 2 if "lost" in kinds else 1 if "repairable" in kinds else 0

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Count a row of either side."""
        self._rows += 1
        if feature:
            (self._repairable if feature == 1 else self._lost).add(origin)

    def findings(self) -> list[Finding]:
        """`mojibake` and `mojibake_lost`."""
        found = []
        for key, tally in (("mojibake", self._repairable), ("mojibake_lost", self._lost)):
            if tally.count:
                found.append(tally.finding(key, by_share(tally.count, self._rows), self._rows))
        return found
