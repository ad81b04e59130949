"""What is a token: chat templates, rendering, and the proof that what is learnt is asked so."""
