"""One file per verb, used alike by the Python API, the command line, jobs and pages."""
