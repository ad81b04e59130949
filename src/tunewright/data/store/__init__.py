"""Rows on their way to the engine: split, mixed, tokenised once, kept."""
