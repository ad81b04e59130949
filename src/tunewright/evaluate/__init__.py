"""Floor 4: measure what the engine and a run really do: the gradient certificate, and later losses
and answers on data of one's own."""
