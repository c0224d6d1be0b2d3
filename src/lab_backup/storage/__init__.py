"""Object stores that hold repositories."""
