"""Measure what a model really does: losses and answers on data of one's own."""
