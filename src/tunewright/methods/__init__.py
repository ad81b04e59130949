"""Floor 2: what part of the model may change. Each method returns an `Attached`."""

from tunewright.methods import lora as lora
