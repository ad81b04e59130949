"""What a run will need before it starts, and how to start one: memory, time, and the first run
file."""
