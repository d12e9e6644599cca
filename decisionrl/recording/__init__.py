"""What records episodes for offline learning, without downloads."""
