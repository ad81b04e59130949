"""What computes: weights, what their parts are called, and how text comes out of them."""
