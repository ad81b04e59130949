"""How much of a pass is held at once. Here, without torch, so that the memory estimate counts with
the numbers that act."""

KEEP_BYTES = 768 * 2**20
"""Attention probabilities are kept for the backward pass up to here (`engine.policy`)."""
HEAD_ROWS = 512
"""Rows that visit the output head at once (`kernels.label_head`)."""
WIDE_NUMBERS = 1 << 24
"""Weights of a quantised matrix that are wide at once in a product: 32 MiB in bfloat16
(`quantised`)."""
ANSWERS_AT_ONCE = 64
"""Answers that are written at once (`engine.decoding`)."""
ANSWER_TOKENS = 96
"""Longest answer to a run's question without an expected answer, in tokens; with one, an answer may
be a quarter longer than it (`run.questions`)."""
