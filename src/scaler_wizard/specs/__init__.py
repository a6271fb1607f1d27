"""What a person asks for, frozen and validated: one job spec per recipe, and the cockpit payload."""
