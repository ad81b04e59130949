"""What a run has to show: a page made of its folder alone."""
