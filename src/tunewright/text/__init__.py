"""What is a token: chat templates, and the proof that what is learnt is what is asked."""
