"""Stand-in until the command line is written."""
