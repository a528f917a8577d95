"""System checks: a combination of settings that would hurt is said before anything starts."""
