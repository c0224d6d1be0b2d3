"""How far a job is."""

import pytest

from lab_backup.jobs.progress import JobProgress, StopRequestedError


def test_rate_and_time_left_follow_the_last_seconds() -> None:
    """10 bytes a second with 60 left are six seconds."""
    now = [0.0]
    progress = JobProgress(lambda _level, _text: None, clock=lambda: now[0])
    progress.start(100, "reading")
    for _ in range(4):
        now[0] += 1
        progress.advance(10)
        progress.state()
    assert progress.state() == {"phase": "reading", "done": 40, "total": 100, "rate": 10, "eta": 6}


def test_a_request_to_stop_ends_the_job_at_its_next_step_and_the_first_reason_counts() -> None:
    """Also from another thread's `advance`; a lost lease does not turn a cancellation into something else."""
    progress = JobProgress(lambda _level, _text: None)
    progress.start(None, "reading")
    progress.advance(1)
    progress.stop("cancel")
    progress.stop("lost")
    with pytest.raises(StopRequestedError) as raised:
        progress.advance(1)
    assert raised.value.how == "cancel"
    with pytest.raises(StopRequestedError):
        progress.note("more")
    with pytest.raises(StopRequestedError):
        progress.start(1, "more")


def test_a_job_whose_lease_is_not_renewed_stops_by_itself() -> None:
    """Also where the thread that renews it hangs in a database that does not answer: the job's own clock decides."""
    now = [0.0]
    progress = JobProgress(lambda _level, _text: None, clock=lambda: now[0])
    progress.start(None, "reading")
    progress.hold(15)
    now[0] = 14
    progress.advance(1)
    progress.hold(15)
    now[0] = 28
    progress.advance(1)
    now[0] = 29.5
    with pytest.raises(StopRequestedError) as raised:
        progress.advance(1)
    assert raised.value.how == "lost"
