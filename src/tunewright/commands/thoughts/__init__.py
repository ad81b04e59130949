"""`data think`: a model writes its own thoughts to the questions of rows that have answers only."""
