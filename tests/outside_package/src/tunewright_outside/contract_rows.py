"""What the suites of Tunewright's tests/contract are told of these names (`TUNEWRIGHT_CONTRACT`)."""

from __future__ import annotations

from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "gain": {
        "sign": lambda case: case.tails() == {"outside_gain"},
        "learns": None,
        "why": "a factor for each channel of a frozen random model holds no 24 random tokens",
    }
}
OBJECTIVES: dict[str, dict[str, Any]] = {"focal": {"settings": {"gamma": 1.5}}}
FORMATS: dict[str, dict[str, Any]] = {
    "quiz": {
        "kind": "conversation",
        "rows": [{"ask": "what is {}?", "reply": "{}"}],
        "bad": [{"ask": "what?", "reply": ""}, {"ask": 3, "reply": "x"}, {"ask": "what?"}],
    }
}
REWARDS: dict[str, dict[str, Any]] = {"brief": {"best": "", "worst": "no " * 100}}
