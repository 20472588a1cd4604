"""The Mamba mixer in plain torch, with mamba-ssm's parameter names and meaning."""
