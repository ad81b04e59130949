"""Files for other programs, each proved against the run before it appears."""
