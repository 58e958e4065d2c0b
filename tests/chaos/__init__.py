"""What breaks at hospitals, and what attackers try, against the real services: ``python -m tests.chaos``."""
