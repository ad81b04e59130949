"""A tokenizer with its chat template, read with `tokenizers` and `jinja2` alone: what rendering
needs, without loading Transformers or torch.

`Light.of_folder` reads the folder as Transformers' AutoTokenizer does (tests compare ids and text),
and raises NotLight with the reason where it cannot be sure of that: no tokenizer.json, code in the
folder, or a tokenizer class that builds another pipeline than the file holds. `Light.of` takes a
tokenizer that Transformers loaded; `state` and `Light.from_state` carry one to another process as
plain text.

Templates run in jinja's sandbox with the names Transformers gives them. Source: Transformers 5.23,
`chat_template_utils` and `tokenization_utils_base`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunewright.core.errors import ModelError, first_line, problem, raise_all
from tunewright.core.telling import silent
from tunewright.core.words import say
from tunewright.sources.remote_code import place_of
from tunewright.sources.vet import problems_of
from tunewright.text.template import compiled, plain_data, with_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PLAIN_CLASSES = {"TokenizersBackend", "PreTrainedTokenizer"}
"""Tokenizer classes (without `Fast`) that take tokenizer.json as it is."""
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BUILT = {
    "Qwen2Tokenizer": (
        {"type": "NFC"},
        [
            {
                "type": "Split",
                "pattern": {"Regex": QWEN_WORDS},
                "behavior": "Isolated",
                "invert": False,
            },
            {**_BYTE_LEVEL, "use_regex": False},
        ],
    ),
    "GPT2Tokenizer": (None, [{**_BYTE_LEVEL, "use_regex": True}]),
}
"""Classes that build their own pipeline: its normaliser and pre-tokenizers. A file with the same
ones gives the same ids."""
DECIDED_BY_MODEL = {"qwen2": "Qwen2Tokenizer", "phi3": "TokenizersBackend"}
"""Model types whose class AutoTokenizer takes instead of the one that the folder states."""
UNSURE_MODELS = re.compile(
    r"arctic|chatlm|ernie4_5(_moe)?|fuyu|h2ovl_chat|hyperclovax|internlm[23]|jamba|llava(_next)?"
    r"|minicpm3|minicpmv|minimax_m2|ministral3?|mistral3?|mixtral|molmo|nemotron|phi3_v|phimoe"
    r"|pixtral|qwen3_5(_moe)?|step3_vl|voxtral"
)
"""Model types for which AutoTokenizer decides by rules of their own."""


class NotLight(Exception):
    """Why a folder's tokenizer must be read with Transformers."""


