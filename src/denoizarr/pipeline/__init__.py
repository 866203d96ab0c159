"""The whole job: configuration, plan, run and demo."""
