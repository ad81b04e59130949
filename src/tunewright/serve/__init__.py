"""Floor 4: talking to a trained model."""
