"""What the service knows: people, hosts, storages, schedules, jobs, and a copy of what the repositories say of backups. The only place with SQL."""
