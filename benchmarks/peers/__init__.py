"""Servers and clients of the peers. Their own interpreters run these files, which import nothing of fedmq."""
