"""The front door: the command line, the demo and its report. The only part that imports the roles."""
