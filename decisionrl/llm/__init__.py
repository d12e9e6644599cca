"""Language models: their methods inside the trainers of others, TRL and verl."""
