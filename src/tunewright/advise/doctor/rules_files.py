"""Rules about files: the weights of an adapter, the base it stands on, the decoding settings."""

from __future__ import annotations

from tunewright.advise.doctor.facts import Decoding, Facts
from tunewright.record.diagnosis import Finding

FEW, MANY = 0.1, 0.3
"""Shares of the rows: a setting that spoils a tenth of the answers is worth a warning, one that
spoils a third forbids the task."""
HOT = 0.5
"""A drawn answer that is right less often than this though the likeliest is: too hot."""


def does_not_fit(facts: Facts) -> Finding | None:
    """The adapter could not be put on this model, or not all of it."""
    weights = facts.weights
    assert weights is not None
    if not weights.refused and not weights.lost and not weights.missing:
        return None
    return Finding(
        "adapter_does_not_fit",
        "bad",
        {
            "lost": weights.lost,
            "missing": weights.missing,
            "first": weights.first or "-",
            "why": weights.refused or "-",
            "named": weights.named_base or "-",
            "given": weights.given_base or "-",
        },
    )


def all_zero(facts: Facts) -> Finding | None:
    """What was to be learnt is zero, as before the first step."""
    weights = facts.weights
    assert weights is not None
    if weights.same_as_base:
        return Finding("weights_unchanged", "bad", {"tensors": weights.tensors})
    if not weights.updates or weights.zero < weights.updates:
        return None
    return Finding("adapter_zero", "bad", {"count": weights.zero, "tensors": weights.tensors})


def not_finite(facts: Facts) -> Finding | None:
    """Weights that are no numbers."""
    weights = facts.weights
    assert weights is not None
    if not weights.not_finite:
        return None
    figures = {"count": weights.not_finite, "tensors": weights.tensors}
    return Finding("weights_not_finite", "bad", figures)


def base_differs(facts: Facts) -> Finding | None:
    """The adapter was trained on another base than the one it is put on."""
    weights = facts.weights
    assert weights is not None
    if weights.same_base is not False:
        return None
    figures = {"named": weights.named_base, "given": weights.given_base}
    return Finding("base_differs", "bad", figures)


def ngrams_forbidden(facts: Facts) -> Finding | None:
    """`no_repeat_ngram_size` forbids what the answers must repeat."""
    decoding = _decoding(facts)
    return _share(decoding, decoding.ngram, "ngrams_forbidden", "no_repeat_ngram_size")


def penalty(facts: Facts) -> Finding | None:
    """`repetition_penalty` turns the right token into another one."""
    decoding = _decoding(facts)
    return _share(decoding, decoding.penalty or 0, "repetition_penalty", "repetition_penalty")


def forbidden_tokens(facts: Facts) -> Finding | None:
    """Tokens of the answers may not be written at all."""
    decoding = _decoding(facts)
    return _share(decoding, decoding.forbidden, "tokens_forbidden", "forbidden")


def too_short(facts: Facts) -> Finding | None:
    """`max_new_tokens` or `max_length` ends the answers before they are over."""
    decoding = _decoding(facts)
    key = "max_new_tokens" if decoding.settings.get("max_new_tokens") else "max_length"
    found = _share(decoding, decoding.too_short, "answers_too_long", key)
    return found and Finding(
        found.code, found.severity, found.evidence | {"longest": decoding.longest}
    )


def must_go_on(facts: Facts) -> Finding | None:
    """`min_new_tokens` or `min_length` lets no answer end where it should."""
    decoding = _decoding(facts)
    key = "min_new_tokens" if decoding.settings.get("min_new_tokens") else "min_length"
    return _share(decoding, decoding.must_go_on, "answers_must_go_on", key)


def stop_missing(facts: Facts) -> Finding | None:
    """Nobody who follows the file stops at the token that ends an answer."""
    decoding = _decoding(facts)
    if not decoding.stop_missing:
        return None
    figures = {"stop": decoding.stop, "value": decoding.settings.get("eos_token_id")}
    return Finding("stop_token_missing", "bad", figures | {"file": decoding.file})


def stop_inside(facts: Facts) -> Finding | None:
    """A token at which generation stops stands inside the answers."""
    decoding = _decoding(facts)
    return _share(decoding, decoding.cuts, "stop_token_inside", "eos_token_id")


def too_hot(facts: Facts) -> Finding | None:
    """Sampling spoils answers that the model knows."""
    decoding = _decoding(facts)
    if decoding.luck is None or decoding.luck >= HOT:
        return None
    names = ("do_sample", "temperature", "top_p", "top_k")
    told = [f"{name}={decoding.settings[name]}" for name in names if name in decoding.settings]
    figures = {"luck_share": decoding.luck, "rows": decoding.rows, "settings": told}
    return Finding("sampling_spoils", "warn", figures | {"file": decoding.file})


def _decoding(facts: Facts) -> Decoding:
    assert facts.decoding is not None
    return facts.decoding


def _share(decoding: Decoding, count: int, code: str, key: str) -> Finding | None:
    """A finding for a setting that spoils `count` of the answers."""
    share = count / decoding.rows if decoding.rows else 0.0
    if share < FEW:
        return None
    severity = "bad" if share >= MANY else "warn"
    return Finding(
        code,
        severity,  # type: ignore[arg-type]
        {
            "key": key,
            "value": decoding.settings.get(key),
            "count": count,
            "rows": decoding.rows,
            "spoilt_share": share,
            "file": decoding.file,
        },
    )
