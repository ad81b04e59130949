"""Models that say what the trained one is compared with, and their kept values."""
