"""The coordinator's host: its federation, certificates, SuperLink and runs. Never in a bundle."""
