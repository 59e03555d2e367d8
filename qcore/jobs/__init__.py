"""Long work in processes of its own, that any other process can watch and cancel."""
