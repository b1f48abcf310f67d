"""The clips and tags of the teachers in tests/orchestrator/teaching/."""

RATE, SECONDS = 16_000, 0.5
TAGS = ("bell", "cat", "dog", "engine", "rain")
CLIPS = [f"clip-{number:02}" for number in range(11)]
