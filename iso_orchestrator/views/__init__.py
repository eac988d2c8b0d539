"""What users look at: the command line and its reports."""
