"""Turn a run into files that other programs use, and prove each of them against the run
before it appears."""
