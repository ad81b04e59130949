"""What a run will need before it starts, what words mean, and a first run file."""
