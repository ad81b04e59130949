"""The parts of a run's story."""
