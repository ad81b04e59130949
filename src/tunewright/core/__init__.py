"""Words, errors, configuration, registry and the types on which the three axes meet.
Nothing here imports torch."""
