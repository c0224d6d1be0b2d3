"""The service's figures in the text format of Prometheus (exposition format 0.0.4)."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(figures: Mapping[str, Any]) -> bytes:
    """Return the figures as `catalog.queries.figures` gives them, as text."""
    registry = CollectorRegistry()
    jobs = Gauge("lab_backup_jobs", "Jobs in the database, by type and status.", ["type", "status"], registry=registry)
    for row in figures["jobs"]:
        jobs.labels(row["type"], row["status"]).set(row["count"])
    Gauge("lab_backup_queue_depth", "Jobs that wait.", registry=registry).set(figures["queue_depth"])
    last = Gauge(
        "lab_backup_last_success_timestamp_seconds",
        "When the newest backup of a source was made.",
        ["source_type", "source"],
        registry=registry,
    )
    for row in figures["last_success"]:
        last.labels(row["source_type"], row["source"]).set(row["time"])
    used = Gauge("lab_backup_storage_used_bytes", "Bytes that a repository takes.", ["storage"], registry=registry)
    capacity = Gauge("lab_backup_storage_capacity_bytes", "Size of a storage.", ["storage"], registry=registry)
    reachable = Gauge(
        "lab_backup_storage_reachable",
        "Whether a storage could be opened the last time.",
        ["storage"],
        registry=registry,
    )
    for row in figures["storages"]:
        reachable.labels(row["name"]).set(row["reachable"])
        if row["used"] is not None:
            used.labels(row["name"]).set(row["used"])
        if row["capacity"] is not None:
            capacity.labels(row["name"]).set(row["capacity"])
    for name, key, text in (
        ("lab_backup_backups", "count", "Backups in the catalog."),
        (
            "lab_backup_backups_bytes",
            "bytes_total",
            "What the backups would take without deduplication and compression.",
        ),
        ("lab_backup_backups_stored_bytes", "bytes_stored", "What the backups had stored when they were made."),
    ):
        Gauge(name, text, registry=registry).set(figures["backups"][key])
    _workers(figures, registry)
    return generate_latest(registry)


def _workers(figures: Mapping[str, Any], registry: CollectorRegistry) -> None:
    """Add what workers are at, and how long jobs take."""
    for name, key, text in (
        ("lab_backup_worker_load", "load", "Load of a worker's host over the last minute."),
        ("lab_backup_worker_memory_available_bytes", "memory_available", "Memory that a worker's host has left."),
        ("lab_backup_worker_resident_bytes", "resident", "Memory of a worker's main process."),
        ("lab_backup_worker_cache_free_bytes", "cache_free", "Space that is left where a worker keeps its indexes."),
    ):
        gauge = Gauge(name, text, ["worker"], registry=registry)
        for row in figures["workers"]:
            if key in row["figures"]:
                gauge.labels(row["name"]).set(row["figures"][key])
    durations = Gauge(
        "lab_backup_job_seconds_mean", "How long jobs of a type took in the last day.", ["type"], registry=registry
    )
    for row in figures["durations"]:
        durations.labels(row["type"]).set(row["seconds"])
