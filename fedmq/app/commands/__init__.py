"""One module for each command of `fedmq`; `fedmq.app.cli` lists them and imports only the one that is run."""
