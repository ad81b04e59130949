"""How fast, how much memory, how exact: measured, and written as a page."""
