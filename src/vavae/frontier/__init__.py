"""The paper's tables and figures as one run."""
