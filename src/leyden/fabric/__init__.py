"""Devices, precision, strategies, launching and checkpoint bytes; usable without a Trainer."""
