"""The parts of a run's story: prepared, asked, decided, proved."""
