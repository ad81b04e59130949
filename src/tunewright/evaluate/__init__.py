"""How good a model is on rows of data: loss, answers, options, judges."""
