"""Checking damaged files and bringing back what is sound."""
