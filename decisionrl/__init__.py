"""decisionrl: a Source yields batches, a Learner improves a Policy from each, a Trainer runs the loop."""

import pkgutil

# A plain install run from the root of a checkout sees ./decisionrl first; envs, policies and benchmarks
# are then found in the installed package.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"
