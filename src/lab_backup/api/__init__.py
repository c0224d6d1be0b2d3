"""The HTTP API: thin endpoints over the catalog and the operations. It never runs a job itself: it adds its row."""
