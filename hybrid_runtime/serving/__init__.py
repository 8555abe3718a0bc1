"""What a serving deployment is asked and in which order it answers: requests, load, batching, and their simulation.

Nothing here knows torch. The engine (`inference/`) and the simulation walk the same `Batcher`: what is predicted and
what is measured differ only in durations.
"""
