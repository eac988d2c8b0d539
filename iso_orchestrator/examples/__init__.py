"""Programs to start from: copy one, and put your own work in."""
