"""A whole tiny model in a folder, and a cache of its own for every test."""

from helpers.model_fixtures import _own_cache, built_folder, edit, folder, tokenizer

__all__ = ["_own_cache", "built_folder", "edit", "folder", "tokenizer"]
