"""What happens around the updates: evaluation, checkpoints, schedules, logs and progress."""
