"""Jobs: who sends them (beat), who does them (workers), over Celery and Redis. The rows in the catalog decide; a message only wakes a worker."""
