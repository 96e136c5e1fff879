"""What is known of a staged program before it runs: which site reaches which value, where values lie, the costs."""
