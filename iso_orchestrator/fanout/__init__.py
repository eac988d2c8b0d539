"""Bounded, keyed fan-out."""
