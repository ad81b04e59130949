"""The same rendering, faster; text/proof.py says when it may be used."""
