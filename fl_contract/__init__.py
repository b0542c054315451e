"""What server and hospital must agree on; if they need not agree on it, it does not belong here."""
