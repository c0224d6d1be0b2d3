"""The service as one process tree: its own PostgreSQL and Valkey, and API, worker and beat beside them. It alone knows them all."""
