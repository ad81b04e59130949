"""Where a run lies: its folder, its events, its checkpoints."""
