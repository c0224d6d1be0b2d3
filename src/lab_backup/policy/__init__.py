"""What should be done, decided from values alone: pure functions, the clock is an argument."""
