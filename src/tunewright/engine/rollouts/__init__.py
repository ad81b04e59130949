"""Answers drawn from the model that learns, and the steps taken on them."""
