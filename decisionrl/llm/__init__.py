"""Language models: sampling, text tasks as worlds, warm starts, and methods inside the trainers of TRL and verl."""
