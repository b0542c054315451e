"""What runs on a host around Flower's processes: supervision, logs, private files, checks. Never in a bundle."""
