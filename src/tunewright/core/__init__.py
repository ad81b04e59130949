"""Words, errors, configuration, registry and the types that all rooms share. Without torch."""