class Light:
    """A tokenizer. The names are those of Transformers, as far as rendering and tokenising use
    them."""

    def __init__(
        self, backend: Any, special: Mapping[str, str], chat_template: str | dict[str, str] | None
    ):
        """`backend` is a `tokenizers.Tokenizer` of its own: its truncation and padding are switched
        off. `special` maps `eos_token` ... to tokens."""
        backend.no_truncation()
        backend.no_padding()
        self.backend_tokenizer = backend
        self.special_tokens_map = dict(special)
        self.chat_template = chat_template

    # ---- where one comes from

    @classmethod
    def of(cls, tokenizer: Any) -> Light | None:
        """The same tokenizer without Transformers, or None for one that does not run on
        `tokenizers`."""
        if isinstance(tokenizer, Light):
            return tokenizer
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer) or getattr(tokenizer, "split_special_tokens", False):
            return None
        return cls(
            Tokenizer.from_str(backend.to_str()),
            tokenizer.special_tokens_map,
            tokenizer.chat_template,
        )

    @classmethod
    def of_folder(cls, folder: Path) -> Light:
        """The tokenizer of a model folder, as AutoTokenizer reads it. Raises NotLight with the
        reason where only Transformers can."""
        from tokenizers import AddedToken, Tokenizer

        folder = Path(folder)
        settings, text = (
            _json_of(folder / "tokenizer_config.json"),
            _text_of(folder / "tokenizer.json"),
        )
        if text is None:
            raise NotLight("tokenizer.json")
        parsed = _parsed(text)
        _require_plain(folder, settings, parsed)
        named, extra, added = _special_tokens(folder, settings, parsed)
        try:
            backend = Tokenizer.from_str(text)
        except Exception as error:  # whatever the library says about a broken file
            raise NotLight(str(error).splitlines()[0][:160]) from error
        backend.add_tokens([AddedToken(**token) for token in added])
        there = {token.content for token in backend.get_added_tokens_decoder().values()}
        new = [t for t in dict.fromkeys([*named.values(), *extra]) if t not in there]
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in new])
        return cls(backend, named, _template_of(folder, settings))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Light:
        """What `state` described."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(state["backend"]), state["special"], state["template"])

    def state(self) -> dict[str, Any]:
        """Everything about it, in JSON."""
        return {
            "backend": self.backend_tokenizer.to_str(),
            "special": self.special_tokens_map,
            "template": self.chat_template,
        }

    def fingerprint(self, state: Mapping[str, Any] | None = None) -> str:
        """SHA-256 of everything that decides ids and text: equal for two tokenizers that cannot
        differ. `state` is what `state()` gave, where it is at hand."""
        import tokenizers

        text = json.dumps(
            [state or self.state(), tokenizers.__version__], sort_keys=True, ensure_ascii=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    # ---- tokens

    @cached_property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Added tokens by id."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    @property
    def all_special_tokens(self) -> list[str]:
        """Tokens with a name, and the added ones that are marked special."""
        return list(
            dict.fromkeys(
                [
                    *self.special_tokens_map.values(),
                    *(t.content for t in self.added_tokens_decoder.values() if t.special),
                ]
            )
        )

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        # `eos_token`, `eos_token_id` and their like: None where the model has none.
        if name.removesuffix("_id") in NAMED:
            token = self.special_tokens_map.get(name.removesuffix("_id"))
            return token if name in NAMED or token is None else self.convert_tokens_to_ids(token)
        raise AttributeError(name)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or of each of several; the unknown token's for one that does not
        exist."""
        if tokens is None:
            return None
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.backend_tokenizer.token_to_id(tokens)
        if found is not None:
            return found
        unknown = self.special_tokens_map.get("unk_token")
        return None if unknown is None else self.backend_tokenizer.token_to_id(unknown)

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The token of an id, or of each of several."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(int(i)) for i in ids]

    def encode(self, text: str, add_special_tokens: bool = True, **ignored: Any) -> list[int]:
        """Ids of a text; control tokens in it are meant."""
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text, add_special_tokens)}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **ignored: Any) -> str:
        """The text of ids."""
        return str(
            self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        )

    # ---- the template

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The template's source: the given one, by name or as it is, else the model's; of several
        the one for tools where there are any."""
        own = self.chat_template
        if isinstance(own, dict):
            name = (
                chat_template
                if chat_template is not None
                else "tool_use"
                if tools is not None and "tool_use" in own
                else "default"
            )
            if name in own:
                return own[name]
            if chat_template is None:
                raise ValueError(f"several chat templates and no default: {sorted(own)}")
        found = chat_template if chat_template is not None else own
        if not isinstance(found, str):
            raise ValueError("no chat template")
        return found

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Any = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> Any:
        """The template's text of a dialogue, or its ids."""
        source = self.get_chat_template(chat_template, tools)
        if not messages:
            raise ValueError("a dialogue without messages")
        chat = [
            with_reasoning({k: v for k, v in plain_data(m).items() if v is not None})
            for m in messages
        ]
        values = {**self.special_tokens_map, **plain_data(variables)}
        text = compiled(source).render(
            messages=chat,
            tools=plain_data(tools),
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **values,
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text


def load_light(folder: Path) -> tuple[Any, str | None]:
    """The tokenizer of a folder: a `Light`, or Transformers' with the reason why it had to be.
    Raises ModelError as `load_tokenizer` does.

    A `Light` runs nothing of the folder but its template, in the sandbox; what a folder may hold is
    judged where its weights are read.
    """
    try:
        return Light.of_folder(folder), None
    except NotLight as reason:
        return load_tokenizer(folder), str(reason)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises ModelError when the configuration asks for code or no
    tokenizer can be built. No network."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    kind: Literal["model", "adapter"] = "model" if (folder / "config.json").is_file() else "adapter"
    place = place_of(folder)
    raise_all(problems_of(place.folder, kind=kind, weights=False), ModelError)
    try:
        with silent():
            return AutoTokenizer.from_pretrained(
                str(place.folder), local_files_only=True, trust_remote_code=place.tokenizer
            )
    except Exception as e:
        # Without a file to build from, Transformers lists every way it knows, over several lines.
        is_missing = not any(
            re.search(r"token|vocab|merges|spiece|\.model$|\.tiktoken$", path.name)
            for path in Path(place.folder).iterdir()
        )
        cause = say("tokenizer.no_file") if is_missing else first_line(e)
        raise ModelError(problem("E-MODEL-31", str(folder), cause=cause)) from e


# ---- files


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise NotLight(str(error)) from error
    return found if isinstance(found, dict) else {}


def _json_of(path: Path) -> dict[str, Any]:
    text = _text_of(path)
    return _parsed(text) if text is not None else {}


def _require_plain(folder: Path, settings: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    """Raise NotLight unless AutoTokenizer would use the pipeline of tokenizer.json as it stands."""
    config = _json_of(folder / "config.json")
    model_type = str(config.get("model_type", ""))
    if (
        "auto_map" in settings
        or "fast_tokenizer_files" in settings
        or "auto_map" in config.get("tokenizer_config", {})
    ):
        raise NotLight("auto_map")
    if settings.get("split_special_tokens"):
        raise NotLight("split_special_tokens")
    if UNSURE_MODELS.fullmatch(model_type):
        raise NotLight(model_type)
    stated = str(
        settings.get("tokenizer_class") or config.get("tokenizer_class") or ""
    ).removesuffix("Fast")
    name = DECIDED_BY_MODEL.get(model_type, stated)
    if name in PLAIN_CLASSES:
        return
    if name not in BUILT:
        raise NotLight(name or "tokenizer_class")
    normalizer, words = BUILT[name]
    model, own = tokenizer.get("model", {}), tokenizer.get("pre_tokenizer") or {}
    own_words = own.get("pretokenizers", [own]) if isinstance(own, dict) else []
    same_model = model.get("type") == "BPE" and not any(
        model.get(k) for k in ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
    )
    plain_pieces = not model.get("continuing_subword_prefix") and not model.get(
        "end_of_word_suffix"
    )
    decodes_bytes = (tokenizer.get("decoder") or {}).get("type") == "ByteLevel"
    if not (
        same_model
        and plain_pieces
        and decodes_bytes
        and tokenizer.get("normalizer") == normalizer
        and _bare(own_words) == _bare(words)
    ):
        raise NotLight(f"{name}: another pipeline")


def _bare(words: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # trim_offsets moves character positions only, which nobody here reads.
    return [{k: v for k, v in one.items() if k != "trim_offsets"} for one in words]


def _special_tokens(
    folder: Path, settings: dict[str, Any], tokenizer: dict[str, Any]
) -> tuple[dict[str, str], list[str], list[dict[str, Any]]]:
    """Named tokens, further special ones, and the added tokens as AddedToken takes them, by id.
    `added_tokens_decoder` replaces special_tokens_map.json."""
    decoder = settings.get("added_tokens_decoder")
    merged = dict(settings)
    if decoder is None:
        merged |= _json_of(folder / "special_tokens_map.json")
        if (folder / "added_tokens.json").is_file() and tokenizer.get("added_tokens") is None:
            raise NotLight("added_tokens.json")
    extra = merged.get("extra_special_tokens") or merged.get("additional_special_tokens") or []
    named = {
        k: _content(v)
        for k, v in merged.items()
        if k.endswith("_token") and isinstance(v, (str, dict)) and _content(v)
    }
    if isinstance(extra, dict):
        named |= {k: _content(v) for k, v in extra.items()}
        extra = []
    ordered = {k: named[k] for k in NAMED if k in named}
    keys = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    added = [
        {k: v for k, v in token.items() if k in keys}
        for _, token in sorted((decoder or {}).items(), key=lambda item: int(item[0]))
    ]
    return (
        ordered | {k: v for k, v in named.items() if k not in ordered},
        [_content(t) for t in extra],
        added,
    )


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _template_of(folder: Path, settings: dict[str, Any]) -> str | dict[str, str] | None:
    """A file goes before the configuration. chat_template.json, which belongs to processors, is
    read where nothing else states a template."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {
        path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    found = {
        name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()
    }
    if found:
        return found["default"] if list(found) == ["default"] else found
    stated = settings.get("chat_template")
    if isinstance(stated, list):
        return {str(one["name"]): str(one["template"]) for one in stated}
    if stated is None:
        stated = _json_of(folder / "chat_template.json").get("chat_template")
    return stated if isinstance(stated, (str, dict)) else None
