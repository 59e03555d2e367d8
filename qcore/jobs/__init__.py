"""Long work in separate processes, which any other process can watch and cancel."""
