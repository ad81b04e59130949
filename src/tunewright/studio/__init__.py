"""Tunewright Studio: the whole road in a web page, served by this machine to this machine."""
