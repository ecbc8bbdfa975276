"""What all tests share: one hypothesis profile, the same examples on every run."""

from hypothesis import settings

settings.register_profile("fedmq", derandomize=True, deadline=None)
settings.load_profile("fedmq")
