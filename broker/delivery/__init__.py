"""Records on their way to readers, in commit order."""
