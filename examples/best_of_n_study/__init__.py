"""The parts of examples/best_of_n.py."""
