"""What runs leave behind: rows, verdicts, the database and the report. Loads nothing heavy."""
