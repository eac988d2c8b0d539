"""What users see, what happened, and how facts become records. Pure: no I/O and no clock."""
