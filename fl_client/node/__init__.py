"""The hospital's host: its key, invitation, approvals and SuperNode. Never in a bundle."""
