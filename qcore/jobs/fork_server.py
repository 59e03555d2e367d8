"""Imported first by the process that a worker's children are forked from.

A cancel signals the whole group of the worker. This process must outlive the children, whose ends it reports;
it ends with the worker.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
