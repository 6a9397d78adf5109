"""What iterative work shares: schedules and the optimizer's state."""
