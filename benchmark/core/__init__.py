"""What everything shares; imports nothing else of ours."""
