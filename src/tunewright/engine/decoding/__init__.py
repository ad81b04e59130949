"""Answers, written token by token: the one generator of every command."""
