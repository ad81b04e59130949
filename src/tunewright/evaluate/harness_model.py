"""Our engine as a model of lm-eval: what its tasks ask for is computed as `evaluate` computes it.

Imported only where lm-eval is installed (`harness.py` looks). Text becomes tokens as in lm-eval's
own model for Transformers, so scores are the same numbers; every kind of run and adapter answers as
itself, contexts are computed once for all their continuations, and generation is batched by our
writer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine.decoding.batch import Ask
from tunewright.engine.decoding.drawing import Sampling
from tunewright.evaluate.answer_table import about
from tunewright.evaluate.continuations import Pair, Scorer, encode, encode_pairs
from tunewright.evaluate.kept import KEY, Kept, name_of

PAIRS_AT_ONCE, ASKS_AT_ONCE = 4096, 256
"""What is measured before it is kept: a kill loses no more."""
USUAL_TOKENS = 256
"""Tokens of an answer where a task names no number: lm-eval's own."""


class EngineLM(TemplateLM):
    """A model opened by Tunewright, as lm-eval asks it."""

    def __init__(self, scorer: Scorer, tell: Tell, table: Kept | None = None):
        super().__init__()
        self.scorer, self.tell, self.opened = scorer, tell, scorer.opened
        self.table = table or Kept(None)
        self.who = about(self.opened) if self.table.path is not None else None
        self.tokenizer = self.opened.tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text without a context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int:
        """Tokens of the context; a learnt prompt has taken its own."""
        return self.scorer.context

    @property
    def max_gen_toks(self) -> int:
        return USUAL_TOKENS

    @property
    def device(self) -> Any:
        return torch.device(self.opened.world.device)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of raw text."""
        return encode(self.tokenizer, [string], special=add_special_tokens)[0]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A dialogue as text, by the model's own template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # ---- scores

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each continuation."""
        pairs = [self._pair(*request.args) for request in requests]
        found = self._scored(pairs)
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, one)
        return found

    def _pair(self, context: str, continuation: str) -> Pair:
        if context.strip():
            return encode_pairs(self.tokenizer, context, [continuation])[0]
        ids = self.tok_encode(context + continuation, add_special_tokens=False)
        if self.prefix_token_id == ids[0]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def _scored(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """The scores of the table, and of the others, which are kept piece by piece."""
        what = say("evaluate.scoring")
        names = [self._name(pair) for pair in pairs]
        known = [self.table.find(name) for name in names]
        found = [None if one is None else (one["logprob"], one["greedy"]) for one in known]
        open_ = [i for i, one in enumerate(found) if one is None]
        self.tell.start(what)
        for start in range(0, len(open_), PAIRS_AT_ONCE):
            places = open_[start : start + PAIRS_AT_ONCE]
            before = len(pairs) - len(open_) + start

            def told(done: int, before: int = before) -> None:
                self.tell.progress(what, before + done, len(pairs))

            scores = self.scorer.score([pairs[i] for i in places], told)
            for i, one in zip(places, scores, strict=True):
                found[i] = one
            self.table.add(
                {"logprob": one[0], "greedy": one[1], KEY: names[i]}
                for i, one in zip(places, scores, strict=True)
            )
        self.tell.finish()
        return [one for one in found if one is not None]

    def _name(self, asked: Any) -> str:
        """The name of what is asked in the table."""
        return "" if self.who is None else name_of(self.who, asked)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._scored([(context, continuation) for _, context, continuation in requests])

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, in windows of the context where they are longer."""
        pairs: list[Pair] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                context, continuation = utils.make_disjoint_window(window)
                pairs.append((list(context), list(continuation)))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, (score, _) in zip(owner, self._scored(pairs), strict=True):
            totals[number] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # ---- answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to the first of each task's stop texts."""
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        asks, stops = [], []
        for number, request in enumerate(requests):
            context, how = request.args
            settings = normalize_gen_kwargs(how, self.max_gen_toks)
            until = handle_stop_sequences(settings.pop("until", None), eos=end)
            asks.append(self._ask(context, settings, until, number))
            stops.append(until)
        answers = self._written(asks, stops)
        for request, text in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return answers

    def _written(self, asks: list[Ask], stops: list[list[str]]) -> list[str]:
        """The answers of the table, and the others, which are kept piece by piece."""
        names = [
            self._name([ask.prompt, ask.limit, until, vars(ask.sampling), number])
            for number, (ask, until) in enumerate(zip(asks, stops, strict=True))
        ]
        known = [self.table.find(name) for name in names]
        found = [None if one is None else str(one["answer"]) for one in known]
        open_ = [i for i, one in enumerate(found) if one is None]
        what, model = say("evaluate.answering"), self.opened.answering
        self.tell.start(what)
        for start in range(0, len(open_), ASKS_AT_ONCE):
            places = open_[start : start + ASKS_AT_ONCE]
            for i, (one,) in zip(
                places, model.writer.write([asks[i] for i in places]), strict=True
            ):
                ids = [token for token in one.tokens if token not in model.writer.stop_ids]
                text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
                found[i] = str(
                    postprocess_generated_text(text, stop=stops[i], think_end_token=None)
                )
            self.table.add({"answer": found[i], KEY: names[i]} for i in places)
            done = len(asks) - len(open_) + start + len(places)
            self.tell.progress(what, done, len(asks))
        self.tell.finish()
        return [text for text in found if text is not None]

    def _ask(self, context: str, settings: dict[str, Any], until: list[str], number: int) -> Ask:
        limit = int(settings["max_gen_toks"])
        if limit >= self.max_length:
            limit = self.max_length // 2
        prompt = self.tok_encode(context)[-(self.max_length - limit) :]
        temperature = float(settings.get("temperature") or 0.0)
        sampled = settings.get("do_sample", temperature > 0)
        how = Sampling(
            (temperature or 1.0) if sampled else 0.0,
            float(settings.get("top_p") or 1.0),
            int(settings.get("top_k") or 0),
        )
        luck = torch.Generator().manual_seed(number)
        return Ask(
            prompt,
            limit,
            sampling=how,
            luck=torch.rand(1, limit, generator=luck, dtype=torch.float64),
            on_token=self._watch(until),
        )

    def _watch(self, until: list[str]) -> Callable[[int, int], bool]:
        """Whether an answer goes on: until one of the stop texts stands at its end."""
        written: list[int] = []
        longest = max((len(one) for one in until), default=0)

        def go_on(_: int, token: int) -> bool:
            written.append(token)
            # A character is at most four tokens in the vocabularies that are in use.
            tail = str(self.tokenizer.decode(written[-4 * longest - 8 :], skip_special_tokens=True))
            return not any(stop and stop in tail for stop in until)

        return go_on
