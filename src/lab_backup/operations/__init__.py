"""The use cases: what the command line and the service let people do."""
