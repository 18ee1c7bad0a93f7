"""Data sets of the user's own: a folder in one of three forms, or a table of files."""
