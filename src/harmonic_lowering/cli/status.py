"""Exit statuses that have a name."""

INTERRUPTED = 130  # 128 + SIGINT, as shells count
