"""The machine's processes: finding all that a command has started, and ending them."""
