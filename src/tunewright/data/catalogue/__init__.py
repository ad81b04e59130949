"""Data sets known by name, and the declarations of other systems."""
