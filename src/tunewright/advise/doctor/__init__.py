"""The doctor: what went wrong with a training, told from figures by rules that load no model."""
