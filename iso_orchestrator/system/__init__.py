"""The only doors to the operating system."""
