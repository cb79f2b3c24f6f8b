"""The simulated specimen and its scanners: the truth that methods are judged by."""
