"""A rank alone on one device: its own stages, actions and memory, with neighbours that are not there."""
