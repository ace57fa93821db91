"""Labels of the mandatory and discretionary access controls, applied by descriptor."""
