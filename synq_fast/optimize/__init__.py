"""The loop that everything iterative runs in; schedules and the optimizer's state."""
