"""How much of a pass is held at once. Here, without torch, so that the memory estimate counts with
the numbers that act."""

KEEP_BYTES = 768 * 2**20
"""Attention probabilities are kept for the backward pass up to here (`engine.policy`)."""
AT_ONCE = 64 * 2**20
"""Bytes of an optimiser's state that are on the device at once where it lies elsewhere, at least
one parameter's (`engine.offload`)."""
HEAD_ROWS = 512
"""Rows that visit the output head at once (`kernels.label_head`)."""
WIDE_NUMBERS = 1 << 24
"""Weights of a quantised matrix that are wide at once in a product: 32 MiB in bfloat16
(`quantised`)."""
ANSWERS_AT_ONCE = 64
"""Answers that are written at once (`engine.decoding`)."""
ANSWER_TOKENS, SHORT_ANSWER_TOKENS = 96, 48
"""Longest answer to a question without an expected answer, in tokens; least of one with."""


def answer_room(expected_tokens: int) -> int:
    """Most tokens of an answer where the expected one has `expected_tokens`: a quarter more, for
    other words for the same."""
    return max(SHORT_ANSWER_TOKENS, expected_tokens * 5 // 4 + 8)
