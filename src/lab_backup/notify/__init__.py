"""Telling people outside of the program what happened: webhooks, mail, and what Apprise speaks. It knows no jobs and no tables."""
