"""What the commands share: options, facts, jobs, output."""
