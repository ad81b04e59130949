"""What another package adds to Tunewright: a method, an objective, a format and a reward, each in
one file."""
