"""What users see, what can happen, and how facts become records. Pure: no I/O and no clock."""
