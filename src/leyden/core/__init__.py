"""A run, without a Trainer."""
