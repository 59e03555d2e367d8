"""Results of runs: rows, verdicts, the database and the report. Imports no heavy library."""
