"""What is made of runs: pipelines, the dry run, the demo."""
