"""Rules by which the embedded provider answers, task by task."""
